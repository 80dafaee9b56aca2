//! CPU kernels on plain slices: packed quantized linear layers, attention, norms.
//!
//! The principal types are [`PackedMatrix`], weights laid out so that one load serves many
//! activation rows, and [`Pool`], the threads that share the work. Every kernel treats a row for
//! itself, in an order of arithmetic that depends neither on how many rows share the call nor on
//! the number of threads nor on the instruction set: all tiers give the same bits.

// Arrays run in step by one index, which is what keeps them in registers.
#![allow(clippy::needless_range_loop)]

mod activations;
mod attention;
mod elementwise;
mod error;
mod kv_cache;
mod lanes;
mod linear;
mod low_rank;
mod memory;
mod packed;
mod pool;
mod roofline;
mod shared_slice;
mod tier;
mod top;
mod zeroed;

pub use activations::QuantizedRows;
pub use attention::{AttentionShape, AttentionSlices, attend};
pub use elementwise::{add_rows, exp, rms_norm, rms_norm_heads, rotate, swiglu};
pub use error::KernelError;
pub use kv_cache::{CacheType, CachedLayer, KvCache};
pub use linear::{
    LinearInput, LinearLayer, VocabularyOut, VocabularyRows, VocabularyScratch, project, project_swiglu,
    project_vocabulary,
};
pub use low_rank::LowRank;
pub use memory::give_back_freed_memory;
pub use packed::{BLOCK, DenseFormat, PackedMatrix, QuantizedFormat, ScaleLayout, TILE, WeightFormat};
pub use pool::Pool;
pub use roofline::{product_throughput, read_bandwidth};
pub(crate) use shared_slice::SharedSlice;
pub use tier::Tier;
pub(crate) use tier::per_tier;
pub use top::{N_TOP, TopLogits};
