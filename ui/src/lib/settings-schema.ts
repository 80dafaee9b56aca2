/** What the settings are called, what they do, and how they are changed. Values and bounds are the Rust side's. */

import type { Settings } from "./bindings/Settings";

export type Control =
  | { kind: "toggle" }
  | { kind: "number"; min: number; max: number; step: number; unit: string }
  | { kind: "text"; placeholder: string }
  | { kind: "keys" }
  | { kind: "device" }
  | { kind: "list"; placeholder: string }
  | { kind: "choice"; choices: readonly (readonly [value: string, name: string])[] };

export interface Setting {
  group: keyof Settings;
  name: string;
  title: string;
  /** One sentence. */
  effect: string;
  control: Control;
}

export interface SettingGroup {
  title: string;
  settings: readonly Setting[];
}

const toggle: Control = { kind: "toggle" };
const number = (min: number, max: number, unit: string, step = 1): Control => ({ kind: "number", min, max, step, unit });
/** In percent. */
export const ZOOM = { kind: "number", min: 50, max: 300, step: 10, unit: "%" } as const;
const text = (placeholder: string): Control => ({ kind: "text", placeholder });

function group<G extends keyof Settings>(
  title: string,
  name: G,
  settings: readonly (readonly [name: keyof Settings[G] & string, title: string, effect: string, control: Control])[],
): SettingGroup {
  return { title, settings: settings.map(([of, title, effect, control]) => ({ group: name, name: of, title, effect, control })) };
}

/** In the order of the page. The model itself is chosen on its own page. */
export const SETTINGS: readonly SettingGroup[] = [
  group("Model", "model", [
    ["device", "Device", "What the model runs on; a GPU is taken by itself only where it is quicker than the processor.", { kind: "device" }],
    ["threads", "Threads", "Threads that compute; 0 takes as many as this computer has cores.", number(0, 256, "threads")],
    ["context_tokens", "Context", "The longest text, prompt and completion together, that the model sees; more takes more memory.", number(512, 131_072, "tokens", 512)],
    ["half_precision_cache", "Half-precision cache", "Halves the memory of a context; texts may differ in rare places.", toggle],
    ["unload_after_minutes", "Unload when idle", "Gives the model's memory back after so long without a request; 0 never does.", number(0, 10_080, "minutes")],
  ]),
  group("Completion", "completion", [
    ["automatic", "Complete while typing", "Asks at every pause; without it, Alt+\\ asks.", toggle],
    ["max_tokens", "Longest completion", "A completion ends after so many tokens at the latest.", number(1, 1024, "tokens")],
    [
      "extent",
      "Where a completion ends",
      "With the line or block that it belongs to, always with the line, or where the model ends.",
      { kind: "choice", choices: [["auto", "Line or block"], ["line", "Line"], ["raw", "Where the model ends"]] },
    ],
    ["temperature", "Temperature", "0 takes the likeliest token; higher values vary more.", number(0, 2, "", 0.1)],
    [
      "speculation",
      "Speculation",
      "How tokens are drafted; the text is the same in every way, only the time differs.",
      {
        kind: "choice",
        choices: [
          ["auto", "Automatic"],
          ["fused", "Adaptive tokens"],
          ["sdsat", "SDSAT as published"],
          ["free", "Without adaptive tokens"],
          ["lookup", "Prompt lookup"],
          ["off", "Off"],
        ],
      },
    ],
    ["prefix_tokens", "Text before the cursor", "Most tokens of it that the model is told.", number(16, 65_536, "tokens", 64)],
    ["suffix_tokens", "Text after the cursor", "Most tokens of it that the model is told.", number(0, 65_536, "tokens", 64)],
    ["other_tokens", "Other open files", "Most tokens of them that the model is told.", number(0, 65_536, "tokens", 64)],
    ["excluded_endings", "Files that are left alone", "Endings of names, as in md, txt: there only Alt+\\ asks.", { kind: "list", placeholder: "md, txt" }],
  ]),
  group("Hotkey and clipboard", "clipboard", [
    ["hotkey", "Hotkey", "Continues what was copied, from any program; Backspace switches it off.", { kind: "keys" }],
    ["cursor_marker", "Cursor marker", "Where this stands in what was copied, the text after it counts too.", text("none")],
    ["silent", "Without a window", "Puts the continuation into the clipboard at once, and says so in a notification.", toggle],
    ["paste", "Paste when accepted", "Types Ctrl+V into the program that had the focus (X11).", toggle],
    ["excluded_programs", "Programs that are left alone", "There the hotkey does nothing; names of window classes, as in KeePassXC (X11).", { kind: "list", placeholder: "KeePassXC" }],
    ["max_tokens", "Longest continuation", "It ends after so many tokens at the latest.", number(1, 1024, "tokens")],
  ]),
  group("Privacy", "privacy", [
    ["history", "Keep figures", "Remembers how long completions took and what became of them, never their text; on this computer only.", toggle],
    ["history_days", "Keep them for", "Older figures are forgotten.", number(1, 3650, "days")],
    ["learning", "Learn", "Keeps what drafters learn of the model's habits beside its file; it makes later completions quicker.", toggle],
    ["drafts", "Keep unsaved texts", "Offers them again after a crash; they are kept on this computer until saved.", toggle],
  ]),
  group("Appearance", "appearance", [
    ["theme", "Theme", "Light or dark.", { kind: "choice", choices: [["system", "As the desktop"], ["light", "Light"], ["dark", "Dark"]] }],
    ["zoom", "Zoom", "Size of everything, in both windows; Ctrl+= and Ctrl+- change it too.", ZOOM],
    ["code_font", "Code font", "Name of an installed font.", text("the system's")],
    ["code_size", "Code size", "Height of code.", number(8, 40, "px", 0.5)],
    ["show_speculation", "Show speculation", "Tints tokens of accepted drafts, with a line under each forward pass.", toggle],
  ]),
  group("Start", "start", [
    ["on_login", "Start on login", "Starts sateen with the session, without a window.", toggle],
    ["hidden", "Start hidden", "Starts without a window; the hotkey works, and a second start shows it.", toggle],
    ["keep_running", "Keep running", "Closing the window leaves sateen running for the hotkey.", toggle],
  ]),
];

/** Groups with the settings that a search finds, by name or effect. */
export function found(query: string): SettingGroup[] {
  const words = query.toLowerCase().split(/\s+/).filter((word) => word !== "");
  const fits = (group: SettingGroup) => (setting: Setting) => {
    const text = `${group.title} ${setting.title} ${setting.effect} ${setting.name}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  return SETTINGS.map((group) => ({ ...group, settings: group.settings.filter(fits(group)) })).filter(
    (group) => group.settings.length > 0,
  );
}

/** The keys of an event as the hotkey writes them; null for modifiers alone, "" for Backspace. */
export function hotkeyOf(event: KeyboardEvent): string | null {
  if (["Control", "Alt", "Shift", "Meta", "AltGraph"].includes(event.key)) return null;
  const modifiers = [
    ...(event.ctrlKey ? ["Ctrl"] : []),
    ...(event.altKey ? ["Alt"] : []),
    ...(event.shiftKey ? ["Shift"] : []),
    ...(event.metaKey ? ["Super"] : []),
  ];
  if (modifiers.length === 0) return event.key === "Backspace" || event.key === "Delete" ? "" : null;
  const key = event.code.replace(/^(Key|Digit)/, "");
  return [...modifiers, key].join("+");
}
