/** The editor works with "\n"; files keep the line endings they came with. */

export type LineEnding = "\n" | "\r\n";

/** The ending that most lines of the text have. */
export function lineEndingOf(text: string): LineEnding {
  const all = text.split("\n").length - 1;
  const crlf = text.split("\r\n").length - 1;
  return crlf * 2 > all ? "\r\n" : "\n";
}

export function withLineEnding(text: string, ending: LineEnding): string {
  return ending === "\n" ? text : text.replaceAll("\n", ending);
}
