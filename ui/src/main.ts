import App from "./App.svelte";
import { mountPage } from "./lib/mount-page";

mountPage(App);
