import { describe, expect, it } from "vitest";

import type { Completion } from "./bindings/Completion";
import type { InstalledModel } from "./bindings/InstalledModel";
import { adapterChoices, bytes, deviceChoices, figuresOf, installText, statusOf, whereItRuns } from "./format";
import { lineEndingOf, withLineEnding } from "./line-endings";

describe("words and figures", () => {
  it("says what drafts", () => {
    const model = { has_shipped_adapter: false, adapters: [] } as unknown as InstalledModel;
    const [b, a] = ["b", "a"].map((name) => ({ name, path: "" })) as [InstalledModel["adapters"][0], InstalledModel["adapters"][0]];
    const choices = (of: Partial<InstalledModel>) => adapterChoices({ ...model, ...of }).map(([choice]) => choice);
    expect(choices({})).toEqual([]);
    expect(choices({ has_shipped_adapter: true })).toEqual(["newest", "off"]);
    expect(choices({ adapters: [b] })).toEqual(["newest", "off"]);
    expect(choices({ has_shipped_adapter: true, adapters: [b, a] })).toEqual(["newest", "b", "a", "shipped", "off"]);
  });

  it("offers the devices that are here, and the one that was chosen", () => {
    const found = [{ id: "vulkan:0", name: "llvmpipe", is_software: true }, { id: "cuda:0", name: "RTX", is_software: false }];
    const names = (chosen: string): string[] => deviceChoices(found, chosen).map(([choice, name]) => `${choice}: ${name}`);
    expect(names("auto").slice(2)).toEqual(["vulkan:0: llvmpipe (vulkan:0, in software)", "cuda:0: RTX (cuda:0)"]);
    expect(names("metal").at(-1)).toBe("metal: metal, not found here");
  });

  it("says the state and why", () => {
    const model = { name: "Qwen", n_adaptive_tokens: 4, prompt_format: "", device: "CPU, 2 threads", device_note: null };
    const status = (engine: Parameters<typeof statusOf>[0]) => statusOf(engine).text;
    expect(status({ engine: { state: "ready", ...model }, model_id: "q" })).toBe("Ready · Qwen · CPU, 2 threads");
    expect(status({ engine: { state: "loading", name: "Qwen", progress: 0.618 }, model_id: "q" })).toBe(
      "Loading Qwen, 62 %",
    );
    expect(status({ engine: { state: "measuring", name: "Qwen" }, model_id: "q" })).toBe("Measuring how fast Qwen is here, once");
    expect(status({ engine: { state: "failed", reason: "not a GGUF file", code: "model_invalid" }, model_id: "q" })).toBe(
      "The model cannot be used: not a GGUF file",
    );
    expect(whereItRuns(model, "auto")).toBe("CPU, 2 threads. No GPU was found.");
    expect(whereItRuns(model, "cpu")).toBe("CPU, 2 threads. The settings name the processor.");
    expect(whereItRuns({ ...model, device_note: "GPU not used: 4 GB needed" }, "auto")).toBe("CPU, 2 threads. GPU not used: 4 GB needed.");
    expect(whereItRuns({ ...model, device: "RTX (vulkan:0)" }, "auto")).toBe("RTX (vulkan:0)");
    expect(status({ engine: { state: "no_model" }, model_id: null })).toContain("choose one under Models");
  });

  it("leaves out the speed of a completion that had none", () => {
    const completion: Completion = {
      text: "",
      n_tokens: 3,
      n_steps: 1,
      n_drafted: 4,
      n_accepted: 2,
      accepted_per_slot: [],
      drafted_per_slot: [],
      mean_accepted_tokens: 3,
      mean_rows: 5,
      accepted_by_drafter: [{ drafter: "suffix", n_accepted: 2 }],
      ttft_ms: 12,
      tokens_per_s: 0,
      total_ms: 12,
      n_prompt_tokens: 9,
      n_reused_tokens: 0,
      stop_reason: "end_of_text",
      alternatives: [],
    };
    expect(figuresOf(completion).map((figure) => figure.text)).toEqual(["3.0 per pass", "12 ms"]);
    expect(figuresOf(completion)[0]?.title).toContain("2 of 4 drafts accepted, 2 from suffix");
    expect(figuresOf({ ...completion, tokens_per_s: 99.4 })[0]?.text).toBe("99 tok/s");
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
