/** What the window asks of the Rust side: one function per command, typed by the generated bindings. */

import { Channel, invoke } from "@tauri-apps/api/core";
import { listen, type UnlistenFn } from "@tauri-apps/api/event";

import type { ApplicationState } from "./bindings/ApplicationState";
import type { CommandError } from "./bindings/CommandError";
import type { CompletionEvent } from "./bindings/CompletionEvent";
import type { Document } from "./bindings/Document";
import type { DocumentEvent } from "./bindings/DocumentEvent";
import type { InstallProgress } from "./bindings/InstallProgress";
import type { ModelList } from "./bindings/ModelList";
import type { Recommendation } from "./bindings/Recommendation";

export function applicationState(): Promise<ApplicationState> {
  return invoke("application_state");
}

export function onApplicationState(callback: (state: ApplicationState) => void): Promise<UnlistenFn> {
  return listen<ApplicationState>("application_state", (event) => callback(event.payload));
}

export function onDocument(callback: (event: DocumentEvent) => void): Promise<UnlistenFn> {
  return listen<DocumentEvent>("document", (event) => callback(event.payload));
}

export function listModels(): Promise<ModelList> {
  return invoke("list_models");
}

/** Measures this machine, which takes some seconds. */
export function recommendModels(): Promise<Recommendation> {
  return invoke("recommend_models");
}

/** Resolves to false when the installation was paused. */
export function installModel(id: string, onProgress: (progress: InstallProgress) => void): Promise<boolean> {
  return invoke("install_model", { id, onProgress: new Channel<InstallProgress>(onProgress) });
}

export function cancelInstall(): Promise<void> {
  return invoke("cancel_install");
}

export function loadModel(id: string): Promise<void> {
  return invoke("load_model", { id });
}

/** Text around a cursor. */
export interface CompletionContext {
  prefix: string;
  suffix: string;
  /** Name of the file, which tells the model the language. */
  path: string | null;
}

export function complete(
  context: CompletionContext,
  maxTokens: number,
  onEvent: (event: CompletionEvent) => void,
): Promise<void> {
  const args = { ...context, max_tokens: maxTokens };
  return invoke("complete", { arguments: args, onEvent: new Channel<CompletionEvent>(onEvent) });
}

export function cancelCompletion(): Promise<void> {
  return invoke("cancel_completion");
}

export function initialDocument(): Promise<Document | null> {
  return invoke("initial_document");
}

export function openDocument(): Promise<Document | null> {
  return invoke("open_document");
}

/**
 * Without an id the user is asked for a name; null when none was given. A file that another program has changed is a
 * conflict, unless it is to be overwritten.
 */
export function saveDocument(id: number | null, text: string, overwrite: boolean): Promise<Document | null> {
  return invoke("save_document", { id, text, overwrite });
}

/** Whether an error says that another program has changed the file. */
export function isConflict(error: unknown): boolean {
  return typeof error === "object" && error !== null && (error as CommandError).code === "conflict";
}

/** Words for a person, whatever was thrown. */
export function messageOf(error: unknown): string {
  if (typeof error === "object" && error !== null && "message" in error) {
    return String((error as CommandError).message);
  }
  return String(error);
}
