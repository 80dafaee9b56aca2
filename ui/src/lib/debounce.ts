/** How long to wait for more before a completion is asked for. */

const LEAST_MS = 40;
const MOST_MS = 250;
/** A longer interval is a pause, and says nothing of how someone types. */
const PAUSE_MS = 1000;
const MAX_INTERVALS = 12;

/**
 * A pause is what is longer than this person's usual interval between keys; a machine that answers at once
 * is asked sooner, since an answer in vain costs little.
 */
export class Debounce {
  private intervals: number[] = [];
  private last: number | null = null;
  private firstTextMs = 150;

  /** A key was pressed, at `now` in milliseconds. */
  typed(now: number): void {
    const interval = this.last === null ? Infinity : now - this.last;
    this.last = now;
    if (interval < PAUSE_MS) this.intervals = [...this.intervals, interval].slice(-MAX_INTERVALS);
  }

  /** A completion's first text came after `ms`. */
  answered(ms: number): void {
    this.firstTextMs += (ms - this.firstTextMs) / 4;
  }

  /** The wait behind a key, in milliseconds. */
  get wait(): number {
    const sorted = [...this.intervals].sort((a, b) => a - b);
    const usual = sorted[Math.floor(sorted.length / 2)] ?? MOST_MS;
    return Math.min(MOST_MS, Math.max(LEAST_MS, Math.min(1.25 * usual, 40 + this.firstTextMs)));
  }
}
