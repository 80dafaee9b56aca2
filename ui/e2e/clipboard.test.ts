import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Key } from "selenium-webdriver";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

import { App, BESIDE, COPIED, MODELS, copyElsewhere, isShown, pasteElsewhere, pressAnywhere } from "./app";

const HOTKEY = "ctrl+alt+space";
const TITLE = "sateen: continue the clipboard";

describe("the clipboard", () => {
  let folder: string;
  let app: App;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "sateen-e2e-"));
  });

  afterEach(async () => {
    await app.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  function settings(values: object): void {
    mkdirSync(join(folder, "settings"));
    writeFileSync(join(folder, "settings/settings.json"), JSON.stringify(values));
  }

  async function start(): Promise<void> {
    app = await App.start(folder, []);
    await app.ready();
  }

  const popupGoes = (): Promise<unknown> => app.until("the popup to go", () => Promise.resolve(!isShown(TITLE)));

  /** Presses the hotkey, and waits for the whole continuation. */
  async function continuation(open = (): void => pressAnywhere(HOTKEY)): Promise<string> {
    open();
    await app.until("the popup", () => Promise.resolve(isShown(TITLE)));
    await app.inPopup();
    await app.until("its end", async () => /per pass/.test((await app.text("footer .figures")) ?? ""));
    const text = (await app.text("[data-testid=continuation]")) ?? "";
    await app.inMain();
    return text;
  }

  it("goes on in a window over any program, and comes back when that was a mistake", async () => {
    await start();
    copyElsewhere(COPIED);
    const text = await continuation();
    expect(text).toContain("return");
    expect(pasteElsewhere()).toBe(COPIED);
    pressAnywhere("Return");
    await popupGoes();
    expect(pasteElsewhere()).toBe(text);

    await app.action("Undo the last copy");
    await app.until("the old clipboard", () => Promise.resolve(pasteElsewhere() === COPIED));

    // Both, and a word.
    const again = await continuation();
    pressAnywhere("ctrl+Return");
    await popupGoes();
    expect(pasteElsewhere()).toBe(COPIED + again);
    copyElsewhere(COPIED);
    const whole = await continuation();
    pressAnywhere("Right");
    await app.inPopup();
    const word = await app.until("a word", () => app.text("[data-testid=taken]"));
    await app.inMain();
    pressAnywhere("Return");
    await popupGoes();
    expect(pasteElsewhere()).toBe(word);
    expect(whole.startsWith(word) && word.length < whole.length).toBe(true);
  });

  it("is as it was when Esc or the hotkey closes the window, and when the focus goes elsewhere", async () => {
    await start();
    copyElsewhere(COPIED);
    for (const keys of ["Escape", HOTKEY]) {
      await continuation();
      pressAnywhere(keys);
      await popupGoes();
      expect(pasteElsewhere()).toBe(COPIED);
      // Else the next time would begin with what is shown here, and Enter would take it.
      await app.inPopup();
      await app.until("nothing of it left", async () =>
        app.driver.executeScript<boolean>(
          "return document.querySelector('main pre').textContent === '' && document.querySelector('footer .figures').textContent === ''",
        ),
      );
      await app.inMain();
    }
    await continuation();
    // A second start brings the main window to the front.
    app.second();
    await popupGoes();
    expect(pasteElsewhere()).toBe(COPIED);
  });

  it("is all that its window may ask for, though it shares a process with the other", async () => {
    await start();
    copyElsewhere(COPIED);
    await continuation();
    await app.inPopup();
    const asked = (command: string): Promise<string> =>
      app.driver.executeAsyncScript(
        `const done = arguments[1]; window.__TAURI_INTERNALS__.invoke(arguments[0]).then(() => done("answered"), (error) => done(String(error)))`,
        command,
      );
    expect(await asked("popup_content")).toBe("answered");
    expect(await asked("list_models")).toContain("not allowed");
    await app.inMain();
    expect(await asked("list_models")).toBe("answered");
    expect(await asked("popup_content")).toContain("not allowed");
  });

  it("tells the text behind the marker too, and tries again", async () => {
    await start();
    copyElsewhere("def mean(values):\n    return <CURSOR> / len(values)\n");
    const first = await continuation();
    expect(first).toContain("sum(values)");
    await app.inPopup();
    expect(await app.text(".tail")).toBe("def mean(values):\n    return ");
    await app.inMain();
    pressAnywhere("r");
    await app.inPopup();
    await app.until("another text", async () => /per pass/.test((await app.text("footer .figures")) ?? ""));
    await app.inMain();
    pressAnywhere("ctrl+Return");
    await popupGoes();
    expect(pasteElsewhere()).toMatch(/^def mean\(values\):\n {4}return .* \/ len\(values\)\n$/s);
  });

  it("has the same text when its page asks anew", async () => {
    await start();
    copyElsewhere(COPIED);
    const text = await continuation();
    await app.inPopup();
    await app.reload();
    await app.until("its end", async () => /per pass/.test((await app.text("footer .figures")) ?? ""));
    expect(await app.text("[data-testid=continuation]")).toBe(text);
    await app.inMain();
    pressAnywhere("Escape");
    await popupGoes();
  });

  it("says what is wrong with it", async () => {
    await start();
    copyElsewhere("  \n");
    pressAnywhere(HOTKEY);
    await app.until("the popup", () => Promise.resolve(isShown(TITLE)));
    await app.inPopup();
    await app.until("words", async () => (await app.text(".problem")) === "There is no text in the clipboard. Copy some code first.");
    await app.inMain();
    pressAnywhere("Escape");
    await popupGoes();
  });

  it("goes on without the hotkey: a command hands over to the app that runs", async () => {
    settings({ clipboard: { hotkey: "" } });
    await start();
    copyElsewhere(COPIED);
    pressAnywhere(HOTKEY);
    const text = await continuation(() => app.command("clipboard"));
    pressAnywhere("Return");
    await popupGoes();
    expect(pasteElsewhere()).toBe(text);
  });

  it("is left alone in programs that are to be left alone", async () => {
    settings({ clipboard: { excluded_programs: ["other", "Sateen-Desktop"] } });
    await start();
    copyElsewhere(COPIED);
    pressAnywhere(HOTKEY);
    // By the command it is asked for on purpose.
    await continuation(() => app.command("clipboard"));
    pressAnywhere("Escape");
    await popupGoes();
    pressAnywhere(HOTKEY);
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(isShown(TITLE)).toBe(false);
  });

  it("goes on without a window where that is wanted", async () => {
    settings({ clipboard: { silent: true } });
    await start();
    copyElsewhere(COPIED);
    pressAnywhere(HOTKEY);
    await app.until("the continuation", () => Promise.resolve(pasteElsewhere() !== COPIED));
    expect(pasteElsewhere()).toContain("return");
    expect(isShown(TITLE)).toBe(false);
  });

  it("goes on with keys of the desktop's portal, where no program sees the keys of another", async () => {
    const portal = join(import.meta.dirname, "portal.py");
    app = await App.start(folder, [], MODELS, {
      WAYLAND_DISPLAY: "wayland-that-is-none",
      GDK_BACKEND: "x11",
      [BESIDE]: `/usr/bin/python3 "${portal}" & sleep 1`,
    });
    await app.ready();
    await app.action("Settings");
    const words = ".setting:has([id='clipboard.hotkey'])";
    await app.until("the keys", async () => ((await app.text(words)) ?? "").includes("CTRL+ALT+space works in every program"));
    copyElsewhere(COPIED);
    const desktop = "org.freedesktop.portal.Desktop";
    const text = await continuation(() => app.call(desktop, "/org/freedesktop/portal/desktop", "dev.sateen.Test.Press"));
    expect(text).toContain("return");
    pressAnywhere("Return");
    await popupGoes();
    expect(pasteElsewhere()).toBe(text);
  });

  it("says what to do where neither is possible", async () => {
    app = await App.start(folder, [], MODELS, { WAYLAND_DISPLAY: "wayland-that-is-none", GDK_BACKEND: "x11" });
    await app.ready();
    await app.action("Settings");
    const words = ".setting:has([id='clipboard.hotkey'])";
    await app.until("words", async () => ((await app.text(words)) ?? "").includes("Bind the command `sateen clipboard` to keys"));
  });

  it("says when another program has the keys", async () => {
    await start();
    const home = join(folder, "second");
    mkdirSync(home);
    // On its own session bus it is another program.
    const second = await App.start(home, []);
    try {
      await second.ready();
      await second.action("Settings");
      await second.until("the conflict", async () =>
        ((await second.text(".setting:has([id='clipboard.hotkey'])")) ?? "").includes("Another program has these keys"),
      );
      await second.press(Key.CONTROL, "1");
    } finally {
      await second.stop();
    }
  });
});
