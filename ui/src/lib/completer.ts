/** When to ask for a completion, and what to do with the answers. */

import type { EditorState, Extension, Text } from "@codemirror/state";
import { EditorView, type ViewUpdate } from "@codemirror/view";

import type { CompleteArguments } from "./bindings/CompleteArguments";
import type { Completion } from "./bindings/Completion";
import type { CompletionEvent } from "./bindings/CompletionEvent";
import type { Fate } from "./bindings/Fate";
import { Debounce } from "./debounce";
import { appendGhost, clearGhost, ghostField, ghostTextExtension, replaceGhost } from "./ghost-text";

/** The Rust side, or what stands for it in a test. */
export interface CompletionBackend {
  complete(request: CompleteArguments, onEvent: (event: CompletionEvent) => void): Promise<void>;
  prepareCompletion(request: CompleteArguments): Promise<void>;
  cancelCompletion(): Promise<void>;
  resolveCompletion(entry: number, fate: Fate, nChars: number): Promise<void>;
}

/** What the status line wants to know. */
export interface CompletionListener {
  onEnded(completion: Completion): void;
  onFailed(message: string): void;
  /** Which of several completions is shown, from 1. */
  onAlternative(shown: number, n: number): void;
}

/** The tab that is completed in. */
export interface CompletionPlace {
  key: string;
  name: string;
  path: string;
}

export interface CompleterConfig {
  place(): CompletionPlace | null;
  /** Whether a model is ready. */
  isReady(): boolean;
  /** Whether to ask without being asked, in a file of this name. */
  isAutomatic(name: string): boolean;
}

/** Longest rest of a line behind the cursor that still gets completions without being asked. */
const MAX_LINE_REST = 12;
/** Other completions that are asked for at a time. */
const N_ALTERNATIVES = 3;
/** A cursor that rests so long at another line may be where someone begins to type, in milliseconds. */
const REST_MS = 250;
/** A request that says nothing for so long, in milliseconds, is said. */
const SILENCE_MS = 15_000;

/** A completion whose text is shown. */
interface Shown {
  pos: number;
  texts: string[];
  index: number;
  entry: number | null;
  nAccepted: number;
}

export class Completer {
  readonly extension: Extension;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private restTimer: ReturnType<typeof setTimeout> | null = null;
  /** Where the model has read last: what is typed on the same line is all that it has not. */
  private read: { doc: Text; line: number } | null = null;
  private watchdog: ReturnType<typeof setTimeout> | null = null;
  /** Counts requests, so that answers to older ones are told apart. */
  private newest = 0;
  private isRunning = false;
  private shown: Shown | null = null;
  private readonly debounce = new Debounce();
  private view: EditorView | null = null;

  constructor(
    private readonly backend: CompletionBackend,
    private readonly listener: CompletionListener,
    private readonly config: CompleterConfig,
  ) {
    const keys = { dismiss: () => this.dismiss(), cycle: (step: number) => this.cycle(step) };
    this.extension = [ghostTextExtension(keys), EditorView.updateListener.of((update) => this.onUpdate(update))];
  }

  attach(view: EditorView): void {
    this.view = view;
  }

  /** Asks at once, whatever stands around the cursor. */
  request(nAlternatives = 0): boolean {
    const view = this.view;
    const place = this.config.place();
    if (view === null || place === null || !this.config.isReady()) return false;
    this.cancel();
    view.dispatch({ effects: clearGhost.of(null) });
    const { state } = view;
    const pos = state.selection.main.head;
    const request = ++this.newest;
    this.isRunning = true;
    this.watch(request);
    this.backend
      .complete(this.argumentsAt(state, place, nAlternatives), (event) => this.onEvent(request, pos, event))
      .catch((error: unknown) => this.onFailure(request, error));
    return true;
  }

  /** What is asked of a place; from now on the model has read it. */
  private argumentsAt(state: EditorState, place: CompletionPlace, nAlternatives: number): CompleteArguments {
    const pos = state.selection.main.head;
    this.read = { doc: state.doc, line: state.doc.lineAt(pos).number };
    const [prefix, suffix] = [state.doc.sliceString(0, pos), state.doc.sliceString(pos)];
    const { key, name, path } = place;
    return { prefix, suffix, key, name, path, n_alternatives: nAlternatives };
  }

  /** Another model is there, or the first: it has read nothing yet. */
  modelIsReady(): void {
    this.read = null;
    this.prepareSoon();
  }

  /** Has the model read what is around the cursor when it comes to rest at another line: the first completion there is as quick as any. */
  prepareSoon(): void {
    if (this.restTimer !== null) clearTimeout(this.restTimer);
    this.restTimer = setTimeout(() => {
      this.restTimer = null;
      const view = this.view;
      const place = this.config.place();
      // Where something is asked for anyway, that comes first.
      if (view === null || place === null || this.isRunning || this.timer !== null) return;
      if (!this.config.isReady() || !this.config.isAutomatic(place.name)) return;
      const { state } = view;
      const line = state.doc.lineAt(state.selection.main.head).number;
      if (!state.selection.main.empty || (this.read?.doc === state.doc && this.read.line === line)) return;
      // Nobody waits for it, and nothing is lost without it.
      void this.backend.prepareCompletion(this.argumentsAt(state, place, 0)).catch(() => undefined);
    }, REST_MS);
  }

  /** Esc: takes the ghost text away and stops the work on it. False when there was neither. */
  dismiss(): boolean {
    const hadWork = this.timer !== null || this.isRunning;
    this.cancel();
    const view = this.view;
    const hadGhost = view !== null && view.state.field(ghostField) !== null;
    if (hadGhost) view.dispatch({ effects: clearGhost.of(null) });
    return hadGhost || hadWork;
  }

