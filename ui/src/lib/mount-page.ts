import { mount, type Component } from "svelte";

import "../app.css";

/** Fills a page with what it is for. */
export function mountPage(component: Component): void {
  const target = document.getElementById("app");
  if (target === null) throw new Error("the page has no place for the app");
  mount(component, { target });
}
