/** The window over the clipboard is a page of its own: an editor that it never shows would cost it time and memory. */

import { mountPage } from "./lib/mount-page";
import Popup from "./lib/Popup.svelte";

mountPage(Popup);
