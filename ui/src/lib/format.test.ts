import { describe, expect, it } from "vitest";

import { bytes, installText, statusOf } from "./format";
import { lineEndingOf, withLineEnding } from "./line-endings";

describe("words and figures", () => {
  it("says the state and why", () => {
    const model = { name: "Qwen", n_adaptive_tokens: 4, prompt_format: "", device: "CPU, 2 threads" };
    const status = (engine: Parameters<typeof statusOf>[0]) => statusOf(engine).text;
    expect(status({ engine: { state: "ready", ...model }, model_id: "q" })).toBe("Ready · Qwen · CPU, 2 threads");
    expect(status({ engine: { state: "loading", name: "Qwen", progress: 0.618 }, model_id: "q" })).toBe(
      "Loading Qwen, 62 %",
    );
    expect(status({ engine: { state: "failed", reason: "not a GGUF file" }, model_id: "q" })).toBe(
      "The model cannot be used: not a GGUF file",
    );
    expect(status({ engine: { state: "no_model" }, model_id: null })).toContain("choose one under Models");
  });

  it("says how far an installation is", () => {
    const progress = { stage: "fetching", n_parts_done: 1, n_parts: 6, n_bytes: 1e8, total_bytes: 5e8 } as const;
    expect(installText(progress, 2e7)).toBe("100 MB of 500 MB · 20 MB/s · 20 s left");
    expect(installText(progress, 0)).toBe("100 MB of 500 MB");
    expect(installText({ ...progress, stage: "checking" }, 2e7)).toBe("Checking the file");
    expect(bytes(1.1e9)).toBe("1.10 GB");
  });
});

describe("line endings", () => {
  it("come back as they were", () => {
    for (const text of ["a\r\nb\r\n", "a\nb\n", "", "a"]) {
      const edited = text.replaceAll("\r\n", "\n");
      expect(withLineEnding(edited, lineEndingOf(text))).toBe(text);
    }
    expect(lineEndingOf("a\r\nb\nc\n")).toBe("\n");
  });
});
