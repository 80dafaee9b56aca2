/** Ghost text: a completion that is shown at the cursor, and becomes text when it is accepted. */

import { EditorSelection, Prec, StateEffect, StateField, type Extension, type Text } from "@codemirror/state";
import { Decoration, EditorView, keymap, WidgetType, type Command, type DecorationSet } from "@codemirror/view";

import { acceptedLength } from "./accepted";
import type { Piece } from "./bindings/Piece";

/** Part of a completion, and which forward pass brought it. */
export interface GhostPiece extends Piece {
  readonly pass: number;
}

/** A completion at a place in the document. */
export interface Ghost {
  readonly pos: number;
  readonly pieces: readonly GhostPiece[];
}

/** Shows pieces at a position; pieces after the first call are appended. */
export const appendGhost = StateEffect.define<{ pos: number; pieces: readonly Piece[] }>();
/** Shows pieces in the place of those before. */
export const replaceGhost = StateEffect.define<{ pos: number; pieces: readonly Piece[] }>();
/** Takes the ghost text away. */
export const clearGhost = StateEffect.define<null>();

/** The text of a ghost. */
export function ghostText(ghost: Ghost): string {
  return ghost.pieces.map((piece) => piece.text).join("");
}

/** The ghost without its first `length` characters. */
export function dropFront(ghost: Ghost, length: number): Ghost {
  const pieces: GhostPiece[] = [];
  let left = length;
  for (const piece of ghost.pieces) {
    const text = piece.text.slice(left);
    left = Math.max(0, left - piece.text.length);
    if (text !== "") pieces.push({ ...piece, text });
  }
  return { pos: ghost.pos + length, pieces };
}

/** The inserted text when a change is one insertion at the ghost's place. */
function typedAt(pos: number, changes: { iterChanges: ChangeIterator }): string | null {
  let typed: string | null = null;
  let others = false;
  changes.iterChanges((fromA, toA, _fromB, _toB, inserted) => {
    if (fromA === pos && toA === pos && typed === null) typed = inserted.toString();
    else others = true;
  });
  return others ? null : typed;
}

type ChangeIterator = (
  callback: (fromA: number, toA: number, fromB: number, toB: number, inserted: Text) => void,
) => void;

function ofPass(pieces: readonly Piece[], pass: number): GhostPiece[] {
  return pieces.filter((piece) => piece.text !== "").map((piece) => ({ ...piece, pass }));
}

/** The ghost of an editor, or null. Typing what it says keeps it; anything else takes it away. */
export const ghostField = StateField.define<Ghost | null>({
  create: () => null,
  update(ghost, transaction) {
    if (ghost !== null && transaction.docChanged) {
      const typed = typedAt(ghost.pos, transaction.changes);
      const goesOn = typed !== null && ghostText(ghost).startsWith(typed);
      ghost = goesOn ? dropFront(ghost, typed.length) : null;
    }
    if (ghost !== null && transaction.selection !== undefined) {
      const { main, ranges } = transaction.newSelection;
      if (ranges.length > 1 || !main.empty || main.head !== ghost.pos) ghost = null;
    }
    for (const effect of transaction.effects) {
      if (effect.is(clearGhost)) ghost = null;
      if (effect.is(replaceGhost)) ghost = { pos: effect.value.pos, pieces: ofPass(effect.value.pieces, 0) };
      if (effect.is(appendGhost)) {
        const before = ghost !== null && ghost.pos === effect.value.pos ? ghost.pieces : [];
        const pass = (before.at(-1)?.pass ?? -1) + 1;
        ghost = { pos: effect.value.pos, pieces: [...before, ...ofPass(effect.value.pieces, pass)] };
      }
    }
    return ghost !== null && ghost.pieces.length === 0 ? null : ghost;
  },
  provide: (field) => EditorView.decorations.from(field, decorations),
});

/** Whether `pieces` begin with `before`: what was there stays as it is while text arrives. */
function beginWith(pieces: readonly GhostPiece[], before: readonly GhostPiece[]): boolean {
  return before.length <= pieces.length && before.every((piece, index) => piece === pieces[index]);
}

