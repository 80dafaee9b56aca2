/** Everything that can be done, by one name, with its keys: what the palette, the tooltips and the keyboard share. */

export interface Action {
  id: string;
  name: string;
  /** As in `Ctrl+Shift+S`; Ctrl is ⌘ on a Mac. */
  keys?: string;
  run(): unknown;
}

/** What a key event is called, as actions write it. Plus is the key of the equals sign, wherever a keyboard has it. */
export function keysOf(event: KeyboardEvent): string {
  const isPlus = event.key === "+";
  const key = event.key.length === 1 ? event.key.toUpperCase() : event.key;
  const parts = [
    ...(event.ctrlKey || event.metaKey ? ["Ctrl"] : []),
    ...(event.altKey ? ["Alt"] : []),
    ...(event.shiftKey && !isPlus ? ["Shift"] : []),
    isPlus ? "=" : key === "," ? "Comma" : key,
  ];
  return parts.join("+");
}

/** The action for a key event. Keys without Ctrl or Alt are for typing. */
export function actionFor(actions: readonly Action[], event: KeyboardEvent): Action | null {
  if (!event.ctrlKey && !event.metaKey && !event.altKey && !/^F\d+$/.test(event.key)) return null;
  const keys = keysOf(event);
  return actions.find((action) => action.keys === keys) ?? null;
}

/** The name with its keys, for a tooltip. */
export function titleOf(actions: readonly Action[], id: string): string {
  const action = actions.find((other) => other.id === id);
  if (action === undefined) return "";
  return action.keys === undefined ? action.name : `${action.name} (${action.keys.replace("Comma", ",")})`;
}

/**
 * How well `query` fits `text`, or null when its letters do not stand there in order: letters in a row and at the
 * beginnings of words count most.
 */
export function fit(query: string, text: string): number | null {
  const [wanted, lower] = [query.toLowerCase().replaceAll(" ", ""), text.toLowerCase()];
  let score = 0;
  let at = -1;
  for (const letter of wanted) {
    const next = lower.indexOf(letter, at + 1);
    if (next === -1) return null;
    if (next === at + 1) score += 3;
    if (next === 0 || /[\s/_.-]/.test(lower[next - 1] ?? "")) score += 2;
    score -= Math.min(next - at, 10) / 10;
    at = next;
  }
  return score - text.length / 200;
}

/** Those of `entries` whose text fits `query`, best first, at most `max`. */
export function filtered<T>(entries: readonly T[], text: (entry: T) => string, query: string, max: number): T[] {
  if (query.trim() === "") return entries.slice(0, max);
  const scored = entries.flatMap((entry) => {
    const score = fit(query, text(entry));
    return score === null ? [] : [{ entry, score }];
  });
  return scored
    .sort((a, b) => b.score - a.score)
    .slice(0, max)
    .map(({ entry }) => entry);
}
