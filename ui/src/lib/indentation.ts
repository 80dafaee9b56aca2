/** How a text is indented. */

const MAX_LINES = 400;

/** The indentation that most lines of a text grow by: a tab, or so many spaces. Four spaces for a text that does not say. */
export function indentationOf(text: string): string {
  let nTabs = 0;
  const steps = new Map<number, number>();
  let before = 0;
  for (const line of text.split("\n", MAX_LINES)) {
    if (line.trim() === "") continue;
    if (line.startsWith("\t")) {
      nTabs += 1;
      continue;
    }
    const width = /^ */.exec(line)?.[0].length ?? 0;
    const step = width - before;
    before = width;
    if (step >= 2 && step <= 8) steps.set(step, (steps.get(step) ?? 0) + 1);
  }
  const [width, n] = [...steps].reduce((best, entry) => (entry[1] > best[1] ? entry : best), [4, 0]);
  return nTabs > n ? "\t" : " ".repeat(width);
}
