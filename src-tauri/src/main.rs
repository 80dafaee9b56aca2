//! The desktop app: a window over the engine.

#![forbid(unsafe_code)]
#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

mod commands;
mod hotkey;
mod popup;
mod tray;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use application::{Application, ApplicationConfig};
use tauri::{
    AppHandle, DragDropEvent, Emitter, Manager, WebviewUrl, WebviewWindow, WebviewWindowBuilder, Window,
    WindowEvent,
};
use tauri_plugin_autostart::MacosLauncher;
use tauri_plugin_window_state::StateFlags;

use crate::hotkey::Hotkey;

/// Completes the clipboard in the app that runs.
const CLIPBOARD_FLAG: &str = "--clipboard";
/// Starts without a window.
const HIDDEN_FLAG: &str = "--hidden";

/// A page that is not up by then will not be for long: the model is loaded beside it.
const PAGE_PATIENCE: Duration = Duration::from_millis(1500);

/// What the app is started for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Start {
    path: Option<PathBuf>,
    clipboard: bool,
    hidden: bool,
}

impl Start {
    /// Reads arguments, which come from `folder`.
    fn of(arguments: impl Iterator<Item = String>, folder: &Path) -> Self {
        let mut start = Self::default();
        for argument in arguments {
            match argument.as_str() {
                CLIPBOARD_FLAG => start.clipboard = true,
                HIDDEN_FLAG => start.hidden = true,
                path => start.path = Some(folder.join(path)),
            }
        }
        start
    }
}

fn main() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    avoid_renderer_without_use()?;
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let start = Start::of(arguments, &std::env::current_dir().unwrap_or_default());
    tauri::Builder::default()
        .plugin(tauri_plugin_single_instance::init(|app, arguments, folder| {
            let start = Start::of(arguments.into_iter().skip(1), Path::new(&folder));
            if start.clipboard {
                popup::toggle(app);
                return;
            }
            show_main_window(app);
            if let Some(path) = start.path {
                commands::files::open_from_outside(app, &path);
            }
        }))
        .plugin(tauri_plugin_dialog::init())
        .plugin(tauri_plugin_notification::init())
        .plugin(tauri_plugin_global_shortcut::Builder::new().build())
        .plugin(tauri_plugin_autostart::init(MacosLauncher::LaunchAgent, Some(vec![HIDDEN_FLAG])))
        .plugin(
            tauri_plugin_window_state::Builder::new()
                .with_state_flags(StateFlags::SIZE | StateFlags::POSITION | StateFlags::MAXIMIZED)
                .with_denylist(&[popup::LABEL])
                .build(),
        )
        .invoke_handler(tauri::generate_handler![
            commands::models::application_state,
            commands::models::list_models,
            commands::models::recommend_models,
            commands::models::install_model,
            commands::models::cancel_install,
            commands::models::load_model,
            commands::models::choose_adapter,
            commands::models::unload_model,
            commands::models::add_model,
            commands::models::remove_model,
            commands::models::measure_model,
            commands::completion::complete,
            commands::completion::prepare_completion,
            commands::completion::cancel_completion,
            commands::completion::resolve_completion,
            commands::completion::insight,
            commands::completion::clear_history,
            commands::files::startup,
            commands::files::open_document,
            commands::files::open_folder,
            commands::files::list_folder,
            commands::files::open_in_folder,
            commands::files::save_document,
            commands::files::close_document,
            commands::files::accept_change,
            commands::files::keep_draft,
            commands::files::remove_draft,
            commands::files::set_title,
            commands::settings::read_settings,
            commands::settings::change_setting,
            commands::settings::import_settings,
            commands::settings::export_settings,
            commands::settings::settings_path,
            commands::settings::list_devices,
            commands::popup::popup_content,
            commands::popup::popup_stream,
            commands::popup::popup_accept,
            commands::popup::popup_fit,
            commands::popup::popup_close,
            commands::popup::undo_clipboard,
        ])
        .on_window_event(on_window_event)
        .setup(move |app| {
            let windows = app.handle().clone();
            // Fails only when the windows are gone, and then there is nobody to tell.
            let on_state = move |state| _ = windows.emit("application_state", state);
            app.manage(Application::new(ApplicationConfig::of_user(start.path), on_state));
            app.manage(popup::Popup::default());
            let settings = app.state::<Application>().settings();
            app.manage(Mutex::new(Hotkey::Off));
            hotkey::register(app.handle(), &settings.clipboard.hotkey);
            tray::build(app);
            let is_hidden = start.hidden || start.clipboard || settings.start.hidden;
            let handle = app.handle().clone();
            std::thread::Builder::new().name("start".to_owned()).spawn(move || {
                let application = handle.state::<Application>();
                if !is_hidden {
                    // Late or not, the model is loaded then.
                    let _ = application.wait_for_page(PAGE_PATIENCE);
                }
                application.load_default_model();
            })?;
            let handle = app.handle().clone();
            let changes = std::thread::Builder::new().name("changes".to_owned());
            changes.spawn(move || commands::files::tell_changes(&handle))?;
            let window = WebviewWindowBuilder::new(app, "main", WebviewUrl::default())
                .title("sateen")
                .inner_size(1100.0, 720.0)
                .min_inner_size(560.0, 360.0)
                .visible(!is_hidden)
                .on_navigation(is_ours)
                .build()?;
            zoom(&window);
            if start.clipboard {
                popup::toggle(app.handle());
            }
            Ok(())
        })
        .run(tauri::generate_context!())
        .context("the window system")
}

