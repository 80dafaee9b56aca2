//! What became of completions, on this computer only: when, how long they took, what of them was accepted. Never
//! a text, neither of a prompt nor of a completion.
//!
//! [`History`] is an SQLite file. Times come from the caller, in milliseconds since 1970.

#![forbid(unsafe_code)]

mod insight;
mod store;

pub use insight::{DrafterShare, Insight, Period, SlotShare};
pub use store::{Entry, Fate, History, HistoryError};
