//! Completions: asked for, told as they go on, remembered.

use std::time::{Duration, Instant};

use engine::{
    Completion, CompletionRequest, EngineError, Event, Outcome, Speculation, StepEvent, Submission,
};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::error::CommandError;
use crate::state::{Application, Client};

/// The text around the cursor.
#[derive(Clone, Debug, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub struct CompleteArguments {
    /// What stands before it.
    pub prefix: String,
    /// What stands behind it.
    pub suffix: String,
    /// What the window calls the tab.
    pub key: String,
    /// Name of the file.
    pub name: String,
    /// Where the file is, as it was told; empty for what was never saved.
    pub path: String,
    /// Other completions of the same place.
    pub n_alternatives: u32,
}

/// Steps that come within so long are told together, in a completion that was asked for `elapsed` ago: drawing a page takes
/// a core from the model, and nobody reads faster. The more there is already, the longer a drawing takes and the less it
/// brings.
fn between_drawings(elapsed: Duration) -> Duration {
    (elapsed / 5).clamp(Duration::from_millis(120), Duration::from_millis(300))
}

/// How a completion went on. The window gets one message per forward pass, or fewer when it is slow.
#[derive(Clone, Debug, Serialize, TS)]
#[serde(tag = "event", rename_all = "snake_case")]
#[ts(export)]
pub enum CompletionEvent {
    /// A forward pass brought text.
    Step(StepEvent),
    /// It ended.
    Ended {
        /// What it is.
        completion: Completion,
        /// Its number in the history, if it is kept.
        #[ts(type = "number | null")]
        entry: Option<i64>,
    },
    /// A newer request took its place.
    Superseded,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed(CommandError),
}

/// Work that the engine has taken.
pub struct Begun {
    pub(crate) client: Client,
    pub(crate) submission: Submission,
    pub(crate) started: Instant,
}

impl Application {
    /// Asks for a completion in the editor.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoModel`] where none was ever loaded.
    pub fn complete(&self, arguments: CompleteArguments) -> Result<Begun, EngineError> {
        let request = self.editor_request(arguments);
        let started = Instant::now();
        Ok(Begun { client: Client::Editor, submission: self.submit(Client::Editor, request)?, started })
    }

    /// Has what the model is told of a place computed ahead, where someone may begin to type: the first completion there
    /// comes as soon as any other.
    pub fn prepare(&self, arguments: CompleteArguments) {
        let request = self.editor_request(arguments);
        // The cache is what is wanted; the token is what a request must ask for.
        self.submit_ahead(CompletionRequest {
            max_tokens: 1,
            n_alternatives: 0,
            speculation: Speculation::Off,
            ..request
        });
    }

    fn editor_request(&self, arguments: CompleteArguments) -> CompletionRequest {
        let CompleteArguments { prefix, suffix, key, name, path, n_alternatives } = arguments;
        CompletionRequest {
            path: Some(self.path_for_model(&path, &name)),
            repository: self.repository(),
            other_files: self.other_files(&key),
            n_alternatives: n_alternatives as usize,
            ..self.request(prefix, suffix)
        }
    }

    /// Hands the events of a completion to `tell` until it ends, and remembers it. It is given up when `tell` says
    /// `false`: nobody listens any more.
    pub fn follow(&self, begun: Begun, mut tell: impl FnMut(CompletionEvent) -> bool) {
        let Begun { client, mut submission, started } = begun;
        loop {
            let events = submission.next_events();
            if events.is_empty() {
                return;
            }
            for event in events {
                let event = match event {
                    Event::Step(step) => CompletionEvent::Step(step),
                    Event::Ended(Ok(Outcome::Ended(completion))) => {
                        let elapsed_ms = started.elapsed().as_secs_f64() * 1000.0;
                        let entry = self.record(client, &completion, elapsed_ms);
                        CompletionEvent::Ended { completion: *completion, entry }
                    }
                    Event::Ended(Ok(Outcome::Superseded)) => CompletionEvent::Superseded,
                    Event::Ended(Ok(Outcome::Cancelled)) => CompletionEvent::Cancelled,
                    Event::Ended(Err(error)) => CompletionEvent::Failed(error.into()),
                };
                // Dropping the submission cancels it.
                if !tell(event) {
                    return;
                }
            }
            submission.wait_for_end(between_drawings(started.elapsed()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_are_further_apart_the_longer_a_completion_takes() {
        let between =
            [0, 500, 1000, 60_000].map(|ms| between_drawings(Duration::from_millis(ms)).as_millis());
        assert_eq!(between, [120, 120, 200, 300]);
    }
}
