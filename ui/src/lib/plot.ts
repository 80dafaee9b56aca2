/** Where the points of a plot are. */

export interface Frame {
  width: number;
  height: number;
  /** Room for what stands beside the axes. */
  left: number;
  bottom: number;
  top: number;
}

/** A round number at or above `value`: 1, 2 or 5 times a power of ten. */
export function roundUp(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= value) ?? 10;
  return step * power;
}

/** Room beside the first and the last point of a line. */
const MARGIN = 10;

/** Where value `index` of `n` stands, for values up to `max`: on a line from edge to edge, or in the middle of a band. */
export function place(
  frame: Frame,
  index: number,
  n: number,
  value: number,
  max: number,
  kind: "lines" | "bars" = "lines",
): [x: number, y: number] {
  const inner = frame.width - frame.left;
  const share = kind === "bars" || n <= 1 ? (index + 0.5) / n : (MARGIN + (inner - 2 * MARGIN) * (index / (n - 1))) / inner;
  const x = frame.left + inner * share;
  const height = frame.height - frame.bottom - frame.top;
  return [x, frame.top + height * (1 - Math.min(1, Math.max(0, value / max)))];
}

/** The line through values, as the path of an SVG. */
export function pathOf(frame: Frame, values: readonly number[], max: number): string {
  const points = values.map((value, index) => place(frame, index, values.length, value, max));
  return points.map(([x, y], index) => `${index === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** A number for an axis or a label. */
export function short(value: number): string {
  if (value >= 10_000) return `${(value / 1000).toFixed(0)}k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}
