import type { Settings } from "./bindings/Settings";

/** Gives the page the theme and the font of the settings. */
export function applyAppearance({ appearance }: Settings): void {
  const { documentElement: root } = document;
  root.dataset["theme"] = appearance.theme;
  const family = appearance.code_font.trim().replaceAll('"', "");
  if (family === "") root.style.removeProperty("--font-code");
  else root.style.setProperty("--font-code", `"${family}", ui-monospace, monospace`);
  root.style.setProperty("--code-size", `${appearance.code_size}px`);
}
