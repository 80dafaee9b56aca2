import { EditorState } from "@codemirror/state";
import { beforeEach, describe, expect, it, vi } from "vitest";

import type { Document } from "./bindings/Document";
import type { Draft } from "./bindings/Draft";
import { Workspace, type EditorPort } from "./workspace.svelte";

const shell = vi.hoisted(() => ({
  kept: [] as Draft[],
  closed: [] as number[],
  saved: [] as [number | null, string][],
  conflict: false,
}));

vi.mock("./backend", () => ({
  keepDraft: (draft: Draft) => Promise.resolve(void shell.kept.push(draft)),
  removeDraft: () => Promise.resolve(),
  closeDocument: (id: number) => Promise.resolve(void shell.closed.push(id)),
  acceptChange: () => Promise.resolve(),
  saveDocument: (id: number | null, text: string, { overwrite }: { overwrite: boolean }) => {
    if (shell.conflict && !overwrite) return Promise.reject(new Error("conflict"));
    shell.saved.push([id, text]);
    return Promise.resolve({ id: id ?? 9, name: id === null ? "new.py" : "a.py", path: "/a.py", text: "" });
  },
  isConflict: () => shell.conflict,
  messageOf: String,
}));

const document = (id: number, text: string): Document => ({ id, name: `${id}.py`, path: `/${id}.py`, text });

describe("the workspace", () => {
  let state: EditorState;
  let workspace: Workspace;
  const ask = vi.fn<(question: string, action: string) => Promise<boolean>>();
  const editor: EditorPort = {
    current: () => state,
    show: (shown) => (state = shown),
    make: (_name, doc) => EditorState.create({ doc }),
  };

  beforeEach(() => {
    vi.useFakeTimers();
    Object.assign(shell, { kept: [], closed: [], saved: [], conflict: false });
    ask.mockReset().mockResolvedValue(true);
    workspace = new Workspace(() => editor, ask, vi.fn());
    workspace.create();
  });

  function type(insert: string): void {
    state = state.update({ changes: { from: 0, insert } }).state;
    workspace.onEdit();
  }

  const names = (): string[] => workspace.tabs.map((tab) => tab.name);

  it("opens a file once, in the place of an empty tab, and keeps what is typed in each", () => {
    workspace.open(document(1, "one"));
    workspace.open(document(2, "two"));
    expect(names()).toEqual(["1.py", "2.py"]);
    type("x");
    workspace.open(document(1, "one"));
    expect([names(), state.doc.toString()]).toEqual([["1.py", "2.py"], "one"]);
    workspace.cycle(1);
    expect([state.doc.toString(), workspace.active?.isChanged]).toEqual(["xtwo", true]);
  });

  it("knows what is changed by the text, not by keys", () => {
    workspace.open(document(1, "one"));
    type("x");
    state = state.update({ changes: { from: 0, to: 1 } }).state;
    workspace.onEdit();
    expect(workspace.active?.isChanged).toBe(false);
  });

  it("keeps a text half a second after the last key, with the line endings of its file", () => {
    workspace.open(document(1, "a\r\nb\r\n"));
    type("x");
    vi.advanceTimersByTime(400);
    type("y");
    vi.advanceTimersByTime(400);
    expect(shell.kept.at(-1)?.is_changed).toBe(false);
    vi.advanceTimersByTime(200);
    expect(shell.kept.at(-1)).toMatchObject({ name: "1.py", text: "yxa\r\nb\r\n", is_changed: true });
    // Another tab makes it sooner.
    type("z");
    workspace.create();
    expect(shell.kept.some((draft) => draft.text.startsWith("zyx"))).toBe(true);
  });

  it("asks before something is lost with a tab", async () => {
    workspace.open(document(1, "one"));
    type("x");
    ask.mockResolvedValueOnce(false);
    await workspace.close(workspace.activeKey);
    expect(names()).toEqual(["1.py"]);
    await workspace.close(workspace.activeKey);
    expect([names(), shell.closed]).toEqual([["untitled"], [1]]);
  });

  it("asks before it overwrites what another program wrote", async () => {
    workspace.open(document(1, "one"));
    type("x");
    shell.conflict = true;
    ask.mockResolvedValueOnce(false);
    await workspace.save(false);
    expect([shell.saved, workspace.active?.isChanged]).toEqual([[], true]);
    await workspace.save(false);
    expect([shell.saved, workspace.active?.isChanged]).toEqual([[[1, "xone"]], false]);
  });

  it("shows what another program wrote, or says so where there are changes here", async () => {
    workspace.open(document(1, "one"));
    await workspace.onChanged(document(1, "other"));
    expect(state.doc.toString()).toBe("other");
    type("x");
    await workspace.onChanged(document(1, "third"));
    expect([state.doc.toString(), workspace.active?.foreign?.text]).toEqual(["xother", "third"]);
    const tab = workspace.active;
    if (tab?.foreign != null) await workspace.take(tab, tab.foreign);
    expect([state.doc.toString(), workspace.active?.isChanged]).toEqual(["third", false]);
  });

  it("shows what was not saved when the app ended", () => {
    const draft = { key: "k", name: "1.py", path: "/1.py", text: "one more", is_changed: true };
    workspace.restore({ draft, document: document(1, "one") });
    expect([state.doc.toString(), workspace.active]).toMatchObject(["one more", { key: "k", id: 1, isChanged: true }]);
  });
});
