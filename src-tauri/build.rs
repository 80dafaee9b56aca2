//! Lists the app's commands in its manifest, so that a window gets only those it is granted.

const COMMANDS: &[&str] = &[
    "application_state",
    "list_models",
    "recommend_models",
    "install_model",
    "cancel_install",
    "load_model",
    "choose_adapter",
    "unload_model",
    "add_model",
    "remove_model",
    "measure_model",
    "complete",
    "prepare_completion",
    "cancel_completion",
    "resolve_completion",
    "insight",
    "clear_history",
    "startup",
    "open_document",
    "open_folder",
    "list_folder",
    "open_in_folder",
    "save_document",
    "close_document",
    "accept_change",
    "keep_draft",
    "remove_draft",
    "set_title",
    "read_settings",
    "change_setting",
    "import_settings",
    "export_settings",
    "settings_path",
    "list_devices",
    "popup_content",
    "popup_stream",
    "popup_accept",
    "popup_fit",
    "popup_close",
    "undo_clipboard",
];

fn main() {
    let manifest = tauri_build::AppManifest::new().commands(COMMANDS);
    let attributes = tauri_build::Attributes::new().app_manifest(manifest);
    tauri_build::try_build(attributes).expect("the app's manifest and capabilities are sound");
}
