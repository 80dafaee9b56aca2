import { expect, it } from "vitest";

import { treeOf, visible } from "./file-tree";

const files = ["README.md", "src/a.py", "src/deep/er/b.py", "src/z.py", "tests/t.py"];

it("shows folders first, and what is in them when they are open", () => {
  const tree = treeOf(files);
  const rows = (...open: string[]): string[] =>
    visible(tree, new Set(open)).map(({ node, depth }) => `${"  ".repeat(depth)}${node.name}`);
  expect(rows()).toEqual(["src", "tests", "README.md"]);
  expect(rows("src")).toEqual(["src", "  deep", "  a.py", "  z.py", "tests", "README.md"]);
  expect(rows("src", "src/deep", "src/deep/er")).toContain("      b.py");
  expect(rows("src/deep")).toEqual(["src", "tests", "README.md"]);
  expect(treeOf([])).toEqual([]);
});
