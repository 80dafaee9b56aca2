//! Drafters: from semantic adaptive tokens, and from what costs no forward pass.

mod phrases;
mod prompt_lookup;
mod recycling;
mod semantic;
mod suffix;
mod suffix_automaton;

pub use phrases::PhrasePool;
pub use prompt_lookup::PromptLookup;
pub use recycling::TokenRecycling;
pub use semantic::SemanticDrafter;
pub use suffix::{Corpus, CorpusDrafter, SuffixDrafter};
