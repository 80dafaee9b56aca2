import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { Caret } from "./caret";

describe("the caret", () => {
  let seen: boolean[];
  let hasFocus: boolean;
  let caret: Caret;

  beforeEach(() => {
    vi.useFakeTimers();
    [seen, hasFocus] = [[], true];
    caret = new Caret((isSeen) => seen.push(isSeen), () => hasFocus);
  });

  afterEach(() => {
    vi.useRealTimers();
  });

  it("blinks for ten seconds, then rests where it is seen", () => {
    caret.blink(true);
    vi.advanceTimersByTime(2400);
    expect(seen).toEqual([true, false, true, false, true]);
    vi.advanceTimersByTime(7600);
    expect(vi.getTimerCount()).toBe(0);
    expect([seen.length, seen.at(-1)]).toEqual([17, true]);
  });

  it("begins anew with every key", () => {
    caret.blink(true);
    vi.advanceTimersByTime(9000);
    caret.blink(true);
    expect(seen.at(-1)).toBe(true);
    vi.advanceTimersByTime(600);
    expect(seen.at(-1)).toBe(false);
    expect(vi.getTimerCount()).toBe(1);
  });

  it("stays for those who want no motion, and where another part has the focus", () => {
    caret.blink(false);
    expect(vi.getTimerCount()).toBe(0);
    hasFocus = false;
    caret.blink(true);
    vi.advanceTimersByTime(20_000);
    expect(seen).not.toContain(false);
  });
});
