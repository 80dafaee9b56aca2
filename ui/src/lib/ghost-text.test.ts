import { EditorState } from "@codemirror/state";
import { EditorView } from "@codemirror/view";
import { describe, expect, it } from "vitest";

import { acceptedLength } from "./accepted";
import { appendGhost, clearGhost, dropFront, ghostField, ghostText } from "./ghost-text";

const start = EditorState.create({ doc: "let x = ", selection: { anchor: 8 }, extensions: [ghostField] });

function withGhost(...texts: string[]): EditorState {
  return texts.reduce((state, text, index) => {
    const pieces = [{ text, drafted: index > 0 }];
    return state.update({ effects: appendGhost.of({ pos: 8, pieces }) }).state;
  }, start);
}

function type(state: EditorState, insert: string): EditorState {
  const pos = state.selection.main.head;
  return state.update({ changes: { from: pos, insert }, selection: { anchor: pos + insert.length } }).state;
}

function shown(state: EditorState): string | null {
  const ghost = state.field(ghostField);
  return ghost === null ? null : ghostText(ghost);
}

describe("ghost text", () => {
  it("grows by what arrives and is taken away whole", () => {
    const state = withGhost("a", "b + ", "c");
    expect(shown(state)).toBe("ab + c");
    expect(state.field(ghostField)?.pieces.map((piece) => piece.drafted)).toEqual([false, true, true]);
    expect(state.field(ghostField)?.pieces.map((piece) => piece.pass)).toEqual([0, 1, 2]);
    expect(shown(state.update({ effects: clearGhost.of(null) }).state)).toBeNull();
  });

  it("stays while its own text is typed", () => {
    let state = type(withGhost("ab", "cd"), "a");
    expect(shown(state)).toBe("bcd");
    expect(state.field(ghostField)?.pos).toBe(9);
    state = type(state, "bcd");
    expect(shown(state)).toBeNull();
  });

  it("goes when something else is typed, or the cursor moves", () => {
    expect(shown(type(withGhost("abc"), "x"))).toBeNull();
    expect(shown(withGhost("abc").update({ selection: { anchor: 0 } }).state)).toBeNull();
    expect(shown(withGhost("abc").update({ changes: { from: 0, to: 3 } }).state)).toBeNull();
  });

  it("keeps the marks of accepted drafts when its front is dropped", () => {
    const ghost = { pos: 4, pieces: [{ text: "ab", drafted: false, pass: 0 }, { text: "cd", drafted: true, pass: 1 }] };
    expect(dropFront(ghost, 3)).toEqual({ pos: 7, pieces: [{ text: "d", drafted: true, pass: 1 }] });
  });
});

describe("ghost text on the page", () => {
  it("stays as it is where it goes on, and is made anew where it does not", () => {
    const view = new EditorView({ parent: document.body, state: withGhost("a", "b") });
    const ghost = (): Element | null => view.dom.querySelector(".cm-ghost");
    const passes = (): (string | null)[] => [...(ghost()?.children ?? [])].map((pass) => pass.textContent);
    const first = ghost();
    expect(passes()).toEqual(["a", "b"]);
    view.dispatch({ effects: appendGhost.of({ pos: 8, pieces: [{ text: "c", drafted: true }, { text: "d", drafted: false }] }) });
    expect(passes()).toEqual(["a", "b", "cd"]);
    expect(ghost()).toBe(first);
    view.dispatch({ changes: { from: 8, insert: "ab" }, selection: { anchor: 10 } });
    expect(passes()).toEqual(["cd"]);
    view.destroy();
  });
});

describe("partial accepts", () => {
  it.each([
    ["foo_bar(baz)", "word", "foo_bar"],
    ["  return x", "word", "  return"],
    ["(a, b)", "word", "("],
    ["+= 1", "word", "+="],
    ["größe = 1", "word", "größe"],
    ["\n    x = 1", "word", "\n    x"],
    ["a = 1\nb = 2", "line", "a = 1"],
    ["\n    b = 2\nc", "line", "\n    b = 2"],
    ["a = 1", "line", "a = 1"],
    ["a\nb", "all", "a\nb"],
  ] as const)("of %j takes a %s: %j", (text, unit, expected) => {
    expect(text.slice(0, acceptedLength(text, unit))).toBe(expected);
  });
});
