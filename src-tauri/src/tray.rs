//! The icon in the tray, where the desktop has one. It is never the only way back: a second start shows the window.

use tauri::menu::{Menu, MenuItem};
use tauri::tray::TrayIconBuilder;
use tauri::{App, AppHandle};

/// Makes the icon. Without the system's library for it there is none.
pub(crate) fn build(app: &App) {
    let build = || -> tauri::Result<()> {
        let item = |id: &str, text: &str| MenuItem::with_id(app, id, text, true, None::<&str>);
        let items = [
            item("show", "Show sateen")?,
            item("clipboard", "Continue the clipboard")?,
            item("undo", "Undo the last copy")?,
            item("quit", "Quit")?,
        ];
        let menu = Menu::new(app)?;
        items.iter().try_for_each(|item| menu.append(item))?;
        let mut tray = TrayIconBuilder::with_id("sateen")
            .menu(&menu)
            .tooltip("sateen")
            .on_menu_event(|app, event| on_menu(app, event.id().as_ref()));
        if let Some(icon) = app.default_window_icon() {
            tray = tray.icon(icon.clone());
        }
        tray.build(app).map(|_| ())
    };
    // The binding panics where the library is missing (tauri-apps/tray-icon, `libappindicator-sys`).
    // What it would print says less than what is printed here.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let built = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build));
    std::panic::set_hook(hook);
    match built {
        Ok(Ok(())) => (),
        Ok(Err(error)) => eprintln!("sateen: no icon in the tray: {error}"),
        Err(_) => eprintln!("sateen: no icon in the tray: libayatana-appindicator3 is not installed"),
    }
}

fn on_menu(app: &AppHandle, id: &str) {
    match id {
        "show" => crate::show_main_window(app),
        "clipboard" => crate::popup::toggle(app),
        "undo" => crate::commands::popup::undo_or_say(app),
        _ => app.exit(0),
    }
}
