import { EditorState } from "@codemirror/state";
import { EditorView, runScopeHandlers } from "@codemirror/view";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import type { CompletionContext } from "./backend";
import type { Completion } from "./bindings/Completion";
import type { CompletionEvent } from "./bindings/CompletionEvent";
import { Completer } from "./completer";
import { ghostField, ghostText } from "./ghost-text";

// jsdom lays nothing out; the editor only wants to hear that there is nothing to see.
Range.prototype.getClientRects = () => [] as unknown as DOMRectList;

class Recorder {
  requests: { context: CompletionContext; send: (event: CompletionEvent) => void }[] = [];
  nCancels = 0;

  complete(context: CompletionContext, _maxTokens: number, send: (event: CompletionEvent) => void): Promise<void> {
    this.requests.push({ context, send });
    return Promise.resolve();
  }

  cancelCompletion(): Promise<void> {
    this.nCancels += 1;
    return Promise.resolve();
  }
}

const ENDED: Completion = {
  text: "",
  n_tokens: 1,
  n_steps: 1,
  n_drafted: 0,
  n_accepted: 0,
  accepted_per_slot: [],
  drafted_per_slot: [],
  mean_accepted_tokens: 1,
  mean_rows: 1,
  accepted_by_drafter: [],
  ttft_ms: 1,
  tokens_per_s: 1,
  total_ms: 1,
  n_prompt_tokens: 1,
  n_reused_tokens: 0,
  stop_reason: "end_of_text",
  alternatives: [],
};

function step(text: string): CompletionEvent {
  return { event: "step", pieces: [{ text, drafted: false }], n_drafted: 0, n_accepted: 0, n_rows: 1, explanation: null };
}

describe("the completer", () => {
  let backend: Recorder;
  let view: EditorView;
  let isReady: boolean;
  const listener = { onEnded: vi.fn(), onFailed: vi.fn() };

  beforeEach(() => {
    vi.useFakeTimers();
    vi.resetAllMocks();
    backend = new Recorder();
    isReady = true;
    const completer = new Completer(backend, listener, {
      debounceMs: 100,
      maxTokens: 8,
      path: () => "a.py",
      isReady: () => isReady,
    });
    view = new EditorView({ state: EditorState.create({ doc: "\nrest", extensions: [completer.extension] }) });
    completer.attach(view);
  });

  afterEach(() => {
    view.destroy();
    vi.useRealTimers();
  });

  function type(insert: string): void {
    const pos = view.state.selection.main.head;
    view.dispatch({ changes: { from: pos, insert }, selection: { anchor: pos + insert.length }, userEvent: "input.type" });
  }

  function press(key: string): boolean {
    return runScopeHandlers(view, new KeyboardEvent("keydown", { key }), "editor");
  }

  function ghost(): string | null {
    const field = view.state.field(ghostField);
    return field === null ? null : ghostText(field);
  }

  function last(): Recorder["requests"][number] {
    const request = backend.requests.at(-1);
    if (request === undefined) throw new Error("nothing was asked");
    return request;
  }

  it("asks once after a pause in typing, with the text on both sides", () => {
    type("a");
    vi.advanceTimersByTime(60);
    type("b");
    vi.advanceTimersByTime(60);
    expect(backend.requests).toHaveLength(0);
    vi.advanceTimersByTime(60);
    expect(backend.requests.map((request) => request.context)).toEqual([{ prefix: "ab", suffix: "\nrest", path: "a.py" }]);
  });

  it("cancels the work on older text and ignores its answers", () => {
    type("a");
    vi.advanceTimersByTime(100);
    const older = last();
    older.send(step("old"));
    expect(ghost()).toBe("old");
    type("x");
    expect(ghost()).toBeNull();
    expect(backend.nCancels).toBe(1);
    older.send(step(" more"));
    expect(ghost()).toBeNull();
    vi.advanceTimersByTime(100);
    last().send(step("new"));
    expect(ghost()).toBe("new");
  });

  it("goes on while the ghost text itself is typed", () => {
    type("a");
    vi.advanceTimersByTime(100);
    last().send(step("bc"));
    type("b");
    expect(ghost()).toBe("c");
    last().send(step("de"));
    expect(ghost()).toBe("cde");
    vi.advanceTimersByTime(500);
    expect([backend.requests.length, backend.nCancels]).toEqual([1, 0]);
  });

  it("accepts with Tab and dismisses with Esc", () => {
    type("a");
    vi.advanceTimersByTime(100);
    last().send(step("bc"));
    expect(press("Tab")).toBe(true);
    expect(view.state.doc.line(1).text).toBe("abc");
    vi.advanceTimersByTime(100);
    last().send(step("xyz"));
    expect(press("Escape")).toBe(true);
    expect([ghost(), view.state.doc.line(1).text]).toEqual([null, "abc"]);
    expect(backend.nCancels).toBe(2);
    expect(press("Tab")).toBe(false);
  });

  it("does not ask without a model, or in the middle of a line", () => {
    isReady = false;
    type("a");
    vi.advanceTimersByTime(200);
    isReady = true;
    view.dispatch({ changes: { from: 1, insert: " and a long rest of this line" } });
    type("b");
    vi.advanceTimersByTime(200);
    expect(backend.requests).toHaveLength(0);
  });

  it("tells how it ended", () => {
    type("a");
    vi.advanceTimersByTime(100);
    last().send({ event: "ended", ...ENDED });
    expect(listener.onEnded).toHaveBeenCalledOnce();
    type("b");
    vi.advanceTimersByTime(100);
    last().send({ event: "failed", code: "internal", message: "broken" });
    expect(listener.onFailed).toHaveBeenCalledWith("broken");
  });
});
