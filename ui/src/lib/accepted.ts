/** How much a partial accept takes: a word with the space before it, or the rest of the line. */
export function acceptedLength(text: string, unit: "all" | "word" | "line"): number {
  if (unit === "all") return text.length;
  if (unit === "line") {
    const start = text.startsWith("\n") ? 1 : 0;
    const end = text.indexOf("\n", start);
    return end === -1 ? text.length : end;
  }
  return /^\s*(?:[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]+)?/u.exec(text)?.[0].length ?? 0;
}
