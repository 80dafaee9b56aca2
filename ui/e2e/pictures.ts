/** Pictures of every page in both themes, for the documentation: `make pictures`. */

import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { By, Key } from "selenium-webdriver";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

import { App, COPIED, copyElsewhere, pressAnywhere, takePicture } from "./app";

const OUT = join(import.meta.dirname, "../../docs/pictures");
const SAMPLES = join(import.meta.dirname, "../../samples");

describe.each(["light", "dark"])("pictures, %s", (theme) => {
  let folder: string;
  let app: App;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "sateen-pictures-"));
    mkdirSync(OUT, { recursive: true });
    mkdirSync(join(folder, "settings"));
    const settings = { appearance: { theme, show_speculation: true }, start: { toured: true } };
    writeFileSync(join(folder, "settings/settings.json"), JSON.stringify(settings));
  });

  afterEach(async () => {
    await app.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  async function picture(name: string): Promise<void> {
    // What moves has come to rest.
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(takePicture(join(OUT, `${name}-${theme}.png`))).toBe(true);
  }

  it("the window", async () => {
    const project = join(folder, "statistics");
    mkdirSync(join(project, "tests"), { recursive: true });
    copyFileSync(join(SAMPLES, "mean.py"), join(project, "mean.py"));
    writeFileSync(join(project, "README.md"), "# Statistics\n");
    writeFileSync(join(project, "tests/test_mean.py"), "from mean import mean\n\n\ndef test_mean():\n    assert mean([1, 3]) == 2\n");
    app = await App.start(folder, [project]);
    await app.ready();
    await app.driver.findElement(By.css("[role=treeitem][title='tests']")).click();
    await app.driver.findElement(By.css("[role=treeitem][title='tests/test_mean.py']")).click();
    await app.action("mean.py");
    await app.until("the file", async () => (await app.code()).includes("def mean"));
    await app.press(Key.CONTROL, Key.END);
    await app.type(Key.ENTER, "def variance(values):", Key.ENTER);
    await app.finishedGhost();
    await picture("editor");
    await app.type(Key.TAB);
    await app.press(Key.CONTROL, "k");
    await app.type("sp");
    await picture("palette");
    await app.type(Key.ESCAPE);
    await app.action("Insight");
    await picture("insight");
    await app.action("Settings");
    await picture("settings");
    await app.action("Models");
    await app.until("the list", () => app.text("li button.what"));
    await app.driver.findElement(By.css("li:first-child button.what")).click();
    await app.driver.findElement(By.css("li:first-child .buttons button")).click();
    await app.until("figures", () => app.text(".speed"));
    await picture("models");
    copyElsewhere(COPIED);
    pressAnywhere("ctrl+alt+space");
    await app.inPopup();
    await app.until("its end", async () => /per pass/.test((await app.text("footer .figures")) ?? ""));
    await picture("popup");
    await app.inMain();
    pressAnywhere("Escape");
  });

  it("the first start", async () => {
    app = await App.start(folder, [], join(folder, "data"));
    await app.until("a proposal", async () => (await app.text(".badge.sat")) === "Recommended here");
    await picture("first-start");
  });
});
