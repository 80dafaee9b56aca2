//! Keys and values: `[slots, kv_width]` for each layer. `N` is the type of their numbers.

use cubecl::prelude::*;

use crate::plan;

/// How pairs of a head are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RotationConfig {
    /// Numbers of a head.
    pub head_dim: u32,
    /// Of these, the first so many are rotated.
    pub rope_dim: u32,
    /// Pairs are half of that apart rather than beside each other.
    pub halves: bool,
}

/// The number at `i` of a row after rotation; `start` is where the row begins, `table` where the tables have its
/// position.
#[cube]
fn rotated(
    values: &Array<f32>,
    start: u32,
    i: u32,
    cos: &Array<f32>,
    sin: &Array<f32>,
    table: u32,
    #[comptime] config: RotationConfig,
) -> f32 {
    let within = i % config.head_dim;
    let mut value = values[(start + i) as usize];
    let n_pairs = comptime!(config.rope_dim / 2);
    if within < config.rope_dim {
        let mut pair = within / 2u32;
        let mut is_second = within % 2u32 == 1u32;
        let mut distance = 1u32;
        if comptime!(config.halves) {
            pair = within % n_pairs;
            is_second = within >= n_pairs;
            distance = n_pairs;
        }
        let c = cos[(table + pair) as usize];
        let s = sin[(table + pair) as usize];
        if is_second {
            value = fma(values[(start + i - distance) as usize], s, value * c);
        } else {
            value = fma(-values[(start + i + distance) as usize], s, value * c);
        }
    }
    value
}

/// A number as the cache keeps it: what is too large for it becomes the largest.
#[cube]
fn kept<N: Float>(value: f32, largest: f32) -> N {
    N::cast_from(f32::clamp(value, -largest, largest))
}

/// Rotates queries and keys of a pass to their positions, and writes keys and values into their slots, which follow
/// `n_committed` others. A unit for each number of a row. Of rows aside `unturned` keeps keys as they were, from `first_unturned`
/// on.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn rotate_and_store<N: Float>(
    queries: &Array<f32>,
    keys: &Array<f32>,
    values: &Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    plan: &Array<u32>,
    rotated_queries: &mut Array<f32>,
    cached_keys: &mut Array<N>,
    cached_values: &mut Array<N>,
    unturned: &mut Array<f32>,
    query_width: u32,
    kv_width: u32,
    n_committed: u32,
    first_unturned: u32,
    largest: f32,
    #[comptime] config: RotationConfig,
    #[comptime] is_aside: bool,
) {
    let row = CUBE_POS_X;
    let position = plan[(row * plan::ROW_WORDS + plan::POSITION) as usize];
    let table = position * comptime!(config.rope_dim / 2);
    let i = CUBE_POS_Y * CUBE_DIM + UNIT_POS;
    if i < query_width {
        rotated_queries[(row * query_width + i) as usize] =
            rotated(queries, row * query_width, i, cos, sin, table, config);
    }
    if i < kv_width {
        let slot = (n_committed + row) * kv_width + i;
        let key = rotated(keys, row * kv_width, i, cos, sin, table, config);
        cached_keys[slot as usize] = kept::<N>(key, largest);
        cached_values[slot as usize] = kept::<N>(values[(row * kv_width + i) as usize], largest);
        if comptime!(is_aside) {
            unturned[((first_unturned + row) * kv_width + i) as usize] = keys[(row * kv_width + i) as usize];
        }
    }
}

/// Gives the keys of `unturned` the positions from `first_position` on, in the slots from `first_slot` on.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn turn<N: Float>(
    unturned: &Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    cached_keys: &mut Array<N>,
    kv_width: u32,
    first_slot: u32,
    first_position: u32,
    largest: f32,
    #[comptime] config: RotationConfig,
) {
    let row = CUBE_POS_X;
    let table = (first_position + row) * comptime!(config.rope_dim / 2);
    let mut i = UNIT_POS;
    while i < kv_width {
        let key = rotated(unturned, row * kv_width, i, cos, sin, table, config);
        cached_keys[((first_slot + row) * kv_width + i) as usize] = kept::<N>(key, largest);
        i += CUBE_DIM;
    }
}

/// Moves slot `n_base + moves[i]` to slot `n_base + i`, for ascending `moves`. A unit for each column, so that nothing
/// is overwritten before it is read.
#[cube(launch_unchecked)]
pub(crate) fn compact<N: Float>(
    cached_keys: &mut Array<N>,
    cached_values: &mut Array<N>,
    moves: &Array<u32>,
    n_moves: u32,
    n_base: u32,
    kv_width: u32,
) {
    let column = ABSOLUTE_POS as u32;
    if column < kv_width {
        for i in 0..n_moves {
            let from = (n_base + moves[i as usize]) * kv_width + column;
            let to = (n_base + i) * kv_width + column;
            cached_keys[to as usize] = cached_keys[from as usize];
            cached_values[to as usize] = cached_values[from as usize];
        }
    }
}

/// Copies the first `n` numbers.
#[cube(launch_unchecked)]
pub(crate) fn copy<N: Numeric>(from: &Array<N>, to: &mut Array<N>, n: u32) {
    if ABSOLUTE_POS < n as usize {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}
