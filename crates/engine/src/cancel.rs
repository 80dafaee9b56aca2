//! Cancellation: an outcome, not an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const RUNNING: u8 = 0;
const CANCELLED: u8 = 1;
const SUPERSEDED: u8 = 2;

/// A flag that the work looks at between forward passes, and between the layers of one that decodes. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicU8>);

impl CancelToken {
    /// Asks the work to stop.
    pub fn cancel(&self) {
        self.stop(CANCELLED);
    }

    /// Asks the work to stop, since newer work takes its place.
    pub(crate) fn supersede(&self) {
        self.stop(SUPERSEDED);
    }

    fn stop(&self, why: u8) {
        // Whoever came first has the say; that it was lost means that someone did.
        let _ = self.0.compare_exchange(RUNNING, why, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether someone asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) != RUNNING
    }

    /// Whether newer work took its place.
    pub(crate) fn is_superseded(&self) -> bool {
        self.0.load(Ordering::Relaxed) == SUPERSEDED
    }
}
