import { describe, expect, it, vi } from "vitest";

import { actionFor, filtered, fit, titleOf, type Action } from "./actions";

const actions: Action[] = [
  { id: "save", name: "Save", keys: "Ctrl+S", run: vi.fn() },
  { id: "save-as", name: "Save as", keys: "Ctrl+Shift+S", run: vi.fn() },
  { id: "settings", name: "Settings", keys: "Ctrl+Comma", run: vi.fn() },
  { id: "tour", name: "Help: show the introduction", run: vi.fn() },
];

function key(key: string, init: KeyboardEventInit = {}): KeyboardEvent {
  return new KeyboardEvent("keydown", { key, ...init });
}

describe("actions", () => {
  it("of plus and of the equals sign are one", () => {
    const larger = { id: "larger", name: "Zoom in", keys: "Ctrl+=", run: vi.fn() };
    for (const event of [key("=", { ctrlKey: true }), key("+", { ctrlKey: true, shiftKey: true })]) {
      expect(actionFor([larger], event)?.id).toBe("larger");
    }
  });

  it("are found by their keys, and typing is none", () => {
    expect(actionFor(actions, key("s", { ctrlKey: true }))?.id).toBe("save");
    expect(actionFor(actions, key("S", { ctrlKey: true, shiftKey: true }))?.id).toBe("save-as");
    expect(actionFor(actions, key(",", { metaKey: true }))?.id).toBe("settings");
    expect(actionFor(actions, key("s"))).toBeNull();
    expect(actionFor(actions, key("x", { ctrlKey: true }))).toBeNull();
  });

  it("say their keys in tooltips", () => {
    expect(titleOf(actions, "settings")).toBe("Settings (Ctrl+,)");
    expect(titleOf(actions, "tour")).toBe("Help: show the introduction");
  });

  it("are found by letters of their names, the best first", () => {
    const names = (query: string): string[] => filtered(actions, (action) => action.name, query, 10).map(({ id }) => id);
    expect(names("")).toHaveLength(4);
    expect(names("save")[0]).toBe("save");
    expect(names("sa as")[0]).toBe("save-as");
    expect(names("intro")).toEqual(["tour"]);
    expect(names("zzz")).toEqual([]);
    expect(fit("wd", "src/window.ts")).not.toBeNull();
    expect(fit("win", "src/window.ts") ?? 0).toBeGreaterThan(fit("win", "src/new_lines.ts") ?? -10);
  });
});
