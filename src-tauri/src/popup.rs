//! The window over the clipboard: it completes what was copied, from whatever program.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use application::{Application, ClipboardCompletion, lock};
use tauri::{
    AppHandle, Emitter, LogicalSize, Manager, PhysicalPosition, WebviewUrl, WebviewWindow,
    WebviewWindowBuilder, Wry,
};
use tauri_plugin_notification::NotificationExt;

/// Label of the window.
pub(crate) const LABEL: &str = "popup";
/// Width and height in logical pixels.
const SIZE: (f64, f64) = (560.0, 200.0);
const MIN_HEIGHT: f64 = 120.0;
/// A window that is hidden is kept for so long: it opens sooner than a new one, and takes memory, most where its page
/// has a process of its own.
const KEPT: Duration = Duration::from_secs(120);
/// A press of the hotkey within this time of losing the focus is why it was lost.
const SAME_PRESS: Duration = Duration::from_millis(200);

/// What is known of the window.
#[derive(Default)]
pub(crate) struct Popup {
    /// Whether the window has had the focus since it opened: only then losing it means something.
    had_focus: AtomicBool,
    /// How often it was opened.
    n_opened: AtomicU64,
    /// When it was closed because the focus went.
    left: Mutex<Option<Instant>>,
}

/// Opens the window with a completion under way, or closes it when it is open.
pub(crate) fn toggle(app: &AppHandle) {
    let (application, popup) = (app.state::<Application>(), app.state::<Popup>());
    // On X11 the keys take the focus away before they are told: the window is closed already, by the same press.
    let has_just_left = lock(&popup.left).take().is_some_and(|left| left.elapsed() < SAME_PRESS);
    if has_just_left || is_open(app) {
        close(app);
        return;
    }
    let begun = application.begin_clipboard_completion();
    if application.settings().clipboard.silent {
        let app = app.clone();
        // Without a thread there is nobody who would wait for the text.
        let _ = std::thread::Builder::new()
            .name("silent".to_owned())
            .spawn(move || complete_silently(&app, begun));
        return;
    }
    application.show_clipboard_completion(begun);
    say_failure(show(app));
}

fn is_open(app: &AppHandle) -> bool {
    app.get_webview_window(LABEL).is_some_and(|window| window.is_visible().unwrap_or(false))
}

fn show(app: &AppHandle) -> tauri::Result<()> {
    let popup = app.state::<Popup>();
    popup.had_focus.store(false, Ordering::Release);
    popup.n_opened.fetch_add(1, Ordering::AcqRel);
    if let Some(window) = app.get_webview_window(LABEL) {
        return present(&window);
    }
    #[cfg(target_os = "linux")]
    if let Some(main) = app.get_webview_window("main") {
        // Both pages in one process: another would take 50 MB more.
        let app = app.clone();
        let build = move |main: tauri::webview::PlatformWebview| {
            let built = builder(&app).with_related_view(main.inner()).build();
            say_failure(built.and_then(|window| present(&window)));
        };
        // From the main thread it would run here and now, with a lock of tauri's that `emit` waits for while it holds
        // another that a new window needs; from any other it runs in the main thread's turn, without.
        let ask = move || say_failure(main.with_webview(build));
        std::thread::Builder::new().name("popup".to_owned()).spawn(ask)?;
        return Ok(());
    }
    present(&builder(app).build()?)
}

fn builder(app: &AppHandle) -> WebviewWindowBuilder<'_, Wry, AppHandle> {
    let zoom = crate::zoom_factor(app);
    WebviewWindowBuilder::new(app, LABEL, WebviewUrl::App("popup.html".into()))
        .title("sateen: continue the clipboard")
        .inner_size(zoom * SIZE.0, zoom * SIZE.1)
        .decorations(false)
        .always_on_top(true)
        .skip_taskbar(true)
        .visible(false)
        .on_navigation(crate::is_ours)
}

fn say_failure(shown: tauri::Result<()>) {
    if let Err(error) = shown {
        eprintln!("sateen: the window over the clipboard cannot be shown: {error}");
    }
}

/// Shows the window, with the keyboard.
fn present(window: &WebviewWindow) -> tauri::Result<()> {
    let app = window.app_handle();
    crate::zoom(window);
    place(window, crate::zoom_factor(app) * SIZE.0)?;
    #[cfg(target_os = "linux")]
    {
        let window = window.clone();
        app.run_on_main_thread(move || take_focus(&window))?;
    }
    window.show()?;
    window.set_focus()?;
    app.emit_to(LABEL, "popup", ())
}

