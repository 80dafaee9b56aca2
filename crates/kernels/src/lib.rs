//! CPU kernels on plain slices: packed quantized linear layers, attention, norms.
//!
//! The principal types are [`PackedMatrix`], weights laid out so that one load serves many
//! activation rows, and [`Pool`], the threads that share the work. Every kernel treats a row for
//! itself, in an order of arithmetic that depends neither on how many rows share the call nor on
//! the number of threads nor on the instruction set: all tiers give the same bits.

mod activations;
mod attention;
mod elementwise;
mod linear;
mod packed;
mod pool;
mod tier;

pub use activations::QuantizedRows;
pub use attention::{AttentionShape, AttentionSlices, attend, dot};
pub use elementwise::{add_low_rank, exp, rms_norm, swiglu};
pub use linear::linear;
pub use packed::{BLOCK, PackedMatrix, QuantizedFormat, TILE};
pub use pool::Pool;
pub use tier::Tier;
