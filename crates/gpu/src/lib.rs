//! GPU kernels in CubeCL, and the devices that they run on: CUDA, Vulkan and Metal.
//!
//! Every kernel treats each row of activations for itself, in an order of arithmetic that does not depend on how many
//! rows there are, with fused operations where it says so and nowhere else.

#![deny(unsafe_op_in_unsafe_fn)]

mod attention;
mod block_products;
mod cache;
mod context;
mod device;
mod error;
mod linear;
mod matrix_units;
mod memory_pool;
mod number_products;
mod operations;
mod packed;
mod packed_rows;
mod plan;
mod products;
mod rank;
mod rows;
mod speed;
mod tiles;
mod unit_products;

pub use cache::RotationConfig;
pub use context::{ATTENTION_CHUNK, AttentionSizes, CacheNumber, KvCache, PassRows, RotaryTables};
pub use device::{Api, Buffer, Device, DeviceInfo};
pub use error::GpuError;
pub use memory_pool::keep_freed_memory;
pub use operations::Ranking;
pub use packed::{BLOCK, ScaleLayout, TILE, WeightLayout};
pub use plan::{ADAPTIVE, ROW_WORDS};
pub use products::{Activations, Delta, GatedLayer, LinearLayer, Matrix, ProductExtent, RowRange};
pub use rank::N_RANKED;
