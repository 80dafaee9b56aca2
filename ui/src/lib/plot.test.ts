import { expect, it } from "vitest";

import { pathOf, place, roundUp, short } from "./plot";

const frame = { width: 108, height: 120, left: 0, bottom: 10, top: 10 };

it("rounds the top of an axis up", () => {
  expect([0, 0.03, 1, 1.2, 7, 130, 999].map(roundUp)).toEqual([1, 0.05, 1, 2, 10, 200, 1000]);
});

it("puts values where they belong", () => {
  expect(place(frame, 0, 3, 0, 10)).toEqual([10, 110]);
  expect(place(frame, 2, 3, 10, 10)).toEqual([98, 10]);
  expect(place(frame, 0, 1, 20, 10)).toEqual([54, 10]);
  expect(place(frame, 0, 4, 5, 10, "bars")).toEqual([13.5, 60]);
  expect(pathOf(frame, [0, 5, 10], 10)).toBe("M10.0 110.0L54.0 60.0L98.0 10.0");
});

it("writes numbers shortly", () => {
  expect([0, 3, 0.1234, 12.34, 123.4, 54_321].map(short)).toEqual(["0", "3", "0.12", "12.3", "123", "54k"]);
});
