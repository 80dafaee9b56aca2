/** When to ask for a completion, and what to do with the answers. */

import type { Extension } from "@codemirror/state";
import { EditorView, type ViewUpdate } from "@codemirror/view";

import type { CompletionContext } from "./backend";
import type { Completion } from "./bindings/Completion";
import type { CompletionEvent } from "./bindings/CompletionEvent";
import { appendGhost, clearGhost, ghostField, ghostTextExtension } from "./ghost-text";

/** The Rust side, or what stands for it in a test. */
export interface CompletionBackend {
  complete(context: CompletionContext, maxTokens: number, onEvent: (event: CompletionEvent) => void): Promise<void>;
  cancelCompletion(): Promise<void>;
}

/** What the status line wants to know. */
export interface CompletionListener {
  onEnded(completion: Completion): void;
  onFailed(message: string): void;
}

export interface CompleterConfig {
  /** Pause in typing before a completion is asked for, in milliseconds. */
  debounceMs: number;
  maxTokens: number;
  /** Name of the file, if it has one. */
  path(): string | null;
  /** Whether a model is ready. */
  isReady(): boolean;
}

/** Longest rest of a line behind the cursor that still gets completions without being asked. */
const MAX_LINE_REST = 12;

export class Completer {
  readonly extension: Extension;
  private timer: ReturnType<typeof setTimeout> | null = null;
  /** Counts requests, so that answers to older ones are told apart. */
  private newest = 0;
  private isRunning = false;

  constructor(
    private readonly backend: CompletionBackend,
    private readonly listener: CompletionListener,
    private readonly config: CompleterConfig,
  ) {
    this.extension = [
      ghostTextExtension(() => this.dismiss()),
      EditorView.updateListener.of((update) => this.onUpdate(update)),
    ];
  }

  private view: EditorView | null = null;

  attach(view: EditorView): void {
    this.view = view;
  }

  /** Asks at once, whatever stands around the cursor. */
  request(): boolean {
    const view = this.view;
    if (view === null || !this.config.isReady()) return false;
    this.cancel();
    view.dispatch({ effects: clearGhost.of(null) });
    const { state } = view;
    const pos = state.selection.main.head;
    const context = {
      prefix: state.doc.sliceString(0, pos),
      suffix: state.doc.sliceString(pos),
      path: this.config.path(),
    };
    const request = ++this.newest;
    this.isRunning = true;
    this.backend
      .complete(context, this.config.maxTokens, (event) => this.onEvent(request, event))
      .catch((error: unknown) => this.onFailure(request, error));
    return true;
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
    this.timer = null;
    this.newest += 1;
    if (this.isRunning) {
      this.isRunning = false;
      void this.backend.cancelCompletion();
    }
  }

  private onUpdate(update: ViewUpdate): void {
    const hasGhost = update.state.field(ghostField) !== null;
    if (!update.docChanged) {
      // Moving the cursor away leaves the place that was being completed.
      if (update.selectionSet && !hasGhost) this.cancel();
      return;
    }
    // The typed text is what the ghost said: it goes on, and so does the work on it.
    if (hasGhost && update.startState.field(ghostField) !== null) return;
    this.cancel();
    const byUser = update.transactions.some((t) => t.isUserEvent("input") || t.isUserEvent("delete"));
    if (!byUser) return;
    const { main } = update.state.selection;
    const line = update.state.doc.lineAt(main.head);
    const rest = line.text.slice(main.head - line.from).trimEnd();
    if (!main.empty || rest.length > MAX_LINE_REST) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.request();
    }, this.config.debounceMs);
  }

  private onEvent(request: number, event: CompletionEvent): void {
    const view = this.view;
    if (view === null || request !== this.newest) return;
    switch (event.event) {
      case "step": {
        const pos = view.state.selection.main.head;
        if (event.pieces.length > 0) {
          view.dispatch({ effects: appendGhost.of({ pos, pieces: event.pieces }) });
        }
        break;
      }
      case "ended":
        this.isRunning = false;
        this.listener.onEnded(event);
        break;
      case "superseded":
      case "cancelled":
        this.isRunning = false;
        break;
      case "failed":
        this.isRunning = false;
        this.listener.onFailed(event.message);
        break;
    }
  }

  private onFailure(request: number, error: unknown): void {
    if (request !== this.newest) return;
    this.isRunning = false;
    const message = typeof error === "object" && error !== null && "message" in error ? error.message : error;
    this.listener.onFailed(String(message));
  }
}
