import { describe, expect, it } from "vitest";

import { Debounce } from "./debounce";

describe("the wait behind a key", () => {
  it("follows how someone types and how soon the machine answers, within bounds", () => {
    const debounce = new Debounce();
    expect(debounce.wait).toBe(190);
    for (let key = 0; key < 12; key++) debounce.typed(key * 80);
    expect(debounce.wait).toBe(100);
    for (let n = 0; n < 40; n++) debounce.answered(5);
    expect(debounce.wait).toBeCloseTo(45, 0);
    for (let n = 0; n < 40; n++) debounce.answered(5000);
    for (let key = 0; key < 12; key++) debounce.typed(10_000 + key * 900);
    expect(debounce.wait).toBe(250);
    for (let key = 0; key < 12; key++) debounce.typed(50_000 + key * 10);
    expect(debounce.wait).toBe(40);
  });

  it("takes a pause for no interval", () => {
    const debounce = new Debounce();
    [0, 100, 200, 9000, 9100].forEach((at) => debounce.typed(at));
    expect(debounce.wait).toBe(125);
  });
});
