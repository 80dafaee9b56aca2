import { readFileSync } from "node:fs";
import { join } from "node:path";

import { describe, expect, it } from "vitest";

const css = readFileSync(join(import.meta.dirname, "app.css"), "utf8");

/** The colours of a theme, by variable. */
function colours(theme: "light" | "dark"): Map<string, string> {
  const pairs = [...css.matchAll(/(--[\w-]+): light-dark\((#\w+), (#\w+)\)/g)];
  return new Map(pairs.map(([, name = "", light = "", dark = ""]) => [name, theme === "light" ? light : dark]));
}

function channels(hex: string): number[] {
  return [1, 3, 5, 7].map((at) => (hex.length > at ? parseInt(hex.slice(at, at + 2), 16) / 255 : 1));
}

/** `above` as it is seen on `below`. */
function over(above: string, below: string): number[] {
  const [a, b] = [channels(above), channels(below)];
  const alpha = a[3] ?? 1;
  return [0, 1, 2].map((i) => alpha * (a[i] ?? 0) + (1 - alpha) * (b[i] ?? 0));
}

/** WCAG 2.2, relative luminance and contrast ratio. */
function luminance(rgb: readonly number[]): number {
  const [r = 0, g = 0, b = 0] = rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a: readonly number[], b: readonly number[]): number {
  const [high = 0, low = 0] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}

describe.each(["light", "dark"] as const)("in the %s theme", (theme) => {
  const of = colours(theme);
  const colour = (name: string): string => of.get(name) ?? "";
  const texts = ["--text", "--text-dim", "--accent", "--warn", "--error", "--code-keyword", "--code-string", "--code-number", "--code-name"];

  it.each(texts)("%s is read on every ground (AA, 4.5)", (text) => {
    for (const ground of ["--bg", "--bg-raised"]) {
      expect(contrast(over(colour(text), colour(ground)), channels(colour(ground)).slice(0, 3)), ground).toBeGreaterThanOrEqual(4.5);
    }
  });

  it("what is chosen is read", () => {
    for (const ground of ["--bg", "--bg-raised"]) {
      const chosen = over(colour("--accent-soft"), colour(ground));
      for (const text of ["--text", "--text-dim", "--accent"]) {
        expect(contrast(over(colour(text), colour(ground)), chosen), text).toBeGreaterThanOrEqual(4.5);
      }
    }
    expect(contrast(over(colour("--on-accent"), colour("--accent")), over(colour("--accent"), "#000000"))).toBeGreaterThanOrEqual(4.5);
  });
});
