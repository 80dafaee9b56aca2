/** What the app asks of the desktop around it: an icon in the tray, notifications. */

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { afterEach, beforeEach, describe, expect, it } from "vitest";

import { App, BESIDE, COPIED, MODELS, copyElsewhere, isShown, pasteElsewhere, pressAnywhere } from "./app";

const MAIN = "untitled — sateen";

describe("the desktop", () => {
  let folder: string;
  let app: App;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "sateen-e2e-"));
  });

  afterEach(async () => {
    await app.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  async function start(settings: object): Promise<void> {
    mkdirSync(join(folder, "settings"));
    writeFileSync(join(folder, "settings/settings.json"), JSON.stringify(settings));
    const desktop = join(import.meta.dirname, "desktop.py");
    const beside = `/usr/bin/python3 "${desktop}" "${join(folder, "told")}" & sleep 1`;
    app = await App.start(folder, [], MODELS, { [BESIDE]: beside });
    await app.ready();
  }

  /** The first line of what the desktop was told that begins so. */
  function told(start: string): Promise<string> {
    const path = join(folder, "told");
    return app.until(start, () => {
      const lines = existsSync(path) ? readFileSync(path, "utf8").split("\n") : [];
      return Promise.resolve(lines.find((line) => line.startsWith(start)) ?? null);
    });
  }

  const click = (label: string): void => app.call("org.kde.StatusNotifierWatcher", "/StatusNotifierWatcher", "dev.sateen.Test.Click", `string:${label}`);
  const shows = (title: string, wanted: boolean): Promise<unknown> => app.until(`${title}: ${String(wanted)}`, () => Promise.resolve(isShown(title) === wanted));

  it("has an icon in the tray that brings the window back, continues the clipboard and ends the app", async () => {
    await start({ start: { toured: true, keep_running: true } });
    expect(await told("tray: ")).toBe("tray: Show sateen, Continue the clipboard, Undo the last copy, Quit");
    await shows(MAIN, true);
    pressAnywhere("alt+F4");
    await shows(MAIN, false);
    click("Show sateen");
    await shows(MAIN, true);

    copyElsewhere(COPIED);
    click("Continue the clipboard");
    await shows("sateen: continue the clipboard", true);
    await app.inPopup();
    await app.until("its end", async () => /per pass/.test((await app.text("footer .figures")) ?? ""));
    pressAnywhere("Return");
    await app.until("the copy", () => Promise.resolve(pasteElsewhere() !== COPIED));
    click("Undo the last copy");
    await app.until("the text from before", () => Promise.resolve(pasteElsewhere() === COPIED));

    const id = execFileSync("xdotool", ["search", "--onlyvisible", "--name", `^${MAIN}$`, "getwindowpid"], { encoding: "utf8" }).trim();
    click("Quit");
    await app.until("the end of the app", () => Promise.resolve(!existsSync(`/proc/${id}/exe`)));
  });

  it("says what it copied without a window", async () => {
    await start({ start: { toured: true }, clipboard: { silent: true } });
    copyElsewhere(COPIED);
    pressAnywhere("ctrl+alt+space");
    expect(await told("notification: ")).toMatch(/^notification: sateen: Continuation copied: \d+ tokens in \d+ ms\.$/);
    expect(pasteElsewhere()).toContain("return");
  });
});
