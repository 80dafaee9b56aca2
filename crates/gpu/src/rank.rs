//! The likeliest tokens of rows of logits: of equal ones the lowest first.

use cubecl::prelude::*;

/// Tokens that are named for each row.
pub const N_RANKED: u32 = 8;
/// Units of a cube.
pub(crate) const RANK_UNITS: u32 = 256;
/// Logits of a cube.
pub(crate) const RANK_CHUNK: u32 = 2048;

/// Of `n` entries of each row, the largest [`N_RANKED`] of each chunk: their logits into `largest`, their tokens into
/// `tokens`, `[n_rows, n_chunks, N_RANKED]`. A cube has a chunk of a row. Where a logit is NaN, so is the first of its
/// chunk. With `has_tokens` the entries are those of an earlier run, whose tokens are in `entry_tokens`; otherwise
/// they are the tokens in order. `infinity` and `nan` are these: CUDA C++ has no word for them.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn rank(
    entries: &Array<f32>,
    entry_tokens: &Array<u32>,
    largest: &mut Array<f32>,
    tokens: &mut Array<u32>,
    width: u32,
    n: u32,
    first_row: u32,
    n_chunks: u32,
    infinity: f32,
    nan: f32,
    #[comptime] has_tokens: bool,
) {
    let chunk = CUBE_POS_X;
    let row = first_row + CUBE_POS_Y;
    let unit = UNIT_POS;
    let start = chunk * RANK_CHUNK;
    let end = u32::min(start + RANK_CHUNK, n);
    let mut shared_logits = SharedMemory::<f32>::new(comptime!(RANK_UNITS as usize));
    let mut shared_tokens = SharedMemory::<u32>::new(comptime!(RANK_UNITS as usize));
    let mut shared_nan = SharedMemory::<u32>::new(comptime!(RANK_UNITS as usize));
    let mut is_nan = 0u32;
    // The entry that was named before: what follows comes behind it.
    let mut last_logit = infinity;
    let mut last_token = 0u32;
    let mut has_last = false;
    for place in 0..N_RANKED {
        let mut best_logit = -infinity;
        let mut best_token = 0xffff_ffffu32;
        let mut i = start + unit;
        while i < end {
            let logit = entries[(row * width + i) as usize];
            let token = if comptime!(has_tokens) { entry_tokens[(row * width + i) as usize] } else { i };
            // The bits say it whatever a compiler thinks of NaN.
            if (u32::reinterpret(logit) & 0x7fff_ffffu32) > 0x7f80_0000u32 {
                is_nan = 1u32;
            } else {
                let is_behind =
                    !has_last || logit < last_logit || (logit == last_logit && token > last_token);
                let is_better = logit > best_logit || (logit == best_logit && token < best_token);
                if is_behind && is_better {
                    best_logit = logit;
                    best_token = token;
                }
            }
            i += RANK_UNITS;
        }
        shared_logits[unit as usize] = best_logit;
        shared_tokens[unit as usize] = best_token;
        shared_nan[unit as usize] = is_nan;
        sync_cube();
        let mut half = comptime!(RANK_UNITS / 2).runtime();
        while half > 0u32 {
            if unit < half {
                let other_logit = shared_logits[(unit + half) as usize];
                let other_token = shared_tokens[(unit + half) as usize];
                let logit = shared_logits[unit as usize];
                if other_logit > logit || (other_logit == logit && other_token < shared_tokens[unit as usize])
                {
                    shared_logits[unit as usize] = other_logit;
                    shared_tokens[unit as usize] = other_token;
                }
                shared_nan[unit as usize] |= shared_nan[(unit + half) as usize];
            }
            sync_cube();
            half /= 2u32;
        }
        last_logit = shared_logits[0];
        last_token = shared_tokens[0];
        has_last = true;
        if unit == 0u32 {
            let at = ((row * n_chunks + chunk) * N_RANKED + place) as usize;
            largest[at] = last_logit;
            tokens[at] = last_token;
            if place == 0u32 && shared_nan[0] == 1u32 {
                largest[at] = nan;
            }
        }
        sync_cube();
    }
}
