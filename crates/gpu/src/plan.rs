//! A row plan on a device: one buffer, uploaded once a pass.
//!
//! Six words for each row, then the lists that they point to:
//! input (a token, or [`ADAPTIVE`] and a slot), position, the first and the last but one of the committed slots that
//! are hidden from it, where its list of other slots begins, and how long that is. A list has the slots of its
//! ancestors in order and its own last.

/// Words of a row.
pub const ROW_WORDS: u32 = 6;
/// From here on inputs are adaptive.
pub const ADAPTIVE: u32 = 1 << 31;
/// Where a row has what.
pub(crate) const POSITION: u32 = 1;
pub(crate) const HIDDEN_START: u32 = 2;
pub(crate) const HIDDEN_END: u32 = 3;
pub(crate) const LIST_START: u32 = 4;
pub(crate) const LIST_LEN: u32 = 5;