/// Window managers give no focus to a window that nobody in its program has asked for; the keys that did were
/// another's, so that it must be said when.
#[cfg(target_os = "linux")]
fn take_focus(window: &WebviewWindow) {
    use gtk::prelude::*;
    let Ok(window) = window.gtk_window() else { return };
    // Before it is shown, which is when it is decided who has the focus.
    window.realize();
    let Some(surface) = window.window().and_downcast::<gdkx11::X11Window>() else { return };
    let now = gdkx11::functions::x11_get_server_time(&surface);
    surface.set_user_time(now);
    window.present_with_time(now);
}

/// Where the pointer's monitor is: a quarter from its top, in its middle. Wayland places windows itself.
fn place(window: &WebviewWindow, width: f64) -> tauri::Result<()> {
    let pointer = window.cursor_position()?;
    let monitor = window.monitor_from_point(pointer.x, pointer.y)?.or(window.primary_monitor()?);
    if let Some(monitor) = monitor {
        let (size, origin) = (monitor.size(), monitor.position());
        // A window that was never shown does not know its size.
        let width = (width * monitor.scale_factor()) as u32;
        let x = origin.x + (size.width.saturating_sub(width) / 2) as i32;
        let y = origin.y + (size.height / 4) as i32;
        window.set_position(PhysicalPosition::new(x, y))?;
    }
    Ok(())
}

/// Gives the window the height of what it shows, in pixels of its page: at most 60 % of the screen.
pub(crate) fn fit(app: &AppHandle, height: f64) -> tauri::Result<()> {
    let Some(window) = app.get_webview_window(LABEL) else { return Ok(()) };
    let screen = window
        .current_monitor()?
        .map_or(800.0, |monitor| monitor.size().to_logical::<f64>(monitor.scale_factor()).height);
    let zoom = crate::zoom_factor(app);
    let height = if height.is_finite() { height.max(MIN_HEIGHT) } else { SIZE.1 };
    window.set_size(LogicalSize::new(zoom * SIZE.0, (zoom * height).min(0.6 * screen)))
}

/// Hides the window, and stops the work for it.
pub(crate) fn close(app: &AppHandle) {
    app.state::<Application>().end_clipboard_completion();
    if let Some(window) = app.get_webview_window(LABEL) {
        // It stays as it is only when it is gone.
        let _ = window.hide();
        // The page forgets what it shows, so that the next time does not begin with it.
        let _ = app.emit_to(LABEL, "popup_closed", ());
        let n_opened = app.state::<Popup>().n_opened.load(Ordering::Acquire);
        let give_back = move || {
            std::thread::sleep(KEPT);
            if window.state::<Popup>().n_opened.load(Ordering::Acquire) == n_opened {
                // Its memory is given back; the next time it is made anew.
                let _ = window.destroy();
            }
        };
        // Without a thread it is kept.
        let _ = std::thread::Builder::new().name("popup".to_owned()).spawn(give_back);
    }
}

/// A click elsewhere closes the window.
pub(crate) fn on_focus(app: &AppHandle, has_focus: bool) {
    let popup = app.state::<Popup>();
    if has_focus {
        popup.had_focus.store(true, Ordering::Release);
    } else if popup.had_focus.swap(false, Ordering::AcqRel) && is_open(app) {
        *lock(&popup.left) = Some(Instant::now());
        close(app);
    }
}

/// Hands what was accepted to the program that had the focus: types Ctrl+V where that is wanted and possible.
pub(crate) fn paste_if_wanted(app: &AppHandle) {
    if !app.state::<Application>().settings().clipboard.paste || clipboard::is_wayland() {
        return;
    }
    let paste_or_say = || {
        if let Err(error) = clipboard::paste() {
            eprintln!("sateen: {error}");
        }
    };
    // The text is in the clipboard all the same.
    let _ = std::thread::Builder::new().name("paste".to_owned()).spawn(paste_or_say);
}

/// Without a window: the continuation goes into the clipboard, and a notification says so.
fn complete_silently(app: &AppHandle, begun: ClipboardCompletion) {
    if let Some(words) = app.state::<Application>().complete_clipboard_silently(begun) {
        // A desktop without notifications has the text in the clipboard all the same.
        let _ = app.notification().builder().title("sateen").body(words).show();
    }
}
