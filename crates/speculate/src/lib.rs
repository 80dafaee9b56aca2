//! Speculative decoding, without a model.
//!
//! The principal function is [`step()`]: it lays out one forward pass as a [`RowPlan`], asks a
//! [`Target`] for its logits, and verifies the drafts in it by [`sample_match`]. A [`Drafter`]
//! says what to draft next. Everything here is pure: no tensors, no IO and no clock, so that the
//! one promise of the project, *speculative output equals ordinary output*, can be tested with
//! toy targets by the thousand.
//!
//! ```
//! use speculate::{DraftTree, sample_match};
//!
//! let drafts = DraftTree::chain(&[5, 6, 7]);
//! // The target's own choices, by depth: it agrees with 5 and 6, then wants 9.
//! let verified = sample_match(&drafts, |node| Ok::<u32, ()>(match node { None => 5, Some(0) => 6, _ => 9 })).unwrap();
//! assert_eq!((verified.path, verified.next), (vec![0, 1], 9));
//! ```

#![forbid(unsafe_code)]

mod calibration;
mod drafter;
mod drafters;
mod logits;
mod markov;
mod published_tree;
mod router;
mod rows;
mod sampling;
mod step;
mod tree;
mod verify;
mod width;

pub use drafter::{AdaptiveGroup, Drafter, OrdinaryDecoding, Proposal, SharedDrafter, TwoPassSdsat};
pub use drafters::{
    Corpus, CorpusDrafter, PhrasePool, PromptLookup, SemanticDrafter, SuffixDrafter, TokenRecycling,
};
pub use logits::{Logits, N_RANKED, Ranked, RowLogits, argmax, rank, rank_beside, ranked_probabilities};
pub use markov::{MarkovHead, Slots};
pub use published_tree::PublishedTree;
pub use router::{Router, RouterConfig};
pub use rows::{Layout, Row, RowInput, RowPlan, Wanted};
pub use sampling::{PENALTY_WINDOW, Sampler, SamplingError, SamplingParams};
pub use step::{StepError, StepOutcome, Target, VerifiedRow, step, step_among};
pub use tree::{DraftNode, DraftSource, DraftTree};
pub use verify::{Verified, sample_match};
pub use width::{Decision, PassCosts};
