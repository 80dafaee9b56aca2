/**
 * The real app in real windows: WebDriver talks to the web views through tauri-driver, `xdotool` and `xclip` are other
 * programs. Needs a display with a window manager, the built app (SATEEN_DESKTOP) and the default model.
 */

import { execFileSync, spawn, spawnSync, type ChildProcess } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { connect, createServer, type AddressInfo } from "node:net";
import { homedir, tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { Builder, By, Capabilities, Key, type WebDriver } from "selenium-webdriver";

export const application = process.env["SATEEN_DESKTOP"] ?? "";
export const MODELS = process.env["SATEEN_DATA_DIR"] ?? join(process.env["XDG_DATA_HOME"] ?? join(homedir(), ".local/share"), "sateen");
/** A model of random numbers. */
export const TINY = join(import.meta.dirname, "../../models/tiny-random-llama.gguf");
/** Among the environment: a command of the shell that runs beside the app, on its session bus. */
export const BESIDE = "SATEEN_E2E_BESIDE";
/** How long one thing may take, on a machine that does others too. All of a test take less than vitest waits. */
const WAIT_MS = 40_000;
const TEST_MS = 150_000;
/** What tests copy in another program. */
export const COPIED = "def is_even(n):\n    return n % 2 == 0\n\n\ndef is_odd(n):\n";
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
export function isolated(home: string): Record<string, string> {
  return {
    XDG_DATA_HOME: home,
    XDG_CONFIG_HOME: join(home, "config"),
    SATEEN_CONFIG_DIR: join(home, "settings"),
    SATEEN_STATE_DIR: join(home, "state"),
  };
}

/** A running app with its own data folder if one is named. */
export class App {
  private readonly deadline = Date.now() + TEST_MS;

  private constructor(
    private readonly process: ChildProcess,
    readonly driver: WebDriver,
    private readonly env: NodeJS.ProcessEnv,
    private readonly home: string,
  ) {}

  /** `home` gets what the web view stores, so that no run sees another's. */
  static async start(home: string, args: string[], models = MODELS, extra: Record<string, string> = {}): Promise<App> {
    const [port, nativePort] = [await freePort(), await freePort()];
    // A session bus of its own: on a shared one an app that is still closing would take the place of the next, which
    // then hands its file over and ends, and the driver waits for a window for ever.
    const driver = ["tauri-driver", "--port", String(port), "--native-port", String(nativePort)];
    const env = { ...process.env, ...isolated(home), SATEEN_DATA_DIR: models, ...extra };
    const session = `echo "$DBUS_SESSION_BUS_ADDRESS" > "${join(home, "bus")}"; ${extra[BESIDE] ?? ":"}; exec ${driver.join(" ")}`;
    const process_ = spawn("dbus-run-session", ["--", "sh", "-c", session], { env, stdio: "ignore", detached: true });
    await reachable(port);
    const capabilities = new Capabilities();
    capabilities.setBrowserName("wry");
    capabilities.set("tauri:options", { application, args });
    const builder = new Builder().usingServer(`http://127.0.0.1:${port}`).withCapabilities(capabilities);
    try {
      return new App(process_, await within(WAIT_MS, "the window opens", builder.build()), env, home);
    } catch (error) {
      killGroup(process_);
      throw error;
    }
  }

  async stop(): Promise<void> {
    await within(WAIT_MS, "the window closes", this.driver.quit()).catch(() => undefined);
    killGroup(this.process);
  }

  /** Kills it as a crash does. */
  crash(): void {
    killGroup(this.process);
  }

  /** What is kept of texts that were not saved. */
  drafts(): string[] {
    const drafts = join(this.home, "state/drafts");
    return existsSync(drafts) ? readdirSync(drafts).map((name) => readFileSync(join(drafts, name), "utf8")) : [];
  }

  /** Starts the app once more, on the same session bus. */
  second(...args: string[]): void {
    this.spawn(application, args);
  }

  /** Runs a subcommand of the command line, which stands beside the app. */
  command(...args: string[]): void {
    this.spawn(join(dirname(application), "sateen"), args);
  }

  /** What a subcommand of the command line prints, with this app's folders. */
  commandSays(...args: string[]): string {
    const program = join(dirname(application), "sateen");
    return execFileSync(program, args, { env: this.env, encoding: "utf8", timeout: WAIT_MS }).replace(/\n$/, "");
  }

  /** Calls a method on the session bus; arguments as in `string:x`. */
  call(destination: string, path: string, method: string, ...args: string[]): void {
    this.spawn("dbus-send", ["--session", "--type=method_call", `--dest=${destination}`, path, method, ...args]);
  }

  private spawn(program: string, args: string[]): void {
    const bus = readFileSync(join(this.home, "bus"), "utf8").trim();
    spawn(program, args, { env: { ...this.env, DBUS_SESSION_BUS_ADDRESS: bus }, stdio: "ignore" });
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
      const where = takePicture(picture) ? `the window is in ${picture}` : "there is no picture of the window";
      const state = await within(PICTURE_MS, "the state", this.text("[data-testid=state]")).catch(() => "unknown");
      throw new Error(`${what}: ${String(error)}; its state is ${state}; ${where}`, { cause: error });
    }
  }

  async until<T>(what: string, condition: () => Promise<T | null | false>): Promise<T> {
    const met = this.driver.wait(condition, this.patience, `waiting for ${what}`);
    return (await this.attempt(what, Promise.resolve(met))) as T;
  }

  private mainHandle: string | null = null;

  /** What follows is asked of the window over the clipboard. */
  async inPopup(): Promise<void> {
    this.mainHandle ??= await this.driver.getWindowHandle();
    const other = await this.until("another window", async () =>
      (await this.driver.getAllWindowHandles()).find((handle) => handle !== this.mainHandle) ?? null,
    );
    await this.driver.switchTo().window(other);
  }

  /** Loads the page anew. */
  async reload(): Promise<void> {
    await this.driver.navigate().refresh();
  }

  /** What follows is asked of the main window again. */
  async inMain(): Promise<void> {
    if (this.mainHandle !== null) await this.driver.switchTo().window(this.mainHandle);
  }

  /** Does something by its name in the palette. */
  async action(name: string): Promise<void> {
    await this.press(Key.CONTROL, "k");
    await this.until("the palette", () => this.text("dialog[open] #palette"));
    await this.type(name);
    await this.until(name, async () => ((await this.text("#palette-0 .text")) ?? "").startsWith(name));
    await this.type(Key.ENTER);
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

/** Presses keys as a person does, in whatever window has the focus. */
export function pressAnywhere(keys: string): void {
  execFileSync("xdotool", ["key", "--clearmodifiers", keys]);
}

/** Copies a text in another program. */
export function copyElsewhere(text: string): void {
  execFileSync("xclip", ["-selection", "clipboard", "-in"], { input: text, stdio: ["pipe", "ignore", "ignore"] });
}

/** What another program would paste. */
export function pasteElsewhere(): string {
  return execFileSync("xclip", ["-selection", "clipboard", "-out"], { encoding: "utf8", timeout: 5000 });
}

/**
 * Writes what the window that has the keys shows, without its frame. Not by the driver: WebKit's never answers where
 * nothing draws on a screen.
 */
export function takePicture(path: string): boolean {
  const active = spawnSync("xdotool", ["getactivewindow"], { encoding: "utf8", timeout: PICTURE_MS });
  const taken = spawnSync("import", ["-window", active.stdout.trim() || "root", path], { timeout: PICTURE_MS });
  return taken.status === 0;
}

/** Whether a window with this title is to be seen. */
export function isShown(title: string): boolean {
  const found = spawnSync("xdotool", ["search", "--onlyvisible", "--name", `^${title}$`], { encoding: "utf8" });
  return found.stdout.trim() !== "";
}