  /** Stops waiting and working. */
  cancel(): void {
    if (this.timer !== null) clearTimeout(this.timer);
    if (this.watchdog !== null) clearTimeout(this.watchdog);
    this.timer = this.watchdog = null;
    this.newest += 1;
    if (this.isRunning) {
      this.isRunning = false;
      void this.backend.cancelCompletion();
    }
  }

  /** Shows another completion of the same place; asks for some when none are known. */
  cycle(step: number): boolean {
    const view = this.view;
    if (view === null || !this.config.isReady()) return false;
    const shown = this.shown;
    const ghost = view.state.field(ghostField);
    if (ghost === null || shown === null || ghost.pos !== shown.pos || shown.texts.length < 2) {
      return this.request(N_ALTERNATIVES);
    }
    this.show(shown, (shown.index + step + shown.texts.length) % shown.texts.length);
    return true;
  }

  private show(shown: Shown, index: number): void {
    shown.index = index;
    const pieces = [{ text: shown.texts[index] ?? "", drafted: false }];
    this.view?.dispatch({ effects: replaceGhost.of({ pos: shown.pos, pieces }) });
    this.listener.onAlternative(index + 1, shown.texts.length);
  }

  private onUpdate(update: ViewUpdate): void {
    const before = update.startState.field(ghostField, false) ?? null;
    const hasGhost = update.state.field(ghostField) !== null;
    const isAccept = update.transactions.some((t) => t.isUserEvent("input.complete"));
    if (before !== null && isAccept) this.onAccept(update, hasGhost);
    else if (before !== null && !hasGhost) this.resolve("dismissed");
    if (!update.docChanged) {
      // Moving the cursor away leaves the place that was being completed.
      if (update.selectionSet && !hasGhost) {
        this.cancel();
        this.prepareSoon();
      }
      return;
    }
    this.debounce.typed(performance.now());
    // The typed text is what the ghost said: it goes on, and so does the work on it.
    if (hasGhost && before !== null) {
      if (this.shown !== null) this.shown = { ...this.shown, pos: -1 };
      return;
    }
    this.cancel();
    const byUser = update.transactions.some((t) => t.isUserEvent("input") || t.isUserEvent("delete"));
    const name = this.config.place()?.name ?? "";
    if (!byUser || !this.config.isAutomatic(name)) return;
    const { main } = update.state.selection;
    const line = update.state.doc.lineAt(main.head);
    const rest = line.text.slice(main.head - line.from).trimEnd();
    if (!main.empty || rest.length > MAX_LINE_REST) return;
    this.timer = setTimeout(
      () => {
        this.timer = null;
        this.request();
      },
      // Whoever accepts wants to see what comes next.
      isAccept ? 0 : this.debounce.wait,
    );
  }

  private onAccept(update: ViewUpdate, isPart: boolean): void {
    const shown = this.shown;
    if (shown === null) return;
    update.changes.iterChanges((_fromA, _toA, _fromB, _toB, inserted) => (shown.nAccepted += inserted.length));
    this.resolve(isPart ? "partly_accepted" : "accepted");
  }

  /** Tells what became of the completion that is shown. */
  private resolve(fate: Fate): void {
    const shown = this.shown;
    if (shown === null) return;
    // Of what was accepted in part the rest may go; that makes it no less accepted.
    const isFinal = fate !== "partly_accepted";
    if (isFinal) this.shown = null;
    const known = fate === "dismissed" && shown.nAccepted > 0 ? "partly_accepted" : fate;
    if (shown.entry === null) return;
    void this.backend.resolveCompletion(shown.entry, known, shown.nAccepted).catch(() => undefined);
  }

  private watch(request: number): void {
    if (this.watchdog !== null) clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => {
      if (request !== this.newest || !this.isRunning) return;
      const seconds = SILENCE_MS / 1000;
      this.listener.onFailed(
        `The model has said nothing for ${seconds} s. Esc stops it; a smaller model answers sooner.`,
      );
    }, SILENCE_MS);
  }

  private onEvent(request: number, pos: number, event: CompletionEvent): void {
    const view = this.view;
    if (view === null || request !== this.newest) return;
    this.watch(request);
    switch (event.event) {
      case "step": {
        const head = view.state.selection.main.head;
        if (event.pieces.length > 0) {
          view.dispatch({ effects: appendGhost.of({ pos: head, pieces: event.pieces }) });
        }
        break;
      }
      case "ended": {
        this.stop();
        const { completion, entry } = event;
        this.debounce.answered(completion.ttft_ms);
        const texts = [completion.text, ...completion.alternatives].filter((text) => text !== "");
        this.shown = { pos, texts, index: 0, entry, nAccepted: 0 };
        if (completion.alternatives.length > 0 && texts.length > 1) this.show(this.shown, 1);
        this.listener.onEnded(completion);
        break;
      }
      case "superseded":
      case "cancelled":
        this.stop();
        break;
      case "failed":
        this.stop();
        this.listener.onFailed(event.message);
        break;
    }
  }

  private stop(): void {
    this.isRunning = false;
    if (this.watchdog !== null) clearTimeout(this.watchdog);
    this.watchdog = null;
  }

  private onFailure(request: number, error: unknown): void {
    if (request !== this.newest) return;
    this.stop();
    const message = typeof error === "object" && error !== null && "message" in error ? error.message : error;
    this.listener.onFailed(String(message));
  }
}
