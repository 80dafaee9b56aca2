/** Figures and states in words. */

import type { ApplicationState } from "./bindings/ApplicationState";
import type { Completion } from "./bindings/Completion";
import type { FoundDevice } from "./bindings/FoundDevice";
import type { InstallProgress } from "./bindings/InstallProgress";
import type { InstalledModel } from "./bindings/InstalledModel";
import type { LoadedModel } from "./bindings/LoadedModel";
import type { ModelPace } from "./bindings/ModelPace";

export function bytes(n: number): string {
  if (n >= 1e9) return `${(n / 1e9).toFixed(2)} GB`;
  if (n >= 1e6) return `${(n / 1e6).toFixed(0)} MB`;
  return `${(n / 1e3).toFixed(0)} kB`;
}

export interface Status {
  kind: "busy" | "ready" | "none" | "failed";
  text: string;
}

/** The state of the engine and why it is in it. */
export function statusOf(state: ApplicationState | null): Status {
  if (state === null) return { kind: "busy", text: "Starting" };
  const { engine } = state;
  switch (engine.state) {
    case "starting":
      return { kind: "busy", text: "Looking for models" };
    case "no_model":
      return { kind: "none", text: "No model installed: choose one under Models" };
    case "loading":
      return { kind: "busy", text: `Loading ${engine.name}, ${Math.round(engine.progress * 100)} %` };
    case "measuring":
      return { kind: "busy", text: `Measuring how fast ${engine.name} is here, once` };
    case "ready":
      return { kind: "ready", text: `Ready · ${engine.name} · ${engine.device}` };
    case "thinking":
      return { kind: "busy", text: `Thinking · ${engine.name} · ${engine.device}` };
    case "unloaded":
      return { kind: "ready", text: `Resting · ${engine.name} loads again when it is needed` };
    case "failed":
      return { kind: "failed", text: `The model cannot be used: ${engine.reason}` };
  }
}

/** What a model can draft with beside the free drafters, which it always has: choices and their names. */
export function adapterChoices({ has_shipped_adapter, adapters }: InstalledModel): [string, string][] {
  const own = adapters.map(({ name }): [string, string] => [name, name]);
  if (own.length === 0 && !has_shipped_adapter) return [];
  const [newest] = adapters;
  const first: [string, string][] = newest === undefined ? [] : [["newest", `The newest of yours: ${newest.name}`]];
  const shipped: [string, string][] = has_shipped_adapter ? [[newest === undefined ? "newest" : "shipped", "The adapter that ships"]] : [];
  return [...first, ...(own.length > 1 ? own : []), ...shipped, ["off", "No adapter"]];
}

/** The device, and why it is no GPU where it is none: `choice` is what the settings say. */
export function whereItRuns({ device, device_note }: LoadedModel, choice: string): string {
  if (device_note !== null) return `${device}. ${device_note}.`;
  if (!device.startsWith("CPU")) return device;
  return `${device}. ${choice === "cpu" ? "The settings name the processor" : "No GPU was found"}.`;
}

/** What a model can be told to run on, with names: `chosen` is among them, though it may not be here. */
export function deviceChoices(found: readonly FoundDevice[], chosen: string): [string, string][] {
  const gpus = found.map(({ id, name, is_software }): [string, string] => [id, `${name} (${id}${is_software ? ", in software" : ""})`]);
  const known: [string, string][] = [["auto", "The quickest"], ["cpu", "The processor"], ...gpus];
  return known.some(([choice]) => choice === chosen) ? known : [...known, [chosen, `${chosen}, not found here`]];
}

export interface Figure {
  text: string;
  /** How it was measured. */
  title: string;
}

/** What the last completion took. */
export function figuresOf(completion: Completion): Figure[] {
  const { n_tokens, n_steps, n_prompt_tokens, n_reused_tokens } = completion;
  const drafters = completion.accepted_by_drafter.map(({ drafter, n_accepted }) => `${n_accepted} from ${drafter}`);
  const accepted = `${completion.n_accepted} of ${completion.n_drafted} drafts accepted`;
  const speed: Figure = {
    text: `${completion.tokens_per_s.toFixed(0)} tok/s`,
    title: `${n_tokens} tokens; decoding only, after the first step`,
  };
  return [
    // A completion of a single step has no speed.
    ...(completion.tokens_per_s > 0 ? [speed] : []),
    {
      text: `${completion.mean_accepted_tokens.toFixed(1)} per pass`,
      title: `${n_tokens} tokens in ${n_steps} forward passes of ${completion.mean_rows.toFixed(1)} rows; ${[accepted, ...drafters].join(", ")}`,
    },
    {
      text: `${completion.ttft_ms.toFixed(0)} ms`,
      title: `From the request to the first token; ${n_prompt_tokens} prompt tokens, ${n_reused_tokens} of them known from before`,
    },
  ];
}

/** How soon a model answers on this computer. */
export function paceText(pace: ModelPace): string {
  if (!pace.fits) return "Needs more memory than this computer has free";
  if (pace.first_text_ms === null) return "Not measured";
  const ms = pace.first_text_ms;
  const time = ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
  return pace.is_measured ? `First text after ${time} here` : `First text after about ${time} here`;
}

/** How far an installation is. `rate` is in bytes per second. */
export function installText(progress: InstallProgress, rate: number): string {
  if (progress.stage === "checking") return "Checking the file";
  const done = `${bytes(progress.n_bytes)} of ${bytes(progress.total_bytes)}`;
  if (rate <= 0) return done;
  const seconds = (progress.total_bytes - progress.n_bytes) / rate;
  const left = seconds >= 90 ? `${Math.round(seconds / 60)} min` : `${Math.max(1, Math.round(seconds))} s`;
  return `${done} · ${bytes(rate)}/s · ${left} left`;
}

/** When today began where the user is, in milliseconds since 1970. */
export function startOfToday(): number {
  return new Date().setHours(0, 0, 0, 0);
}

/** What stands below the figures of a time: an hour where they are of one day, else a day. */
export function labelOf(startMs: number, nDays: number): string {
  const start = new Date(startMs);
  return nDays <= 1 ? `${start.getHours()} h` : `${start.getDate()}.${start.getMonth() + 1}.`;
}
