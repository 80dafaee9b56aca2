import { EditorState } from "@codemirror/state";
import { EditorView, runScopeHandlers } from "@codemirror/view";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import type { CompleteArguments } from "./bindings/CompleteArguments";
import type { Completion } from "./bindings/Completion";
import type { CompletionEvent } from "./bindings/CompletionEvent";
import type { Fate } from "./bindings/Fate";
import { Completer } from "./completer";
import { ghostField, ghostText } from "./ghost-text";

// jsdom lays nothing out; the editor only wants to hear that there is nothing to see.
Range.prototype.getClientRects = () => [] as unknown as DOMRectList;

class Recorder {
  requests: { request: CompleteArguments; send: (event: CompletionEvent) => void }[] = [];
  fates: [number, Fate, number][] = [];
  nCancels = 0;
  prepared: CompleteArguments[] = [];

  prepareCompletion(request: CompleteArguments): Promise<void> {
    this.prepared.push(request);
    return Promise.resolve();
  }


  complete(request: CompleteArguments, send: (event: CompletionEvent) => void): Promise<void> {
    this.requests.push({ request, send });
    return Promise.resolve();
  }

  resolveCompletion(entry: number, fate: Fate, nChars: number): Promise<void> {
    this.fates.push([entry, fate, nChars]);
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

function ended(text: string, entry: number | null = null, alternatives: string[] = []): CompletionEvent {
  return { event: "ended", completion: { ...ENDED, text, alternatives }, entry };
}

function step(text: string): CompletionEvent {
  return { event: "step", pieces: [{ text, drafted: false }], n_drafted: 0, n_accepted: 0, n_rows: 1, explanation: null };
}

describe("the completer", () => {
  let backend: Recorder;
  let completer: Completer;
  let view: EditorView;
  let isReady: boolean;
  let name: string;
  const listener = { onEnded: vi.fn(), onFailed: vi.fn(), onAlternative: vi.fn() };

  beforeEach(() => {
    vi.useFakeTimers();
    vi.resetAllMocks();
    backend = new Recorder();
    isReady = true;
    name = "a.py";
    completer = new Completer(backend, listener, {
      place: () => ({ key: "k", name, path: "/src/a.py" }),
      isReady: () => isReady,
      isAutomatic: (name) => !name.endsWith(".md"),
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

  function press(key: string, init: KeyboardEventInit = {}): boolean {
    return runScopeHandlers(view, new KeyboardEvent("keydown", { key, ...init }), "editor");
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
    expect(backend.requests.map(({ request }) => request)).toEqual([
      { prefix: "ab", suffix: "\nrest", key: "k", name: "a.py", path: "/src/a.py", n_alternatives: 0 },
    ]);
  });

  it("cancels the work on older text and ignores its answers", () => {
    type("a");
    vi.advanceTimersByTime(250);
    const older = last();
    older.send(step("old"));
    expect(ghost()).toBe("old");
    type("x");
    expect(ghost()).toBeNull();
    expect(backend.nCancels).toBe(1);
    older.send(step(" more"));
    expect(ghost()).toBeNull();
    vi.advanceTimersByTime(250);
    last().send(step("new"));
    expect(ghost()).toBe("new");
  });

  it("goes on while the ghost text itself is typed", () => {
    type("a");
    vi.advanceTimersByTime(250);
    last().send(step("bc"));
    type("b");
    expect(ghost()).toBe("c");
    last().send(step("de"));
    expect(ghost()).toBe("cde");
    vi.advanceTimersByTime(500);
    expect([backend.requests.length, backend.nCancels]).toEqual([1, 0]);
  });

  it("has the model read a line where the cursor comes to rest, once", () => {
    const move = (anchor: number): void => view.dispatch({ selection: { anchor } });
    const lines = (): number[] => backend.prepared.map(({ prefix }) => prefix.split("\n").length);
    move(3);
    vi.advanceTimersByTime(200);
    move(0);
    vi.advanceTimersByTime(300);
    expect(lines()).toEqual([1]);
    move(2);
    vi.advanceTimersByTime(300);
    move(4);
    vi.advanceTimersByTime(300);
    expect(lines()).toEqual([1, 2]);
    expect(backend.prepared.at(-1)).toEqual({ prefix: "\nr", suffix: "est", key: "k", name: "a.py", path: "/src/a.py", n_alternatives: 0 });
    // What is asked for there is read with it, and where nothing is asked for nothing is read.
    move(5);
    type("a");
    vi.advanceTimersByTime(300);
    expect(backend.requests).toHaveLength(1);
    [isReady, name] = [true, "notes.md"];
    move(0);
    vi.advanceTimersByTime(300);
    [isReady, name] = [false, "a.py"];
    move(6);
    vi.advanceTimersByTime(300);
    view.dispatch({ selection: { anchor: 0, head: 3 } });
    vi.advanceTimersByTime(300);
    expect(backend.prepared).toHaveLength(2);
  });

  it("has another model read the place anew", () => {
    view.dispatch({ selection: { anchor: 3 } });
    vi.advanceTimersByTime(300);
    completer.modelIsReady();
    vi.advanceTimersByTime(300);
    expect(backend.prepared).toHaveLength(2);
  });

  it("accepts with Tab and dismisses with Esc", () => {
    type("a");
    vi.advanceTimersByTime(250);
    last().send(step("bc"));
    expect(press("Tab")).toBe(true);
    expect(view.state.doc.line(1).text).toBe("abc");
    vi.advanceTimersByTime(250);
    last().send(step("xyz"));
    expect(press("Escape")).toBe(true);
    expect([ghost(), view.state.doc.line(1).text]).toEqual([null, "abc"]);
    expect(backend.nCancels).toBe(2);
    expect(press("Tab")).toBe(false);
  });

  it("does not ask without a model, or in the middle of a line", () => {
    isReady = false;
    type("a");
    vi.advanceTimersByTime(300);
    isReady = true;
    view.dispatch({ changes: { from: 1, insert: " and a long rest of this line" } });
    type("b");
    vi.advanceTimersByTime(300);
    expect(backend.requests).toHaveLength(0);
  });

  it("tells how it ended", () => {
    type("a");
    vi.advanceTimersByTime(250);
    last().send(ended(""));
    expect(listener.onEnded).toHaveBeenCalledOnce();
    type("b");
    vi.advanceTimersByTime(250);
    last().send({ event: "failed", code: "internal", message: "broken" });
    expect(listener.onFailed).toHaveBeenCalledWith("broken");
  });

  it("asks for what comes next as soon as a text is accepted", () => {
    type("a");
    vi.advanceTimersByTime(250);
    last().send(step("bc"));
    last().send(ended("bc"));
    press("Tab");
    vi.advanceTimersByTime(0);
    expect(last().request.prefix).toBe("abc");
  });

  it("shows other completions of the same place in turn", () => {
    type("a");
    vi.advanceTimersByTime(250);
    last().send(step("one"));
    last().send(ended("one"));
    expect(press("]", { altKey: true })).toBe(true);
    expect(last().request.n_alternatives).toBe(3);
    last().send(step("one"));
    last().send(ended("one", 1, ["two", "three"]));
    expect(ghost()).toBe("two");
    press("]", { altKey: true });
    expect(ghost()).toBe("three");
    press("]", { altKey: true });
    expect(ghost()).toBe("one");
    press("[", { altKey: true });
    expect(ghost()).toBe("three");
    expect(listener.onAlternative).toHaveBeenLastCalledWith(3, 3);
    expect(backend.requests).toHaveLength(2);
  });

  it("tells what became of what was shown", () => {
    const show = (entry: number): void => {
      type("a");
      vi.advanceTimersByTime(250);
      last().send(step("bc de"));
      last().send(ended("bc de", entry));
    };
    show(1);
    press("Tab");
    show(2);
    press("Escape");
    show(3);
    press("ArrowRight", { ctrlKey: true });
    press("Escape");
    expect(backend.fates).toEqual([
      [1, "accepted", 5],
      [2, "dismissed", 0],
      [3, "partly_accepted", 2],
      [3, "partly_accepted", 2],
    ]);
  });

  it("leaves files alone that are to be left alone, until it is asked", () => {
    name = "a.md";
    type("a");
    vi.advanceTimersByTime(1000);
    expect(backend.requests).toHaveLength(0);
  });

  it("says when the model is silent for long", () => {
    type("a");
    vi.advanceTimersByTime(250);
    vi.advanceTimersByTime(14_000);
    expect(listener.onFailed).not.toHaveBeenCalled();
    vi.advanceTimersByTime(2000);
    expect(listener.onFailed).toHaveBeenCalledWith(expect.stringContaining("has said nothing for 15 s"));
  });
});
