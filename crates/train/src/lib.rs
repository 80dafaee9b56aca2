//! Training semantic adaptive tokens for a frozen model.
//!
//! The principal function is [`train()`]: it takes a [`Base`] and a [`Corpus`] and leaves an adapter, which the engine
//! decodes with. The base's weights are never touched, so its output stays what it was bit for bit. Token rows run once
//! without gradient; rows of adaptive tokens hang off *anchors* in the text, and alone carry it (SDSAT, arXiv 2403.18647;
//! the layout of a batch is that of BiTA, arXiv 2401.12522, and PARD, arXiv 2504.18583).

#![forbid(unsafe_code)]

mod adapter;
mod attention;
mod base;
mod batch;
mod checkpoint;
mod corpus;
mod delta;
mod device;
mod error;
mod evaluate;
mod frozen;
mod gradients;
mod loss;
mod native;
mod network;
mod norm;
mod optimizer;
mod outside;
mod rotation;
mod rows;
mod run;
mod sample;
mod softmax;
mod swiglu;
mod tensor_file;

pub use adapter::{AdapterPart, AdapterShape, TrainedAdapter};
pub use base::{Activations, Base};
pub use batch::{Anchors, Batch};
pub use corpus::{Corpus, CorpusCount, Split, WritingPrompt};
pub use device::TrainDevice;
pub use error::TrainError;
pub use evaluate::{SlotAcceptance, evaluate, evaluate_by_language, evaluate_native};
pub use gradients::{loss_and_gradients, loss_of};
pub use loss::{LossConfig, LossRows, slot_loss};
pub use model::NativeSat;
pub use native::{NativeConfig, NativeModel, Stage, train_native};
pub use optimizer::{AdamW, AdamWConfig, Schedule};
pub use run::{TrainConfig, TrainEvent, TrainOutcome, logits_behind, train};
pub use sample::{Sample, SampleConfig};
