//! What a client hears of its request: a bounded queue that never makes the engine wait.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{CancelToken, Completion, EngineError, Outcome, StepEvent};

/// Events that wait for a reader; when there are more, the youngest are one.
const MAX_WAITING: usize = 64;

#[derive(Debug, Default)]
struct Queue {
    steps: VecDeque<StepEvent>,
    end: Option<Result<Outcome, EngineError>>,
    has_ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Each change of the queue is whole, so it is sound even after a panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end of a queue of events.
#[derive(Debug)]
pub(super) struct EventSender(Arc<Shared>);

impl EventSender {
    pub(super) fn step(&self, event: StepEvent) {
        let mut queue = self.0.lock();
        if queue.steps.len() == MAX_WAITING
            && let Some(last) = queue.steps.back_mut()
        {
            last.append(event);
        } else {
            queue.steps.push_back(event);
        }
        self.0.changed.notify_all();
    }

    /// The last word; what comes later is lost.
    pub(super) fn end(&self, result: Result<Outcome, EngineError>) {
        let mut queue = self.0.lock();
        if !queue.has_ended {
            queue.end = Some(result);
            queue.has_ended = true;
            self.0.changed.notify_all();
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        // Whatever became of the engine, nobody waits for ever.
        self.end(Err(EngineError::Stopped));
    }
}

/// What happened to a request.
#[derive(Debug)]
pub enum Event {
    /// A forward pass, or several when the reader was slow.
    Step(StepEvent),
    /// The end.
    Ended(Result<Outcome, EngineError>),
}

/// A request under way: its events, and the way to cancel it. Dropping it cancels the request.
#[derive(Debug)]
pub struct Submission {
    shared: Arc<Shared>,
    cancel: CancelToken,
}

impl Submission {
    pub(super) fn new(cancel: CancelToken) -> (Self, EventSender) {
        let shared = Arc::new(Shared::default());
        (Self { shared: shared.clone(), cancel }, EventSender(shared))
    }

    /// Cancels the request within one forward pass.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// A token that does the same, from anywhere.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Waits for the next event; `None` after the end.
    #[must_use]
    pub fn next_event(&mut self) -> Option<Event> {
        let mut queue = self.shared.lock();
        loop {
            if let Some(step) = queue.steps.pop_front() {
                return Some(Event::Step(step));
            }
            if let Some(end) = queue.end.take() {
                return Some(Event::Ended(end));
            }
            if queue.has_ended {
                return None;
            }
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the end has come, but no longer than `patience`: for readers who want several steps at a time.
    pub fn wait_for_end(&self, patience: Duration) {
        let has_not_ended = |queue: &mut Queue| !queue.has_ended;
        // Late or not, what is there can be read.
        let _ = self.shared.changed.wait_timeout_while(self.shared.lock(), patience, has_not_ended);
    }

    /// Waits for events and takes all that are there; none after the end.
    #[must_use]
    pub fn next_events(&mut self) -> Vec<Event> {
        let mut events: Vec<Event> = self.next_event().into_iter().collect();
        let mut queue = self.shared.lock();
        events.extend(queue.steps.drain(..).map(Event::Step));
        events.extend(queue.end.take().map(Event::Ended));
        events
    }

    /// Waits for the end, telling `on_step` of every event before it.
    ///
    /// # Errors
    /// That of the request.
    pub fn wait(mut self, mut on_step: impl FnMut(StepEvent)) -> Result<Outcome, EngineError> {
        while let Some(event) = self.next_event() {
            match event {
                Event::Step(event) => on_step(event),
                Event::Ended(result) => return result,
            }
        }
        Err(EngineError::Stopped)
    }

    /// Waits for the completion.
    ///
    /// # Errors
    /// That of the request; [`EngineError::Stopped`] when it was cancelled.
    pub fn completion(self, on_step: impl FnMut(StepEvent)) -> Result<Completion, EngineError> {
        match self.wait(on_step)? {
            Outcome::Ended(completion) => Ok(*completion),
            Outcome::Superseded | Outcome::Cancelled => Err(EngineError::Stopped),
        }
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Piece;

    /// A reader that does not read costs neither time nor memory, and loses no text.
    #[test]
    fn events_of_a_slow_reader_are_merged() {
        let (mut submission, sender) = Submission::new(CancelToken::default());
        let piece = |idx: usize| Piece { text: format!("{idx},"), drafted: idx.is_multiple_of(3) };
        for idx in 0..1000 {
            sender.step(StepEvent { pieces: vec![piece(idx)], n_rows: 1, ..StepEvent::default() });
        }
        sender.end(Ok(Outcome::Cancelled));
        let (mut text, mut n_rows, mut n_events) = (String::new(), 0, 0);
        while let Some(Event::Step(event)) = submission.next_event() {
            text.extend(event.pieces.iter().map(|piece| piece.text.as_str()));
            n_rows += event.n_rows;
            n_events += 1;
        }
        assert_eq!(text, (0..1000).map(|idx| format!("{idx},")).collect::<String>());
        assert_eq!((n_rows, n_events), (1000, MAX_WAITING));
    }

    /// What is there is taken at once; after the end there is nothing, and nothing is waited for.
    #[test]
    fn events_are_taken_together() {
        let (mut submission, sender) = Submission::new(CancelToken::default());
        sender.step(StepEvent::default());
        sender.step(StepEvent::default());
        submission.wait_for_end(Duration::ZERO);
        assert!(matches!(submission.next_events().as_slice(), [Event::Step(_), Event::Step(_)]));
        sender.step(StepEvent::default());
        sender.end(Ok(Outcome::Cancelled));
        submission.wait_for_end(Duration::MAX);
        assert!(matches!(submission.next_events().as_slice(), [Event::Step(_), Event::Ended(_)]));
        assert!(submission.next_events().is_empty());
    }

    #[test]
    fn a_sender_that_is_gone_is_an_end() {
        let (submission, sender) = Submission::new(CancelToken::default());
        drop(sender);
        assert!(matches!(submission.wait(|_| ()), Err(EngineError::Stopped)));
    }
}
