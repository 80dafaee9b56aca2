//! Lists the app's commands in its manifest, so that a window gets only those it is granted.

const COMMANDS: &[&str] = &[
    "application_state",
    "list_models",
    "recommend_models",
    "install_model",
    "cancel_install",
    "load_model",
    "complete",
    "cancel_completion",
    "initial_document",
    "open_document",
    "save_document",
];

fn main() {
    let manifest = tauri_build::AppManifest::new().commands(COMMANDS);
    let attributes = tauri_build::Attributes::new().app_manifest(manifest);
    tauri_build::try_build(attributes).expect("the app's manifest and capabilities are sound");
}
