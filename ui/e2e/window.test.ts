/**
 * The real app in a real window: WebDriver talks to the web view through tauri-driver. Needs a display, a session
 * bus, the built app (SATEEN_DESKTOP) and the default model.
 */

import { spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo } from "node:net";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";

import { Builder, By, Capabilities, Key, type WebDriver } from "selenium-webdriver";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const application = process.env["SATEEN_DESKTOP"] ?? "";
const MODELS = process.env["SATEEN_DATA_DIR"] ?? join(process.env["XDG_DATA_HOME"] ?? join(homedir(), ".local/share"), "sateen");
/** How long one thing may take, on a machine that does others too. All of a test take less than vitest waits. */
const WAIT_MS = 40_000;
const TEST_MS = 150_000;
const PICTURE_MS = 5_000;

/** Fails when `promise` takes longer than `ms`: a driver that never answers must not hang the test. */
async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms: ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function reachable(port: number): Promise<void> {
  const deadline = Date.now() + WAIT_MS;
  while (Date.now() < deadline) {
    const isOpen = await new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
    if (isOpen) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`nothing listens on port ${port}`);
}

/** The driver, its bus, and what they have started. */
function killGroup(leader: ChildProcess): void {
  try {
    if (leader.pid !== undefined) process.kill(-leader.pid, "SIGKILL");
  } catch {
    // They are gone already.
  }
}

/** Folders of its own for everything that a run chooses and remembers. */
function isolated(home: string): Record<string, string> {
  return {
    XDG_DATA_HOME: home,
    XDG_CONFIG_HOME: join(home, "config"),
    SATEEN_CONFIG_DIR: join(home, "settings"),
    SATEEN_STATE_DIR: join(home, "state"),
  };
}

/** A running app with its own data folder if one is named. */
class App {
  private readonly deadline = Date.now() + TEST_MS;

  private constructor(
    private readonly process: ChildProcess,
    readonly driver: WebDriver,
  ) {}

  /** `home` gets what the web view stores, so that no run sees another's. */
  static async start(home: string, args: string[], models = MODELS): Promise<App> {
    const [port, nativePort] = [await freePort(), await freePort()];
    // A session bus of its own: on a shared one an app that is still closing would take the place of the next, which
    // then hands its file over and ends, and the driver waits for a window for ever.
    const driver = ["tauri-driver", "--port", String(port), "--native-port", String(nativePort)];
    const process_ = spawn("dbus-run-session", ["--", ...driver], {
      env: { ...process.env, ...isolated(home), SATEEN_DATA_DIR: models },
      stdio: "ignore",
      detached: true,
    });
    await reachable(port);
    const capabilities = new Capabilities();
    capabilities.setBrowserName("wry");
    capabilities.set("tauri:options", { application, args });
    const builder = new Builder().usingServer(`http://127.0.0.1:${port}`).withCapabilities(capabilities);
    try {
      return new App(process_, await within(WAIT_MS, "the window opens", builder.build()));
    } catch (error) {
      killGroup(process_);
      throw error;
    }
  }

  async stop(): Promise<void> {
    await within(WAIT_MS, "the window closes", this.driver.quit()).catch(() => undefined);
    killGroup(this.process);
  }

  /** What is left for one thing of the time that the test has. */
  private get patience(): number {
    return Math.max(1, Math.min(WAIT_MS, this.deadline - Date.now()));
  }

  /** Runs something of the driver; when it fails or never ends, says how the window looked. */
  private async attempt<T>(what: string, promise: Promise<T>): Promise<T> {
    try {
      return await within(this.patience + PICTURE_MS, what, promise);
    } catch (error) {
      const picture = join(tmpdir(), "sateen-e2e-failure.png");
      const seen = within(PICTURE_MS, "a picture", this.driver.takeScreenshot());
      const where = await seen.then(
        (png) => (writeFileSync(picture, png, "base64"), `the window is in ${picture}`),
        () => "there is no picture of the window",
      );
      const state = await within(PICTURE_MS, "the state", this.text("[data-testid=state]")).catch(() => "unknown");
      throw new Error(`${what}: ${String(error)}; its state is ${state}; ${where}`, { cause: error });
    }
  }

  async until<T>(what: string, condition: () => Promise<T | null | false>): Promise<T> {
    const met = this.driver.wait(condition, this.patience, `waiting for ${what}`);
    return (await this.attempt(what, Promise.resolve(met))) as T;
  }

  /** In one script: between two calls the page may replace an element. */
  text(selector: string): Promise<string | null> {
    const script = "return document.querySelector(arguments[0])?.textContent ?? null;";
    return this.driver.executeScript<string | null>(script, selector);
  }

  async ready(): Promise<void> {
    await this.until("a model that is ready", async () =>
      ((await this.text("[data-testid=state]")) ?? "").startsWith("Ready"),
    );
  }

  /** The code without ghost text. */
  async code(): Promise<string> {
    const script = `
      const lines = [...document.querySelectorAll(".cm-line")].map((line) => {
        const copy = line.cloneNode(true);
        copy.querySelectorAll(".cm-ghost").forEach((ghost) => ghost.remove());
        return copy.textContent;
      });
      return lines.join("\\n");`;
    return this.driver.executeScript<string>(script);
  }

  ghost(): Promise<string | null> {
    return this.text(".cm-ghost");
  }

  /** Types into the editor, which has the focus since the app started. */
  async type(...keys: string[]): Promise<void> {
    await this.attempt(`typing ${keys.join("")}`, this.driver.actions().sendKeys(...keys).perform());
  }

  async press(modifier: string, key: string): Promise<void> {
    const pressed = this.driver.actions().keyDown(modifier).sendKeys(key).keyUp(modifier).perform();
    await this.attempt(`pressing ${key}`, pressed);
  }

  /** What the window asks, which is answered. */
  async question(answer: "Enter" | "yes" = "Enter"): Promise<string> {
    const text = await this.until("a question", () => this.text("dialog[open] p"));
    // The first button does nothing, and has the focus.
    if (answer === "yes") await this.driver.findElement(By.css("dialog .primary")).click();
    else await this.type(Key.ENTER);
    await this.until("the question to go", async () => (await this.text("dialog[open] p")) === null);
    return text;
  }

  /** Ghost text after the engine has finished with it. */
  async finishedGhost(): Promise<string> {
    await this.until("ghost text", async () => (await this.ghost()) !== null);
    await this.ready();
    return (await this.ghost()) ?? "";
  }
}

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

  it("asks for a model when there is none, in words", async () => {
    app = await App.start(folder, [], folder);
    await app.until("the welcome", async () => (await app?.text("h1")) === "Welcome to sateen");
    expect(await app.text("[data-testid=state]")).toContain("No model installed");
    const offers = await app.driver.findElements(By.css("li button"));
    expect(await Promise.all(offers.map((offer) => offer.getText()))).toEqual(["Install", "Install", "Install"]);
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
