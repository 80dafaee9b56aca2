import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { By, Key } from "selenium-webdriver";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

import { App, MODELS, TINY } from "./app";

const DEFAULT_MODEL = "qwen2.5-coder-0.5b";

describe("the pages", () => {
  let folder: string;
  let app: App;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "sateen-e2e-"));
    mkdirSync(join(folder, "settings"));
    mkdirSync(join(folder, "project/src"), { recursive: true });
    writeFileSync(join(folder, "project/src/shapes.py"), "class Circle:\n    pass\n");
    writeFileSync(join(folder, "project/main.py"), "from src.shapes import Circle\n");
  });

  afterEach(async () => {
    await app.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  const file = (path: string): string => readFileSync(join(folder, path), "utf8");
  const settingsFile = "settings/settings.json";
  /** What the file of the settings says, if there is one already. */
  const setting = (group: string, name: string): unknown => {
    const path = join(folder, settingsFile);
    const settings = existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Record<string, Record<string, unknown>>) : {};
    return settings[group]?.[name];
  };

  async function start(...args: string[]): Promise<void> {
    app = await App.start(folder, args);
    await app.until("the window", async () => (await app.text("[data-testid=state]")) !== null);
  }

  const click = (selector: string): Promise<void> => app.driver.findElement(By.css(selector)).click();
  const tabs = (): Promise<string[]> =>
    app.driver.executeScript("return [...document.querySelectorAll('[role=tab]')].map((tab) => tab.textContent.trim())");

  it("open a folder, its files in tabs, and find any of them by name", async () => {
    await start(join(folder, "project"));
    await app.until("the folder", async () => (await app.text("aside h2")) === "project");
    await click("[role=treeitem][title='main.py']");
    await app.until("the file", async () => (await app.code()).startsWith("from src.shapes"));
    await click("[role=treeitem][title='src']");
    await click("[role=treeitem][title='src/shapes.py']");
    await app.until("the other file", async () => (await app.code()).startsWith("class Circle"));
    expect(await tabs()).toEqual(["main.py", "shapes.py"]);
    await app.type("x");
    await app.until("the mark of changes", async () => (await app.text(".tab.active .changed")) !== null);
    await app.action("main.py");
    await app.until("the first file", async () => (await app.code()).startsWith("from src.shapes"));
    await app.action("Next tab");
    await app.until("what was typed", async () => (await app.code()).startsWith("xclass Circle"));
    await app.press(Key.CONTROL, "z");
    await app.until("no mark", async () => (await app.text(".tab.active .changed")) === null);
    await app.action("Close the tab");
    expect(await tabs()).toEqual(["main.py"]);
  });

  it("show what other programs write, and ask where both have", async () => {
    const path = join(folder, "project/main.py");
    await start(path);
    await app.until("the file", async () => (await app.code()).startsWith("from src.shapes"));
    writeFileSync(path, "import math\n");
    await app.until("the other text", async () => (await app.code()).startsWith("import math"));
    await app.type("y");
    writeFileSync(path, "import json\n");
    await app.until("a banner", async () => ((await app.text(".banner")) ?? "").includes("changed by another program"));
    expect(await app.code()).toMatch(/^yimport math/);
    await click(".banner button");
    await app.until("the other text", async () => (await app.code()).startsWith("import json"));
  });

  it("keep texts that were not saved, through a crash", async () => {
    await start();
    await app.press(Key.CONTROL, "n");
    await app.type("precious = 1");
    await app.until("the draft", () => Promise.resolve(app.drafts().some((draft) => draft.includes("precious = 1"))));
    app.crash();
    await start();
    await app.until("the text", async () => (await app.code()).includes("precious = 1"));
    expect(await app.text("footer .message")).toContain("open again");
  });

  it("change settings at once, refuse what cannot be, and keep what they do not know", async () => {
    writeFileSync(join(folder, settingsFile), '{"future": 1, "appearance": {"theme": "light"}}');
    await start();
    await app.action("Settings");
    await app.until("the page", () => app.text("#appearance\\.theme, main h1"));
    const theme = (): Promise<string> => app.driver.executeScript("return document.documentElement.dataset.theme");
    expect(await theme()).toBe("light");
    await app.driver.findElement(By.css("input[type=search]")).sendKeys("theme");
    await app.driver.findElement(By.css("#appearance\\.theme option[value=dark]")).click();
    await app.until("the theme", async () => (await theme()) === "dark");
    expect(JSON.parse(file(settingsFile))).toMatchObject({ future: 1, appearance: { theme: "dark" } });

    const search = app.driver.findElement(By.css("input[type=search]"));
    await search.clear();
    await search.sendKeys("longest completion");
    const field = app.driver.findElement(By.css("#completion\\.max_tokens"));
    await field.clear();
    await field.sendKeys("5000", Key.TAB);
    await app.until("a refusal", async () => (await app.text(".setting .error"))?.includes("must be from 1 to 1024") ?? false);
    await field.clear();
    await field.sendKeys("3", Key.TAB);
    await app.until("a change", () => Promise.resolve(setting("completion", "max_tokens") === 3));
    expect(await app.text(".setting .error")).toBeNull();
    await app.ready();
    await app.press(Key.CONTROL, "1");
    await app.press(Key.CONTROL, "n");
    await app.type("def mean(values):", Key.ENTER, "return");
    const ghost = await app.finishedGhost();
    expect(ghost.length).toBeLessThan(30);

    // Of devices those are offered that this machine has: Debian's Vulkan in software among them.
    await app.action("Settings");
    await app.until("a device", async () => (await app.text("#model\\.device"))?.includes("(vulkan:0, in software)") ?? false);
    await app.driver.findElement(By.css("#model\\.device option[value=cpu]")).click();
    await app.until("a change", () => Promise.resolve(setting("model", "device") === "cpu"));
    await app.ready();
    await app.action("Models");
    await app.until("the list", async () => (await app.driver.findElements(By.css("li button.what"))).length >= 1);
    await click("li:has(.current) button.what");
    await app.until("why", async () => (await app.text(".details"))?.includes("The settings name the processor") ?? false);
  });

  it("are as large as someone wants, whole at every size", async () => {
    await start(join(folder, "project"));
    // WebKit tells a page of its size by how much fits into the window.
    const width = (): Promise<number> => app.driver.executeScript("return window.innerWidth");
    const usual = await width();
    const shows = (percent: number): Promise<unknown> =>
      app.until(`${String(percent)} %`, async () => Math.abs((await width()) - (100 * usual) / percent) <= 2);
    await app.press(Key.CONTROL, "=");
    await shows(110);
    expect(setting("appearance", "zoom")).toBe(110);
    await app.press(Key.CONTROL, "0");
    await shows(100);
    for (const zoom of [125, 150, 200]) {
      await app.driver.executeAsyncScript(
        "const done = arguments[1]; window.__TAURI_INTERNALS__.invoke('change_setting', { group: 'appearance', name: 'zoom', value: arguments[0] }).then(done)",
        zoom,
      );
      await shows(zoom);
      for (const page of ["Editor", "Models", "Insight", "Settings"]) {
        await app.action(page);
        // What is cut off at the side can never be reached: nothing scrolls there.
        const cut = `return [...document.querySelectorAll("button, input, select, h1, footer span")]
          .filter((element) => element.getClientRects().length > 0 && element.closest("[hidden]") === null)
          .filter((element) => element.getBoundingClientRect().right > window.innerWidth + 1)
          .map((element) => element.outerHTML);`;
        expect(await app.driver.executeScript(cut), `${page} at ${String(zoom)} %`).toEqual([]);
      }
    }
  });

  it("set a broken file aside and say so", async () => {
    writeFileSync(join(folder, settingsFile), "{ broken");
    await start();
    await app.until("a notice", async () => ((await app.text("footer .message")) ?? "").includes("settings.json.bad"));
    expect(file("settings/settings.json.bad")).toBe("{ broken");
  });

  it("tell what became of completions, and forget it", async () => {
    await start(join(folder, "project/main.py"));
    await app.ready();
    await app.press(Key.CONTROL, Key.END);
    await app.type("def area(circle):", Key.ENTER, "    return");
    await app.finishedGhost();
    await app.type(Key.TAB);
    await app.action("Insight");
    await app.until("figures", async () => /^[1-9]\d* ?%/.test((await app.text(".tile:nth-child(2) strong")) ?? ""));
    expect(Number(await app.text(".tile:nth-child(1) strong"))).toBeGreaterThan(0);
    expect(await app.driver.findElements(By.css(".plots figure"))).not.toHaveLength(0);
    await click("footer .quiet");
    await app.question("yes");
    await app.until("nothing", async () => ((await app.text(".page")) ?? "").includes("Nothing was completed"));
    // Off by one click.
    await click("footer input[type=checkbox]");
    await app.until("off", () => Promise.resolve(setting("privacy", "history") === false));
  });

  it("measure the model that runs, show what it needs, and remove another", async () => {
    const models = join(folder, "data");
    mkdirSync(join(models, "models"), { recursive: true });
    symlinkSync(join(MODELS, `models/${DEFAULT_MODEL}.gguf`), join(models, `models/${DEFAULT_MODEL}.gguf`));
    symlinkSync(TINY, join(models, "models/tiny-random-llama.gguf"));
    app = await App.start(folder, [], models);
    await app.ready();
    await app.action("Models");
    await app.until("the list", async () => (await app.driver.findElements(By.css("li button.what"))).length >= 2);
    const tiny = (rest: string): string => `li:has([aria-expanded]):nth-child(2) ${rest}`;
    await click(tiny("button.what"));
    await app.until("details", async () => ((await app.text(".details")) ?? "").includes("Needs"));
    await click(tiny(".buttons button:last-child"));
    expect(await app.question("yes")).toContain("are deleted");
    await app.until("one less", async () => !((await app.text("ul")) ?? "").includes("tiny-random-llama"));
    expect(readFileSync(TINY).length).toBeGreaterThan(0);

    await click("li:first-child button.what");
    // It drafts without an adapter, then with the one that ships again.
    const adapters = (): string => JSON.stringify(setting("model", "adapters") ?? {});
    const choose = (choice: string): Promise<void> => click(`li:first-child select option[value=${choice}]`);
    await choose("off");
    await app.until("the choice", () => Promise.resolve(adapters() === JSON.stringify({ [DEFAULT_MODEL]: "off" })));
    await app.ready();
    await choose("newest");
    await app.until("no choice", () => Promise.resolve(adapters() === "{}"));
    // The model is loaded with it; where it is not yet, that is said.
    await app.until("figures", async () => {
      if (/tokens per second/.test((await app.text(".speed")) ?? "")) return true;
      const isMeasuring = (await app.driver.findElements(By.css(".details progress"))).length > 0;
      if (!isMeasuring) await click("li:first-child .buttons button");
      return false;
    });
    expect(await app.text(".speed")).toContain("The texts are identical.");
    expect(await app.driver.findElements(By.css(".charts figure"))).toHaveLength(2);
  });

  it("show other completions of a place", async () => {
    await start(join(folder, "project/main.py"));
    await app.ready();
    await app.press(Key.CONTROL, Key.END);
    await app.type("numbers = ");
    const first = await app.finishedGhost();
    await app.press(Key.ALT, "]");
    const other = await app.until("another", async () => {
      const ghost = await app.ghost();
      return ghost !== null && ghost !== first && /of \d/.test((await app.text("footer")) ?? "") ? ghost : null;
    });
    await app.type(Key.TAB);
    expect(await app.code()).toContain(`numbers = ${other.split("\n")[0] ?? ""}`);
  });
});
