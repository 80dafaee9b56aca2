import { describe, expect, it } from "vitest";

import { found, hotkeyOf, SETTINGS } from "./settings-schema";

describe("settings", () => {
  it("are found by words of their name or effect", () => {
    const names = (query: string): string[] => found(query).flatMap((group) => group.settings.map(({ name }) => name));
    expect(names("")).toHaveLength(SETTINGS.flatMap((group) => group.settings).length);
    expect(names("dark")).toEqual(["theme"]);
    expect(names("hotkey ctrl+v")).toEqual(["paste"]);
    expect(names("nothing like it")).toEqual([]);
  });

  it("each say in one sentence what they do", () => {
    for (const { effect, title } of SETTINGS.flatMap((group) => group.settings)) {
      expect(effect, title).toMatch(/^[A-Z0-9].*\.$/);
    }
  });
});

describe("keys of the hotkey", () => {
  const event = (code: string, key: string, init: KeyboardEventInit = {}): KeyboardEvent =>
    new KeyboardEvent("keydown", { code, key, ...init });

  it.each([
    [event("Space", " ", { ctrlKey: true, altKey: true }), "Ctrl+Alt+Space"],
    [event("KeyJ", "J", { metaKey: true, shiftKey: true }), "Shift+Super+J"],
    [event("Digit1", "1", { ctrlKey: true }), "Ctrl+1"],
    [event("KeyA", "a"), null],
    [event("ControlLeft", "Control", { ctrlKey: true }), null],
    [event("Backspace", "Backspace"), ""],
  ])("case %#", (keys, expected) => {
    expect(hotkeyOf(keys)).toBe(expected);
  });
});
