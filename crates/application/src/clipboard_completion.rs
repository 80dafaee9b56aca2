//! What was copied, and how it goes on.

use std::time::Instant;

use clipboard::ClipboardError;
use engine::{CancelToken, CompletionRequest, EngineError};
use serde::Serialize;
use ts_rs::TS;

use crate::completion::{Begun, CompletionEvent};
use crate::error::CommandError;
use crate::state::{Application, Client, lock};

/// Lines of the copied text that are shown.
const TAIL_LINES: usize = 6;
/// What gives another text than the likeliest tokens do.
const RETRY_TEMPERATURE: f32 = 0.7;

/// What the window over the clipboard shows before a text comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, TS)]
#[ts(export)]
pub struct PopupContent {
    /// The end of what was copied, up to the cursor.
    pub tail: String,
    /// Why there is nothing to complete, for people.
    pub problem: Option<String>,
}

/// A text from the clipboard that is being completed.
pub struct ClipboardCompletion {
    before: String,
    after: String,
    content: PopupContent,
    /// The work, until someone follows it.
    begun: Option<Result<Begun, EngineError>>,
    cancel: CancelToken,
    n_retries: u64,
}

impl ClipboardCompletion {
    /// For a text with at most one `marker` at the cursor; without it, or with an empty one, the cursor is at the end.
    fn new(text: &str, problem: Option<String>, marker: &str) -> Self {
        let at_marker = text.split_once(marker).filter(|_| !marker.is_empty());
        let (before, after) = at_marker.unwrap_or((text, ""));
        let lines: Vec<&str> = before.split('\n').collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        Self {
            before: before.to_owned(),
            after: after.to_owned(),
            content: PopupContent { tail, problem },
            begun: None,
            cancel: CancelToken::default(),
            n_retries: 0,
        }
    }
}

impl Application {
    /// Reads the clipboard, and asks for what comes next. It is nobody's yet: see
    /// [`show_clipboard_completion`](Self::show_clipboard_completion).
    pub fn begin_clipboard_completion(&self) -> ClipboardCompletion {
        self.begin_completion_of(self.clipboard.read())
    }

    pub(crate) fn begin_completion_of(
        &self,
        text: Result<Option<String>, ClipboardError>,
    ) -> ClipboardCompletion {
        let (text, problem) = match text {
            Ok(Some(text)) => (text, None),
            Ok(None) => {
                (String::new(), Some("There is no text in the clipboard. Copy some code first.".to_owned()))
            }
            Err(error) => (String::new(), Some(error.to_string())),
        };
        let mut current = ClipboardCompletion::new(&text, problem, &self.settings().clipboard.cursor_marker);
        if current.content.problem.is_none() {
            current.begun = Some(self.ask(&mut current));
        }
        current
    }

    fn ask(&self, current: &mut ClipboardCompletion) -> Result<Begun, EngineError> {
        let request = self.request(current.before.clone(), current.after.clone());
        let mut sampling = request.sampling.clone();
        if current.n_retries > 0 {
            sampling.temperature = sampling.temperature.max(RETRY_TEMPERATURE);
            sampling.seed = current.n_retries;
        }
        let max_tokens = self.settings().clipboard.max_tokens;
        let submission = self.submit(Client::Popup, CompletionRequest { max_tokens, sampling, ..request })?;
        current.cancel = submission.cancel_token();
        Ok(Begun { client: Client::Popup, submission, started: Instant::now() })
    }

    /// Makes `completion` the one that the window over the clipboard shows.
    pub fn show_clipboard_completion(&self, completion: ClipboardCompletion) {
        *lock(&self.clipboard_completion) = Some(completion);
    }

    /// Ends what the window over the clipboard shows, and the work for it.
    pub fn end_clipboard_completion(&self) {
        if let Some(current) = lock(&self.clipboard_completion).take() {
            current.cancel.cancel();
        }
    }

    /// What the window over the clipboard shows.
    pub fn popup_content(&self) -> PopupContent {
        let current = lock(&self.clipboard_completion);
        current.as_ref().map(|current| current.content.clone()).unwrap_or_default()
    }

    /// The work for the window over the clipboard, where there is any; with `again` for another text. A page that
    /// asks anew, because it was loaded again or because the model is there by now, gets the text of its first time.
    pub fn take_clipboard_completion(&self, again: bool) -> Option<Result<Begun, EngineError>> {
        let mut current = lock(&self.clipboard_completion);
        let current = current.as_mut().filter(|current| current.content.problem.is_none())?;
        current.n_retries += u64::from(again);
        let begun = current.begun.take().filter(|_| !again);
        Some(begun.unwrap_or_else(|| self.ask(current)))
    }

    /// Puts a continuation into the clipboard, or with `whole` what was copied and the continuation in its place.
    ///
    /// # Errors
    ///
    /// Nothing is being completed, or the clipboard refuses.
    pub fn accept_clipboard_completion(&self, continuation: &str, whole: bool) -> Result<(), CommandError> {
        let current = lock(&self.clipboard_completion);
        let Some(current) = current.as_ref() else {
            return Err(CommandError::invalid("nothing of the clipboard is being completed"));
        };
        let text = match whole {
            true => format!("{}{continuation}{}", current.before, current.after),
            false => continuation.to_owned(),
        };
        Ok(self.clipboard.write(text)?)
    }

    /// Without a window: puts the continuation into the clipboard when it is whole. What to tell people of it;
    /// `None` when something newer took its place. Waits for the engine.
    pub fn complete_clipboard_silently(&self, current: ClipboardCompletion) -> Option<String> {
        let begun = match current.begun {
            Some(Ok(begun)) => begun,
            Some(Err(error)) => return Some(error.to_string()),
            None => return current.content.problem,
        };
        let started = begun.started;
        let mut words = None;
        self.follow(begun, |event| {
            words = match event {
                CompletionEvent::Ended { completion, .. } if completion.text.is_empty() => {
                    Some("Nothing to add here.".to_owned())
                }
                CompletionEvent::Ended { completion, .. } => {
                    let ms = started.elapsed().as_millis();
                    let copied = format!("Continuation copied: {} tokens in {ms} ms.", completion.n_tokens);
                    let written = self.clipboard.write(completion.text);
                    Some(written.map_or_else(|error| error.to_string(), |()| copied))
                }
                CompletionEvent::Failed(error) => Some(error.message),
                CompletionEvent::Step(_) | CompletionEvent::Superseded | CompletionEvent::Cancelled => None,
            };
            true
        });
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_the_cursor() {
        let completion = ClipboardCompletion::new("a = f(<|>)\n", None, "<|>");
        assert_eq!((completion.before.as_str(), completion.after.as_str()), ("a = f(", ")\n"));
        for marker in ["<|>", ""] {
            let completion = ClipboardCompletion::new("a = f(", None, marker);
            assert_eq!((completion.before.as_str(), completion.after.as_str()), ("a = f(", ""));
        }
    }

    #[test]
    fn the_last_lines_are_shown() {
        let text: Vec<String> = (0..9).map(|n| n.to_string()).collect();
        let completion = ClipboardCompletion::new(&text.join("\n"), None, "");
        assert_eq!(completion.content.tail, "3\n4\n5\n6\n7\n8");
    }
}
