//! Models: weight files, tokenizers, one Llama-family forward pass, the KV cache, and the adapter
//! that teaches a frozen model its semantic adaptive tokens.
//!
//! The principal type is [`Model`]; a [`Sequence`] is a model with a cache, and is what
//! `speculate` calls a target. Files come from anywhere, so [`gguf`] checks a header before
//! anything is allocated for it.
//!
//! ```no_run
//! use model::{Model, ModelConfig};
//!
//! let model = Model::load(&ModelConfig::new("qwen2.5-coder-0.5b.gguf"))?;
//! let tokens = model.tokenizer().encode("fn main() {")?;
//! println!("{} layers, {} tokens", model.architecture().n_layers, tokens.len());
//! # Ok::<(), model::ModelError>(())
//! ```

#![forbid(unsafe_code)]

mod adapter;
mod architecture;
mod backend;
mod error;
mod forward;
pub mod gguf;
mod model;
mod network;
mod random_model;
mod sequence;
mod tokenizer;
mod weights;

pub use adapter::tensors::AdapterTensors;
pub use adapter::{AdapterSource, NativeSat, SatAdapter, SlotIds};
pub use architecture::{Architecture, Family, Multipliers, RopeLayout};
pub use backend::DRAFT_VOCABULARY;
pub use error::ModelError;
pub use gpu::DeviceInfo;
pub use kernels::{CacheType, give_back_freed_memory};
pub use model::{Device, Model, ModelConfig, ModelSummary};
pub use random_model::{RandomModelConfig, write_random_model};
pub use sequence::{CancellableSequence, Sequence};
pub use tokenizer::{InfillToken, StreamDecoder, Tokenizer, TokenizerError, TokenizerKind};
pub use weights::sha256_of_file;
