/** What the windows ask of the Rust side: one function per command, typed by the generated bindings. */

import { Channel, invoke } from "@tauri-apps/api/core";
import { listen, type UnlistenFn } from "@tauri-apps/api/event";

import type { ApplicationState } from "./bindings/ApplicationState";
import type { AppliedSettings } from "./bindings/AppliedSettings";
import type { CommandError } from "./bindings/CommandError";
import type { CompleteArguments } from "./bindings/CompleteArguments";
import type { CompletionEvent } from "./bindings/CompletionEvent";
import type { Fate } from "./bindings/Fate";
import type { Document } from "./bindings/Document";
import type { DocumentEvent } from "./bindings/DocumentEvent";
import type { Draft } from "./bindings/Draft";
import type { FoundDevice } from "./bindings/FoundDevice";
import type { FolderListing } from "./bindings/FolderListing";
import type { Insight } from "./bindings/Insight";
import type { InstalledModel } from "./bindings/InstalledModel";
import type { InstallProgress } from "./bindings/InstallProgress";
import type { ModelList } from "./bindings/ModelList";
import type { PopupContent } from "./bindings/PopupContent";
import type { Recommendation } from "./bindings/Recommendation";
import type { SpeedMeasurement } from "./bindings/SpeedMeasurement";
import type { Startup } from "./bindings/Startup";

/** What a setting can be. */
export type SettingValue = string | number | boolean | string[] | Record<string, string>;

function on<T>(event: string): (callback: (payload: T) => void) => Promise<UnlistenFn> {
  return (callback) => listen<T>(event, ({ payload }) => callback(payload));
}

export const onApplicationState = on<ApplicationState>("application_state");
export const onDocument = on<DocumentEvent>("document");
export const onSettings = on<AppliedSettings>("settings");
/** Another program changed a document. */
export const onChangedDocument = on<Document>("changed_document");
export const onModelAdded = on<string>("model_added");
export const onPopup = on<null>("popup");
export const onPopupClosed = on<null>("popup_closed");

export const applicationState = (): Promise<ApplicationState> => invoke("application_state");
export const startup = (): Promise<Startup> => invoke("startup");

export const listModels = (): Promise<ModelList> => invoke("list_models");
/** Measures this machine, which takes some seconds. */
export const recommendModels = (): Promise<Recommendation> => invoke("recommend_models");
export const cancelInstall = (): Promise<void> => invoke("cancel_install");
export const loadModel = (id: string): Promise<void> => invoke("load_model", { id });
/** One of the user's by its name, or `newest`, `shipped`, `off`. */
export const chooseAdapter = (id: string, choice: string): Promise<void> => invoke("choose_adapter", { id, choice });
export const unloadModel = (): Promise<void> => invoke("unload_model");
/** Asks for a file; null when none was chosen. */
export const addModel = (): Promise<InstalledModel | null> => invoke("add_model");
export const removeModel = (id: string): Promise<void> => invoke("remove_model", { id });

/** Resolves to false when the installation was paused. */
export function installModel(id: string, onProgress: (progress: InstallProgress) => void): Promise<boolean> {
  return invoke("install_model", { id, onProgress: new Channel<InstallProgress>(onProgress) });
}

/** Takes some seconds; the share that is done is told from 0 to 1. */
export function measureModel(onProgress: (share: number) => void): Promise<SpeedMeasurement> {
  return invoke("measure_model", { onProgress: new Channel<number>(onProgress) });
}

export function complete(request: CompleteArguments, onEvent: (event: CompletionEvent) => void): Promise<void> {
  return invoke("complete", { arguments: request, onEvent: new Channel<CompletionEvent>(onEvent) });
}

/** Has a place computed ahead, where someone may begin to type. */
export const prepareCompletion = (request: CompleteArguments): Promise<void> =>
  invoke("prepare_completion", { arguments: request });
export const cancelCompletion = (): Promise<void> => invoke("cancel_completion");

/** `nChars` of the completion's characters were accepted so far. */
export function resolveCompletion(entry: number, fate: Fate, nChars: number): Promise<void> {
  return invoke("resolve_completion", { entry, fate, nChars });
}

export const insight = (todayMs: number, nDays: number): Promise<Insight> => invoke("insight", { todayMs, nDays });
export const clearHistory = (): Promise<void> => invoke("clear_history");

export const openDocument = (): Promise<Document | null> => invoke("open_document");
export const openFolder = (): Promise<FolderListing | null> => invoke("open_folder");
export const listFolder = (): Promise<FolderListing | null> => invoke("list_folder");
export const openInFolder = (below: string): Promise<Document> => invoke("open_in_folder", { below });
export const closeDocument = (id: number): Promise<void> => invoke("close_document", { id });
export const acceptChange = (id: number, text: string): Promise<void> => invoke("accept_change", { id, text });
export const keepDraft = (draft: Draft): Promise<void> => invoke("keep_draft", { draft });
export const removeDraft = (key: string): Promise<void> => invoke("remove_draft", { key });
export const setTitle = (title: string): Promise<void> => invoke("set_title", { title });

export interface SaveOptions {
  /** Even when another program has changed the file. */
  overwrite: boolean;
  /** Ask for a name. */
  elsewhere: boolean;
}

/**
 * Without an id the user is asked for a name; null when none was given. A file that another program has changed is a
 * conflict, unless it is to be overwritten.
 */
export function saveDocument(id: number | null, text: string, options: SaveOptions): Promise<Document | null> {
  return invoke("save_document", { id, text, ...options });
}

export const readSettings = (): Promise<AppliedSettings> => invoke("read_settings");
export const listDevices = (): Promise<FoundDevice[]> => invoke("list_devices");
export const settingsPath = (): Promise<string> => invoke("settings_path");
export const importSettings = (): Promise<AppliedSettings | null> => invoke("import_settings");
export const exportSettings = (): Promise<boolean> => invoke("export_settings");

/** The default again when `value` is null. */
export function changeSetting(group: string, name: string, value: SettingValue | null): Promise<AppliedSettings> {
  return invoke("change_setting", { group, name, value });
}

export const popupContent = (): Promise<PopupContent> => invoke("popup_content");
/** The height of what it shows, in pixels. */
export const popupFit = (height: number): Promise<void> => invoke("popup_fit", { height });
export const popupClose = (): Promise<void> => invoke("popup_close");
export const undoClipboard = (): Promise<boolean> => invoke("undo_clipboard");

export function popupStream(again: boolean, onEvent: (event: CompletionEvent) => void): Promise<void> {
  return invoke("popup_stream", { again, onEvent: new Channel<CompletionEvent>(onEvent) });
}

export function popupAccept(continuation: string, whole: boolean): Promise<void> {
  return invoke("popup_accept", { continuation, whole });
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
