//! The desktop app: a window over the engine.

#![forbid(unsafe_code)]
#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

mod application;
mod commands;
mod documents;
mod error;

use anyhow::Context;
use tauri::{Emitter, Manager, WebviewUrl, WebviewWindowBuilder};

use crate::application::Application;
use crate::documents::DocumentEvent;

fn main() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    avoid_broken_dmabuf_renderer()?;
    let file = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    tauri::Builder::default()
        .plugin(tauri_plugin_single_instance::init(|app, arguments, folder| {
            let file = arguments.get(1).map(|file| std::path::Path::new(&folder).join(file));
            show_main_window(app, file);
        }))
        .plugin(tauri_plugin_dialog::init())
        .invoke_handler(tauri::generate_handler![
            commands::application_state,
            commands::list_models,
            commands::recommend_models,
            commands::install_model,
            commands::cancel_install,
            commands::load_model,
            commands::complete,
            commands::cancel_completion,
            commands::initial_document,
            commands::open_document,
            commands::save_document,
        ])
        .setup(move |app| {
            app.manage(Application::new(app.handle().clone(), file));
            let handle = app.handle().clone();
            std::thread::Builder::new()
                .name("start".to_owned())
                .spawn(move || handle.state::<Application>().load_default_model())?;
            WebviewWindowBuilder::new(app, "main", WebviewUrl::default())
                .title("sateen")
                .inner_size(1100.0, 720.0)
                .min_inner_size(560.0, 360.0)
                .on_navigation(is_ours)
                .build()?;
            Ok(())
        })
        .run(tauri::generate_context!())
        .context("the window system")
}

/// The app's own origin: `tauri://localhost`, on Windows `http://tauri.localhost`. Whatever else listens on this
/// machine is none of ours.
fn is_ours(url: &tauri::Url) -> bool {
    let (scheme, host) = if cfg!(windows) { ("http", "tauri.localhost") } else { ("tauri", "localhost") };
    url.scheme() == scheme && url.host_str() == Some(host) && url.port().is_none()
}

/// A second start shows the window of the first, with the file it was given.
fn show_main_window(app: &tauri::AppHandle, file: Option<std::path::PathBuf>) {
    if let Some(window) = app.get_webview_window("main") {
        // Some window systems refuse to raise a window; it is there all the same.
        let _ = window.unminimize().and_then(|()| window.set_focus());
    }
    if let Some(file) = file {
        let opened = app.state::<Application>().documents().open(&file);
        let event = match opened {
            Ok(document) => DocumentEvent::Opened(document),
            Err(error) => DocumentEvent::Failed(error.into()),
        };
        // Fails only when the window is gone, and then there is nobody to tell.
        let _ = app.emit("document", event);
    }
}

/// WebKitGTK shows an empty window with some NVIDIA drivers (tauri-apps/tauri#9394). The variable
/// must be there before any thread is, so the program starts itself anew with it.
#[cfg(target_os = "linux")]
fn avoid_broken_dmabuf_renderer() -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    const VARIABLE: &str = "WEBKIT_DISABLE_DMABUF_RENDERER";
    let has_nvidia = std::path::Path::new("/proc/driver/nvidia").exists();
    if !has_nvidia || std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = std::process::Command::new(program);
    let error = command.args(std::env::args_os().skip(1)).env(VARIABLE, "1").exec();
    Err(error).context("starting this program anew")
}

#[cfg(test)]
mod tests;
