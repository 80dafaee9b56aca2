//! `sateen clipboard`: has the app complete what was copied.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;

/// The program of the window.
const PROGRAM: &str = if cfg!(windows) { "sateen-desktop.exe" } else { "sateen-desktop" };

/// Hands over to the app that runs, or starts it. For desktops where no program sees keys that were typed into
/// another: bind this command to keys in the settings of the desktop.
pub(crate) fn run() -> anyhow::Result<()> {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name(PROGRAM));
    let program = beside.filter(|program| program.exists()).unwrap_or_else(|| PathBuf::from(PROGRAM));
    let mut command = Command::new(&program);
    command.arg("--clipboard").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // An app that was not running goes on when this ends.
    command.spawn().with_context(|| {
        format!("cannot start {}, which comes with the desktop package", program.display())
    })?;
    Ok(())
}
