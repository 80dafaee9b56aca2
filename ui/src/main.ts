import { mount } from "svelte";

import { getCurrentWebviewWindow } from "@tauri-apps/api/webviewWindow";

import App from "./App.svelte";
import Popup from "./lib/Popup.svelte";
import "./app.css";

const target = document.getElementById("app");
if (target === null) throw new Error("the page has no place for the app");
mount(getCurrentWebviewWindow().label === "popup" ? Popup : App, { target });
