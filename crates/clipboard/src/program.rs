//! Which program has the focus.

#[cfg(target_os = "linux")]
use x11rb::{connection::Connection, protocol::xproto::AtomEnum, protocol::xproto::ConnectionExt};

/// The class of the program whose window has the focus (`WM_CLASS`, X11), as in `Firefox`. `None` where the desktop
/// does not say.
#[cfg(target_os = "linux")]
pub fn focused_program() -> Option<String> {
    const MAX_CLASS: u32 = 256;
    let (connection, screen) = x11rb::connect(None).ok()?;
    let root = connection.setup().roots.get(screen)?.root;
    let active = connection.intern_atom(true, b"_NET_ACTIVE_WINDOW").ok()?.reply().ok()?.atom;
    let window = connection.get_property(false, root, active, AtomEnum::WINDOW, 0, 1).ok()?.reply().ok()?;
    let window = window.value32()?.next()?;
    let class = connection.get_property(false, window, AtomEnum::WM_CLASS, AtomEnum::STRING, 0, MAX_CLASS);
    let class = class.ok()?.reply().ok()?.value;
    // The name of the instance, then that of the class, each with a zero behind it.
    let class = String::from_utf8_lossy(&class);
    class.split('\0').rfind(|part| !part.is_empty()).map(str::to_owned)
}

/// The class of the program whose window has the focus, where that is known.
#[cfg(not(target_os = "linux"))]
pub fn focused_program() -> Option<String> {
    None
}
