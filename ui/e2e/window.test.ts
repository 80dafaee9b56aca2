import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { By, Key } from "selenium-webdriver";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

import { App, isShown, TINY } from "./app";

describe("the window", () => {
  let folder: string;
  let app: App | null = null;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "sateen-e2e-"));
  });

  afterEach(async () => {
    await app?.stop();
    app = null;
    rmSync(folder, { recursive: true, force: true });
  });

  it("shows ghost text of the real model, accepts it with Tab, cancels with Esc, and saves", async () => {
    const file = join(folder, "mean.py");
    writeFileSync(file, "def mean(values):\r\n    total = 0\r\n    for value in values:\r\n");
    app = await App.start(folder, [file]);
    await app.until("the file", async () => (await app?.code())?.startsWith("def mean"));
    await app.ready();

    await app.press(Key.CONTROL, Key.END);
    await app.type("        total");
    const suggested = await app.finishedGhost();
    expect(suggested).toContain("value");
    const before = await app.code();
    await app.type(Key.TAB);
    expect(await app.ghost()).toBeNull();
    const accepted = await app.code();
    expect(accepted).toBe(before + suggested);

    await app.type(Key.ENTER, "    pri");
    await app.finishedGhost();
    const typed = await app.code();
    await app.type(Key.ESCAPE);
    expect(await app.ghost()).toBeNull();
    expect(await app.code()).toBe(typed);

    await app.press(Key.CONTROL, "s");
    await app.until("the saved file", () => Promise.resolve(readFileSync(file, "utf8").includes("pri")));
    expect(readFileSync(file, "utf8")).toBe(typed.replaceAll("\n", "\r\n"));
  });

  it("completes on the device that the settings name", async () => {
    const models = join(folder, "data");
    mkdirSync(join(models, "models"), { recursive: true });
    // Drivers in software compile for seconds and compute slowly: a model that is small, of random numbers.
    symlinkSync(TINY, join(models, "models/tiny-random-llama.gguf"));
    mkdirSync(join(folder, "settings"));
    writeFileSync(join(folder, "settings/settings.json"), JSON.stringify({ model: { device: "vulkan:0" }, completion: { max_tokens: 8 }, privacy: { learning: false } }));
    const file = join(folder, "count.py");
    writeFileSync(file, "for number in [1, 2, 3]:\n");
    app = await App.start(folder, [file], models);
    await app.until("the file", async () => (await app?.code())?.startsWith("for"));
    await app.ready();
    expect(await app.text("[data-testid=state]")).toContain("(vulkan:0)");
    await app.press(Key.CONTROL, Key.END);
    await app.type("    pri");
    const suggested = await app.finishedGhost();
    expect(suggested).not.toBe("");
    // On one device a place has one text, whoever asks.
    await app.press(Key.CONTROL, "s");
    await app.until("the saved file", () => Promise.resolve(readFileSync(file, "utf8").includes("pri")));
    expect(app.commandSays("complete", "--model", "tiny-random-llama", file)).toBe(suggested);
  });

  it("takes a word and a line at a time", async () => {
    const file = join(folder, "words.py");
    writeFileSync(file, "numbers = [1, 2, 3]\n");
    app = await App.start(folder, [file]);
    await app.until("the file", async () => (await app?.code())?.startsWith("numbers"));
    await app.ready();
    await app.press(Key.CONTROL, Key.END);
    await app.type("for number in");
    const suggested = await app.finishedGhost();
    const before = await app.code();
    await app.press(Key.CONTROL, Key.ARROW_RIGHT);
    const word = (await app.code()).slice(before.length);
    expect(word.trim()).not.toBe("");
    expect(suggested.startsWith(word)).toBe(true);
    expect(await app.ghost()).toBe(suggested.slice(word.length));
    await app.type(Key.END);
    const line = (await app.code()).slice(before.length);
    expect(suggested.startsWith(line) && line.length > word.length).toBe(true);
  });

  it("asks before it overwrites what another program wrote", async () => {
    const file = join(folder, "shared.py");
    writeFileSync(file, "x = 1\n");
    app = await App.start(folder, [file]);
    await app.until("the file", async () => (await app?.code())?.startsWith("x = 1"));
    await app.press(Key.CONTROL, Key.END);
    await app.type("y");
    writeFileSync(file, "from elsewhere\n");
    await app.press(Key.CONTROL, "s");
    const question = await app.question();
    expect(question).toContain("was changed by another program");
    expect(readFileSync(file, "utf8")).toBe("from elsewhere\n");
    await app.press(Key.CONTROL, "s");
    await app.question("yes");
    await app.until("the saved file", () => Promise.resolve(readFileSync(file, "utf8").startsWith("x = 1")));
    // Nor is what was typed lost with its tab.
    await app.type("z");
    await app.press(Key.CONTROL, "w");
    expect(await app.question()).toContain("has changes that are not saved");
    expect(await app.code()).toBe("x = 1\nyz");
  });

  it("starts without a window where that is wanted; a second start shows it, with its file", async () => {
    const file = join(folder, "second.py");
    writeFileSync(file, "y = 2\n");
    app = await App.start(folder, ["--hidden"]);
    await app.ready();
    expect(isShown("try_me.py — sateen")).toBe(false);
    app.second(file);
    await app.until("the file", async () => (await app?.code())?.startsWith("y = 2"));
    await app.until("the window", () => Promise.resolve(isShown("second.py — sateen")));
  });

  it("asks for a model when there is none, in words", async () => {
    app = await App.start(folder, [], folder);
    await app.until("the welcome", async () => (await app?.text("h1")) === "Welcome to sateen");
    expect(await app.text("[data-testid=state]")).toContain("No model installed");
    const offers = await app.driver.findElements(By.css(".page > ul button"));
    // Those that are for a GPU are not the first thing that somebody new sees.
    expect(await Promise.all(offers.map((offer) => offer.getText()))).toEqual(["Install", "Install", "Install"]);
    expect(await app.text("details > summary")).toBe("Larger models, for a GPU");
    expect(await app.text("li")).toContain("Qwen2.5-Coder 0.5B");
    // The machine is measured, and the best of what it runs fast enough is proposed.
    await app.until("a proposal", async () => (await app?.text(".badge.sat")) === "Recommended here");
    expect(await app.text("ul")).toMatch(/First text after about \d+ ms here/);
  });

  it("runs no foreign code, reaches no foreign host, and calls no command it was not granted", async () => {
    app = await App.start(folder, [], folder);
    await app.until("the welcome", async () => (await app?.text("h1")) === "Welcome to sateen");
    const attempts = `
      const done = arguments[arguments.length - 1];
      const refused = async (attempt) => { try { await attempt(); return false; } catch { return true; } };
      const invoke = (command, payload) => window.__TAURI_INTERNALS__.invoke(command, payload);
      const inline = () => {
        const script = document.createElement("script");
        script.textContent = "window.foreign = true";
        document.body.append(script);
        if (!window.foreign) throw new Error("refused");
      };
      Promise.all([
        refused(() => fetch("https://example.com")),
        refused(() => fetch("http://127.0.0.1:1")),
        refused(() => Promise.resolve(new Function("return 1")())),
        refused(() => Promise.resolve(inline())),
        refused(() => invoke("plugin:dialog|open", { options: {} })),
        refused(() => invoke("plugin:window|close")),
        refused(() => invoke("complete", { arguments: { prefix: "a" }, onEvent: null })),
      ]).then(done);`;
    expect(await app.driver.executeAsyncScript(attempts)).toEqual(Array(7).fill(true));
  });
});