class GhostWidget extends WidgetType {
  constructor(readonly pieces: readonly GhostPiece[]) {
    super();
  }

  override eq(other: GhostWidget): boolean {
    return other.pieces.length === this.pieces.length && beginWith(this.pieces, other.pieces);
  }

  override toDOM(): HTMLElement {
    const ghost = document.createElement("span");
    ghost.className = "cm-ghost";
    ghost.setAttribute("aria-label", "suggestion");
    this.append(ghost, 0);
    return ghost;
  }

  /** What a pass brings is added; a page that makes the whole anew for each takes a core from the model. */
  override updateDOM(ghost: HTMLElement, _view: EditorView, from: GhostWidget): boolean {
    if (!beginWith(this.pieces, from.pieces)) return false;
    this.append(ghost, from.pieces.length);
    return true;
  }

  /** Adds the pieces from `first` on. */
  private append(ghost: HTMLElement, first: number): void {
    // A pass is one element, so that its line is whole; none comes in two transactions.
    let pass: HTMLElement | null = null;
    let shownPass = -1;
    for (const piece of this.pieces.slice(first)) {
      if (pass === null || piece.pass !== shownPass) {
        pass = document.createElement("span");
        pass.className = "cm-ghost-pass";
        shownPass = piece.pass;
        ghost.append(pass);
      }
      const span = document.createElement("span");
      // As text, never as markup: a model may write anything.
      span.textContent = piece.text;
      span.className = piece.drafted ? "cm-ghost-drafted" : "cm-ghost-verified";
      pass.append(span);
    }
  }
}

function decorations(ghost: Ghost | null): DecorationSet {
  if (ghost === null) return Decoration.none;
  const widget = Decoration.widget({ widget: new GhostWidget(ghost.pieces), side: 1 });
  return Decoration.set([widget.range(ghost.pos)]);
}

/** Inserts part of the ghost text. Without ghost text the key keeps its usual meaning. */
export function acceptGhost(unit: "all" | "word" | "line"): Command {
  return (view) => {
    const ghost = view.state.field(ghostField);
    if (ghost === null) return false;
    const text = ghostText(ghost);
    const insert = text.slice(0, acceptedLength(text, unit));
    view.dispatch({
      changes: { from: ghost.pos, insert },
      selection: EditorSelection.cursor(ghost.pos + insert.length),
      userEvent: "input.complete",
      scrollIntoView: true,
    });
    return true;
  };
}

const style = EditorView.baseTheme({
  ".cm-ghost": { color: "var(--text-dim)", whiteSpace: "pre" },
  ".cm-show-speculation & .cm-ghost-drafted": { backgroundColor: "var(--accent-soft)" },
  ".cm-show-speculation & .cm-ghost-pass": {
    // A hairline with a gap at its end, where the next pass begins; below the text, or it looks like an underscore.
    paddingBottom: "2px",
    background: "linear-gradient(var(--accent), var(--accent)) 0 100% / calc(100% - 2px) 1px no-repeat",
    boxDecorationBreak: "clone",
    "-webkit-box-decoration-break": "clone",
  },
});

/** What keys do besides accepting. */
export interface GhostKeys {
  /** Esc. */
  dismiss(): boolean;
  /** Another completion of the same place. */
  cycle(step: number): boolean;
}

/** Ghost text with its keys. */
export function ghostTextExtension({ dismiss, cycle }: GhostKeys): Extension {
  const keys = [
    { key: "Tab", run: acceptGhost("all") },
    { key: "Mod-ArrowRight", run: acceptGhost("word") },
    { key: "End", run: acceptGhost("line") },
    { key: "Escape", run: dismiss },
    { key: "Alt-]", run: () => cycle(1) },
    { key: "Alt-[", run: () => cycle(-1) },
  ];
  return [ghostField, style, Prec.highest(keymap.of(keys))];
}
