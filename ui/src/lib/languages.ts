/** Languages by file name. */

import { cpp } from "@codemirror/lang-cpp";
import { css } from "@codemirror/lang-css";
import { go } from "@codemirror/lang-go";
import { html } from "@codemirror/lang-html";
import { java } from "@codemirror/lang-java";
import { javascript } from "@codemirror/lang-javascript";
import { json } from "@codemirror/lang-json";
import { markdown } from "@codemirror/lang-markdown";
import { python } from "@codemirror/lang-python";
import { rust } from "@codemirror/lang-rust";
import type { Extension } from "@codemirror/state";

const BY_EXTENSION: Record<string, () => Extension> = {
  c: cpp,
  cc: cpp,
  cpp: cpp,
  css: css,
  go: go,
  h: cpp,
  hpp: cpp,
  html: html,
  java: java,
  js: () => javascript(),
  json: json,
  jsx: () => javascript({ jsx: true }),
  md: markdown,
  mjs: () => javascript(),
  py: python,
  pyi: python,
  rs: rust,
  ts: () => javascript({ typescript: true }),
  tsx: () => javascript({ typescript: true, jsx: true }),
};

/** Highlighting for a file of this name; none for names that say nothing. */
export function languageFor(name: string): Extension {
  const extension = name.slice(name.lastIndexOf(".") + 1).toLowerCase();
  return BY_EXTENSION[extension]?.() ?? [];
}
