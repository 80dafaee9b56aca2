//! A hotkey where no program sees keys that were typed into another: the desktop's portal is asked for it
//! (`org.freedesktop.portal.GlobalShortcuts`: KDE, Hyprland, GNOME from 48 on).

#![forbid(unsafe_code)]

/// Why the portal gives no hotkey.
#[derive(Debug, thiserror::Error)]
pub enum PortalError {
    /// There is no portal for it, or it fails.
    #[cfg(target_os = "linux")]
    #[error("this desktop gives no program such keys ({0})")]
    Portal(#[from] ashpd::Error),
    /// The user, or the desktop, gave no keys.
    #[error("the desktop has bound no keys to it")]
    NotBound,
    /// The system gives no thread to listen on.
    #[error("no thread to listen on: {0}")]
    Thread(#[from] std::io::Error),
    /// There are no portals.
    #[error("this system has no portals")]
    NoPortals,
}

/// Asks for `keys`, as in `Ctrl+Alt+Space`, and listens. `on_bound` is told the keys that the desktop has bound, in
/// its own words, which may take as long as a dialog does; then `on_press` is called at every press, until it says
/// that nobody listens any more.
///
/// # Errors
/// [`PortalError::Thread`]; everything else comes to `on_bound`.
pub fn listen(
    keys: &str,
    description: &str,
    on_bound: impl FnOnce(Result<String, PortalError>) + Send + 'static,
    on_press: impl Fn() -> bool + Send + 'static,
) -> Result<(), PortalError> {
    let (trigger, description) = (trigger(keys), description.to_owned());
    let listen = move || implementation::listen(&trigger, &description, on_bound, &on_press);
    std::thread::Builder::new().name("portal".to_owned()).spawn(listen)?;
    Ok(())
}

#[cfg(target_os = "linux")]
mod implementation {
    use ashpd::desktop::global_shortcuts::{GlobalShortcuts, NewShortcut, Shortcut};
    use futures_lite::{StreamExt, future};

    use super::PortalError;

    const ID: &str = "clipboard";

    pub(super) fn listen(
        trigger: &str,
        description: &str,
        on_bound: impl FnOnce(Result<String, PortalError>),
        on_press: &dyn Fn() -> bool,
    ) {
        future::block_on(async {
            let bind = async {
                let portal = GlobalShortcuts::new().await?;
                let session = portal.create_session(Default::default()).await?;
                // Before the keys are bound, so that no press is missed.
                let activated = portal.receive_activated().await?;
                let shortcut = NewShortcut::new(ID, description).preferred_trigger(trigger);
                let request = portal.bind_shortcuts(&session, &[shortcut], None, Default::default()).await?;
                let bound = request.response()?;
                let words = bound.shortcuts().first().map(Shortcut::trigger_description);
                let words = words.ok_or(PortalError::NotBound)?.to_owned();
                Ok((portal, session, activated, words))
            };
            match bind.await {
                Ok((_portal, session, activated, words)) => {
                    on_bound(Ok(words));
                    let mut activated = std::pin::pin!(activated);
                    while let Some(event) = activated.next().await {
                        if event.shortcut_id() == ID && !on_press() {
                            break;
                        }
                    }
                    // A session that cannot be closed ends with the connection.
                    let _ = session.close().await;
                }
                Err(error) => on_bound(Err(error)),
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
mod implementation {
    use super::PortalError;

    pub(super) fn listen(
        _trigger: &str,
        _description: &str,
        on_bound: impl FnOnce(Result<String, PortalError>),
        _on_press: &dyn Fn() -> bool,
    ) {
        on_bound(Err(PortalError::NoPortals));
    }
}

/// Keys as the XDG shortcuts specification writes them: `CTRL+ALT+space`.
fn trigger(keys: &str) -> String {
    let part = |part: &str| match part.trim() {
        "Ctrl" | "Control" => "CTRL".to_owned(),
        "Alt" => "ALT".to_owned(),
        "Shift" => "SHIFT".to_owned(),
        "Super" | "Meta" | "Command" => "LOGO".to_owned(),
        "Enter" => "Return".to_owned(),
        "Space" => "space".to_owned(),
        key if key.chars().count() == 1 => key.to_lowercase(),
        key => key.to_owned(),
    };
    keys.split('+').map(part).collect::<Vec<_>>().join("+")
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_written_as_portals_want_them() {
        for (keys, expected) in [
            ("Ctrl+Alt+Space", "CTRL+ALT+space"),
            ("Shift+Super+J", "SHIFT+LOGO+j"),
            ("Ctrl+F9", "CTRL+F9"),
            ("Alt+Enter", "ALT+Return"),
        ] {
            assert_eq!(super::trigger(keys), expected);
        }
    }
}