fn on_window_event(window: &Window, event: &WindowEvent) {
    let app = window.app_handle();
    match (window.label(), event) {
        ("main", WindowEvent::CloseRequested { api, .. }) => {
            if app.state::<Application>().settings().start.keep_running {
                api.prevent_close();
                // A window that cannot be hidden stays, which is not worse.
                let _ = window.hide();
            } else {
                app.exit(0);
            }
        }
        ("main", WindowEvent::DragDrop(DragDropEvent::Drop { paths, .. })) => {
            for path in paths {
                match path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                    true => commands::models::add_dropped(app, path),
                    false => commands::files::open_from_outside(app, path),
                }
            }
        }
        (popup::LABEL, WindowEvent::Focused(has_focus)) => popup::on_focus(app, *has_focus),
        _ => (),
    }
}

/// Gives a page the size that the settings have for it.
fn zoom(window: &WebviewWindow) {
    // A page of the usual size is no reason to end.
    let _ = window.set_zoom(zoom_factor(window.app_handle()));
}

/// How large a pixel of a page is, against one of the window.
fn zoom_factor(app: &AppHandle) -> f64 {
    f64::from(app.state::<Application>().settings().appearance.zoom) / 100.0
}

/// The app's own origin: `tauri://localhost`, on Windows `http://tauri.localhost`. Whatever else listens on this
/// machine is none of ours.
fn is_ours(url: &tauri::Url) -> bool {
    let (scheme, host) = if cfg!(windows) { ("http", "tauri.localhost") } else { ("tauri", "localhost") };
    url.scheme() == scheme && url.host_str() == Some(host) && url.port().is_none()
}

/// Shows the window, wherever it is.
fn show_main_window(app: &AppHandle) {
    if let Some(window) = app.get_webview_window("main") {
        // Some window systems refuse to raise a window; it is there all the same.
        let _ = window.show().and_then(|()| window.unminimize()).and_then(|()| window.set_focus());
    }
}

/// WebKitGTK's renderer for graphics cards shows an empty window with some NVIDIA drivers (tauri-apps/tauri#9394), and
/// where there is no card it takes 70 MB more and five times the processor at rest. The variable that turns it off must
/// be there before any thread is, so the program starts itself anew with it.
#[cfg(target_os = "linux")]
fn avoid_renderer_without_use() -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    const VARIABLE: &str = "WEBKIT_DISABLE_DMABUF_RENDERER";
    let has_nvidia = Path::new("/proc/driver/nvidia").exists();
    let cards = std::fs::read_dir("/dev/dri").into_iter().flatten().flatten();
    let has_card =
        cards.map(|card| card.file_name()).any(|name| name.to_string_lossy().starts_with("renderD"));
    if (has_card && !has_nvidia) || std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = std::process::Command::new(program);
    let error = command.args(std::env::args_os().skip(1)).env(VARIABLE, "1").exec();
    Err(error).context("starting this program anew")
}

#[cfg(test)]
mod tests;
