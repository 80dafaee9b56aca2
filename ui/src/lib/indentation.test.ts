import { expect, it } from "vitest";

import { indentationOf } from "./indentation";

it.each([
  ["", "    "],
  ["a\nb\n", "    "],
  ["if x:\n  y\n  if z:\n    w\n", "  "],
  ["def f():\n    return 1\n\n\ndef g():\n    return 2\n", "    "],
  ["f {\n\tg\n\t\th\n}\n", "\t"],
  ["/*\n * comment\n */\nf(){\n        deep\n}\n", "        "],
])("of %j is %j", (text, expected) => {
  expect(indentationOf(text)).toBe(expected);
});
