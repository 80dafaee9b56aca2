/** What a person would feel of the app, from outside: `make bench-window`. Prints figures, asserts none. */

import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { Key } from "selenium-webdriver";
import { afterAll, beforeAll, describe, it } from "vitest";

import { App, application, copyElsewhere, isShown, MODELS, pressAnywhere } from "./app";

const SAMPLE = join(import.meta.dirname, "../../samples/mean.py");
const POPUP = "sateen: continue the clipboard";
const ROUNDS = 20;

function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? NaN;
}

const figures: Record<string, unknown> = {};
const round = (value: number): number => Math.round(10 * value) / 10;
const distribution = (values: readonly number[]): object => ({
  n: values.length,
  p50_ms: round(percentile(values, 0.5)),
  p95_ms: round(percentile(values, 0.95)),
});

/** The processes of the app: its own, and those of its web views. */
function processes(): { pid: number; resident: number; name: string }[] {
  const all = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return all.flatMap((pid) => {
    try {
      const status = readFileSync(`/proc/${pid}/status`, "utf8");
      const name = /^Name:\s+(.*)$/m.exec(status)?.[1] ?? "";
      // Shared pages once: what is theirs alone, and their share of the rest.
      const pss = Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1] ?? 0);
      return /^(sateen-desktop|WebKit)/.test(name) ? [{ pid: Number(pid), resident: pss * 1024, name }] : [];
    } catch {
      return [];
    }
  });
}

/** Seconds of processor time that they have taken. */
function processorSeconds(): number {
  const ticks = processes().map(({ pid }) => {
    const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)?.split(" ") ?? [];
    return Number(fields[11]) + Number(fields[12]);
  });
  return ticks.reduce((sum, n) => sum + n, 0) / 100;
}

