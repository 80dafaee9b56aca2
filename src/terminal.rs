//! What a terminal may be sent, and what comes from one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// What Ctrl-C sets from now on, instead of ending the program.
pub(crate) fn interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let is_interrupted = Arc::new(AtomicBool::new(false));
    let of_signal = is_interrupted.clone();
    ctrlc::set_handler(move || of_signal.store(true, Ordering::Release)).context("listening for Ctrl-C")?;
    Ok(is_interrupted)
}

/// `text` with control characters other than newline and tab made visible: a model's output must
/// not steer the terminal that shows it.
pub(crate) fn printable(text: &str) -> String {
    let is_safe = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || is_bidi_control(c));
    text.chars().flat_map(|c| if is_safe(c) { vec![c] } else { c.escape_unicode().collect() }).collect()
}

/// Characters that reorder the text around them.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(printable("a\n\tb é 🦀"), "a\n\tb é 🦀");
        assert_eq!(printable("\u{1b}[2Jx\u{202e}y\r"), "\\u{1b}[2Jx\\u{202e}y\\u{d}");
    }
}
