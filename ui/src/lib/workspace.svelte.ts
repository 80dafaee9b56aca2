/** The tabs and the folder that someone works on. */

import type { EditorState, Text } from "@codemirror/state";

import * as backend from "./backend";
import type { Document } from "./bindings/Document";
import type { FolderListing } from "./bindings/FolderListing";
import type { RestoredDraft } from "./bindings/RestoredDraft";
import { lineEndingOf, withLineEnding, type LineEnding } from "./line-endings";

/** A document in the window. */
export interface Tab {
  /** What the window calls it; drafts are kept under it. */
  readonly key: string;
  /** What the shell calls its file; null for what was never saved. */
  id: number | null;
  name: string;
  path: string;
  ending: LineEnding;
  isChanged: boolean;
  /** What another program wrote to the file, while there are changes here. */
  foreign: Document | null;
}

/** What is known of a tab besides what is drawn. */
interface TabRecord {
  /** Of a tab that is not shown. */
  state: EditorState | null;
  /** What its file holds. */
  saved: Text;
  /** Until its text is kept. */
  timer: ReturnType<typeof setTimeout> | null;
}

/** Where the text of the active tab is shown and changed. */
export interface EditorPort {
  current(): EditorState;
  show(state: EditorState): void;
  make(name: string, text: string, cursor: number): EditorState;
}

/** Asks a person whether something is wanted. */
export type Ask = (question: string, action: string) => Promise<boolean>;

/** From the last keystroke until a text is kept, in milliseconds. */
const KEEP_MS = 500;

export class Workspace {
  tabs = $state<Tab[]>([]);
  activeKey = $state("");
  folder = $state.raw<FolderListing | null>(null);
  readonly active = $derived(this.tabs.find((tab) => tab.key === this.activeKey) ?? null);

  // Nothing is drawn from it.
  // eslint-disable-next-line svelte/prefer-svelte-reactivity
  private readonly records = new Map<string, TabRecord>();
  private nKeys = 0;

  constructor(
    private readonly editor: () => EditorPort | null,
    private readonly ask: Ask,
    private readonly onFailure: (message: string) => void,
  ) {}

  /** Shows a document, in the tab that has it already or in a new one. */
  open(document: Document): void {
    const known = this.tabs.find((tab) => tab.id === document.id);
    if (known !== undefined) {
      this.activate(known.key);
      return;
    }
    // An empty tab that nobody has used gives its place.
    const unused = this.active?.path === "" && !this.active.isChanged && this.active.id === null ? this.active : null;
    this.add(document.id, document.name, document.path, document.text, 0);
    if (unused !== null) this.drop(unused.key);
  }

  /** A new tab. */
  create(name = "untitled", text = "", cursor = 0): void {
    this.add(null, name, "", text, cursor);
  }

  /** Shows a text that was not saved when the app ended. */
  restore({ draft, document }: RestoredDraft): void {
    const saved = document?.text ?? "";
    const tab = this.add(document?.id ?? null, draft.name, document?.path ?? "", saved, 0, draft.key);
    const editor = this.editor();
    if (tab === null || editor === null) return;
    tab.ending = lineEndingOf(draft.text);
    editor.show(editor.make(draft.name, draft.text, 0));
    this.onEdit();
  }

  private add(
    id: number | null,
    name: string,
    path: string,
    text: string,
    cursor: number,
    key = `${Date.now().toString(36)}${(this.nKeys++).toString(36)}`,
  ): Tab | null {
    const editor = this.editor();
    if (editor === null) return null;
    this.leave(editor);
    const state = editor.make(name, text, cursor);
    this.tabs.push({ key, id, name, path, ending: lineEndingOf(text), isChanged: false, foreign: null });
    this.records.set(key, { state: null, saved: state.doc, timer: null });
    this.activeKey = key;
    editor.show(state);
    this.keep(key);
    return this.active;
  }

  /** Puts away what the active tab shows. */
  private leave(editor: EditorPort): void {
    if (this.active === null) return;
    const record = this.records.get(this.activeKey);
    if (record !== undefined) record.state = editor.current();
    this.flush(this.activeKey);
  }

  activate(key: string): void {
    const editor = this.editor();
    const record = this.records.get(key);
    if (editor === null || key === this.activeKey || record?.state == null) return;
    const { state } = record;
    this.leave(editor);
    this.activeKey = key;
    record.state = null;
    editor.show(state);
  }

  /** The tab `step` places further, around the end. */
  cycle(step: number): void {
    const at = this.tabs.findIndex((tab) => tab.key === this.activeKey);
    const next = this.tabs[(at + step + this.tabs.length) % this.tabs.length];
    if (next !== undefined) this.activate(next.key);
  }

  /** Closes a tab; asks first when something would be lost. */
  async close(key: string): Promise<void> {
    const tab = this.tabs.find((other) => other.key === key);
    if (tab === undefined) return;
    if (tab.isChanged && !(await this.ask(`${tab.name} has changes that are not saved.`, "Discard them"))) return;
    this.drop(key);
  }