describe("the app, measured", () => {
  let folder: string;
  let app: App;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "sateen-measure-"));
    mkdirSync(join(folder, "settings"));
    writeFileSync(join(folder, "settings/settings.json"), JSON.stringify({ start: { toured: true }, completion: { speculation: "off" } }));
    app = await App.start(folder, []);
    await app.ready();
  });

  afterAll(async () => {
    await app.stop();
    rmSync(folder, { recursive: true, force: true });
    console.log(JSON.stringify(figures, null, 1));
  });

  it("start to window", async () => {
    const times: number[] = [];
    const untilThere: number[] = [];
    for (let n = 0; n < 5; n++) {
      const home = mkdtempSync(join(tmpdir(), "sateen-measure-"));
      const started = performance.now();
      const env = { ...process.env, XDG_DATA_HOME: home, SATEEN_CONFIG_DIR: home, SATEEN_STATE_DIR: home, SATEEN_DATA_DIR: MODELS };
      const other = spawn("dbus-run-session", ["--", application, SAMPLE], { env, stdio: "ignore", detached: true });
      const gone = new Promise((resolve) => other.once("exit", resolve));
      while (!isShown("(mean.py — )?sateen")) await new Promise((resolve) => setTimeout(resolve, 10));
      untilThere.push(performance.now() - started);
      while (!isShown("mean.py — sateen")) await new Promise((resolve) => setTimeout(resolve, 10));
      times.push(performance.now() - started);
      // The session's bus goes with it.
      execFileSync("sh", ["-c", 'kill -KILL $(xdotool search --onlyvisible --name "^mean.py — sateen$" getwindowpid)']);
      await gone;
      while (isShown("mean.py — sateen")) await new Promise((resolve) => setTimeout(resolve, 10));
      rmSync(home, { recursive: true, force: true });
    }
    figures["start until the window is there"] = distribution(untilThere);
    figures["start until the window shows the file"] = distribution(times);
  });

  it("hotkey to first text", async () => {
    const times: number[] = [];
    const text = readFileSync(SAMPLE, "utf8");
    for (let n = 0; n < ROUNDS; n++) {
      copyElsewhere(`# ${n}\n${text.slice(0, 200 + n)}`);
      const started = performance.now();
      pressAnywhere("ctrl+alt+space");
      await app.inPopup();
      const wait = `const done = arguments[arguments.length - 1];
        const look = () => {
          const text = document.querySelector("[data-testid=continuation]")?.textContent ?? "";
          if (text !== "" || document.querySelector("footer .figures")?.textContent) done(true);
          else setTimeout(look, 2);
        };
        look();`;
      await app.driver.executeAsyncScript(wait);
      times.push(performance.now() - started);
      // Quicker than a person: the window may not have the focus yet.
      while (isShown(POPUP)) {
        pressAnywhere("Escape");
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      await app.inMain();
      await app.ready();
    }
    // The first opens the window.
    figures["hotkey to first text, first time"] = round(times[0] ?? NaN);
    figures["hotkey to first text"] = distribution(times.slice(1));
  });

  it("decoding in the window against the command line", async () => {
    const place = "def variance(values):\n    mean_value = mean(values)\n";
    const prefix = readFileSync(SAMPLE, "utf8") + place;
    const file = join(folder, "place.py");
    writeFileSync(file, prefix);
    await app.press(Key.CONTROL, "n");
    await app.type("x");
    const inWindow: number[] = [];
    const inTerminal: number[] = [];
    for (let n = 0; n < 8; n++) {
      app.second(file);
      await app.until("the file", async () => (await app.code()).includes("def variance"));
      await app.press(Key.CONTROL, Key.END);
      await app.press(Key.ALT, "\\");
      await app.finishedGhost();
      inWindow.push(Number(/(\d+) tok\/s/.exec((await app.text("footer")) ?? "")?.[1]));
      await app.type(Key.ESCAPE);
      const env = { ...process.env, SATEEN_DATA_DIR: MODELS, SATEEN_CONFIG_DIR: join(folder, "settings") };
      const output = execFileSync(join(dirname(application), "sateen"), ["complete", file, "--json"], { env, encoding: "utf8" });
      inTerminal.push((JSON.parse(output) as { tokens_per_s: number }).tokens_per_s);
    }
    // Ordinary decoding in both: what drafters have learnt is not the same.
    figures["tokens per second, window"] = round(percentile(inWindow, 0.5));
    figures["tokens per second, command line"] = round(percentile(inTerminal, 0.5));
  });

  it("keystroke to cancel", async () => {
    // From the key in the page to the engine's end of the work: the page hears `cancelled` from the shell.
    const script = `
      const done = arguments[arguments.length - 1];
      const times = [];
      const { invoke, transformCallback } = window.__TAURI_INTERNALS__;
      const once = async () => {
        let ended, begun;
        const started = new Promise((resolve) => (begun = resolve));
        const over = new Promise((resolve) => (ended = resolve));
        const id = transformCallback((message) => {
          const event = message.message;
          if (event === undefined) return;
          if (event.event === "step") begun();
          else ended(performance.now());
        });
        const request = { prefix: "# " + Math.random() + "\\nnumbers = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ", suffix: "", key: "m", name: "a.py", path: "", n_alternatives: 0 };
        await invoke("complete", { arguments: request, onEvent: "__CHANNEL__:" + id });
        await started;
        const at = performance.now();
        await invoke("cancel_completion");
        const told = performance.now() - at;
        times.push([told, (await over) - at]);
      };
      (async () => { for (let n = 0; n < ${ROUNDS * 2}; n++) await once(); done(times); })();`;
    await app.driver.manage().setTimeouts({ script: 60_000 });
    const times = await app.driver.executeAsyncScript<[number, number][]>(script);
    figures["keystroke until the engine knows"] = distribution(times.map(([told]) => told));
    figures["keystroke to the end of the work"] = distribution(times.map(([, over]) => over));
  });

  it("at rest", async () => {
    await app.ready();
    // The caret has stopped blinking.
    await new Promise((resolve) => setTimeout(resolve, 12_000));
    const before = processorSeconds();
    await new Promise((resolve) => setTimeout(resolve, 20_000));
    figures["processor at rest, %"] = round((100 * (processorSeconds() - before)) / 20);
    const all = processes();
    const bytes = (filter: RegExp): number => all.filter(({ name }) => filter.test(name)).reduce((sum, { resident }) => sum + resident, 0);
    figures["memory of the app with the model, MB"] = Math.round(bytes(/^sateen/) / 1e6);
    figures["memory of the web views, MB"] = Math.round(bytes(/^WebKit/) / 1e6);
  });
});