  private drop(key: string): void {
    const at = this.tabs.findIndex((tab) => tab.key === key);
    const tab = this.tabs[at];
    if (tab === undefined) return;
    if (key === this.activeKey) {
      const next = this.tabs[at + 1] ?? this.tabs[at - 1];
      if (next !== undefined) this.activate(next.key);
      else this.create();
    }
    this.tabs = this.tabs.filter((other) => other.key !== key);
    clearTimeout(this.records.get(key)?.timer ?? undefined);
    this.records.delete(key);
    void backend.removeDraft(key).catch(() => undefined);
    if (tab.id !== null) void backend.closeDocument(tab.id).catch(() => undefined);
  }

  private stateOf(key: string): EditorState | null {
    return key === this.activeKey ? (this.editor()?.current() ?? null) : (this.records.get(key)?.state ?? null);
  }

  /** The active tab's text has changed. */
  onEdit(): void {
    const tab = this.active;
    const editor = this.editor();
    if (tab === null || editor === null) return;
    const record = this.records.get(tab.key);
    if (record === undefined) return;
    tab.isChanged = !editor.current().doc.eq(record.saved);
    clearTimeout(record.timer ?? undefined);
    record.timer = setTimeout(() => this.keep(tab.key), KEEP_MS);
  }

  private flush(key: string): void {
    if (this.records.get(key)?.timer != null) this.keep(key);
  }

  /** Hands a tab's text over, for completions beside it and for after a crash. */
  private keep(key: string): void {
    const record = this.records.get(key);
    clearTimeout(record?.timer ?? undefined);
    if (record !== undefined) record.timer = null;
    const tab = this.tabs.find((other) => other.key === key);
    const state = this.stateOf(key);
    if (tab === undefined || state === null) return;
    const { name, path, isChanged } = tab;
    const text = withLineEnding(state.doc.toString(), tab.ending);
    backend
      .keepDraft({ key, name, path, text, is_changed: isChanged })
      .catch((error: unknown) => this.onFailure(`${name} is not kept for after a crash: ${backend.messageOf(error)}`));
  }

  /** Saves the active tab, under another name where that is wanted. */
  async save(elsewhere: boolean): Promise<void> {
    const tab = this.active;
    const state = this.editor()?.current();
    if (tab === null || state === undefined) return;
    const text = withLineEnding(state.doc.toString(), tab.ending);
    const saved = await this.saveText(tab.id, text, elsewhere);
    if (saved === null) return;
    const isRenamed = saved.name !== tab.name;
    if (tab.id !== null && tab.id !== saved.id) void backend.closeDocument(tab.id).catch(() => undefined);
    Object.assign(tab, { id: saved.id, name: saved.name, path: saved.path, foreign: null });
    this.setSaved(tab.key, state.doc);
    const now = this.stateOf(tab.key);
    tab.isChanged = now !== null && !now.doc.eq(state.doc);
    this.keep(tab.key);
    // Another name may mean another language.
    const editor = this.editor();
    if (isRenamed && editor !== null && now !== null && tab.key === this.activeKey) {
      editor.show(editor.make(saved.name, now.doc.toString(), now.selection.main.head));
      this.setSaved(tab.key, editor.current().doc);
    }
  }

  private setSaved(key: string, saved: Text): void {
    const record = this.records.get(key);
    if (record !== undefined) record.saved = saved;
  }

  /** Asks before what another program wrote is lost. */
  private async saveText(id: number | null, text: string, elsewhere: boolean): Promise<Document | null> {
    try {
      return await backend.saveDocument(id, text, { overwrite: false, elsewhere });
    } catch (thrown) {
      if (!backend.isConflict(thrown)) throw thrown;
      const isWanted = await this.ask(`${backend.messageOf(thrown)}.`, "Overwrite it");
      return isWanted ? backend.saveDocument(id, text, { overwrite: true, elsewhere: false }) : null;
    }
  }

  /** What another program has written is shown where nothing was changed here, else it is said. */
  async onChanged(document: Document): Promise<void> {
    const tab = this.tabs.find((other) => other.id === document.id);
    if (tab === undefined) return;
    if (tab.isChanged) tab.foreign = document;
    else await this.take(tab, document);
  }

  /** Shows what another program wrote, in the place of what is here. */
  async take(tab: Tab, document: Document): Promise<void> {
    const editor = this.editor();
    if (editor === null) return;
    await backend.acceptChange(document.id, document.text);
    const head = this.stateOf(tab.key)?.selection.main.head ?? 0;
    tab.ending = lineEndingOf(document.text);
    const state = editor.make(tab.name, document.text, Math.min(head, document.text.length));
    const record = this.records.get(tab.key);
    if (record === undefined) return;
    record.saved = state.doc;
    if (tab.key === this.activeKey) editor.show(state);
    else record.state = state;
    Object.assign(tab, { isChanged: false, foreign: null });
    this.keep(tab.key);
  }
}
