//! Linear layers: packed weights times rows, which are quantized where the weights are.
//!
//! With quantized weights, for each row, output and block: `sum = Σ (code - centre) * activation code` in
//! integers, then `out += (sum * activation scale) * scale` and, where the format has an offset,
//! `out += (activation scale * Σ activation code) * offset`, each fused, block after block. Integer
//! sums are exact however they are grouped, so all tiers give the same bits.

/// Calls `function::<FORMAT, N>(tile, rows, out)`, specialised on the index of the format, one of those named, and
/// on the number of rows of `out`.
macro_rules! specialised {
    ($function:tt, $format:expr, $formats:ident [$($name:ident)*], $arguments:tt) => {
        match $format {
            $($formats::$name => specialised!(@rows $function, { $formats::$name as usize }, $arguments),)*
        }
    };
    (@rows ($($function:ident)::+), $format:tt, ($tile:expr, $rows:expr, $out:expr)) => {
        match $out.len() {
            1 => $($function)::+::<$format, 1>($tile, $rows, $out),
            2 => $($function)::+::<$format, 2>($tile, $rows, $out),
            3 => $($function)::+::<$format, 3>($tile, $rows, $out),
            4 => $($function)::+::<$format, 4>($tile, $rows, $out),
            5 => $($function)::+::<$format, 5>($tile, $rows, $out),
            6 => $($function)::+::<$format, 6>($tile, $rows, $out),
            7 => $($function)::+::<$format, 7>($tile, $rows, $out),
            _ => $($function)::+::<$format, 8>($tile, $rows, $out),
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod dense;
mod input;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod quantized;

pub use input::LinearInput;

use crate::activations::BlockStatistics;
use crate::packed::WeightFormat;
use crate::tier::InstructionSet;
use crate::top::{Top, TopLogits};
use crate::{
    BLOCK, LowRank, PackedMatrix, Pool, QuantizedFormat, QuantizedRows, SharedSlice, TILE, Tier, swiglu,
};

/// Rows that share one pass over the weights of a tile.
const MAX_ROWS: usize = 8;

/// A linear layer: `y = W x + bias`, and for adaptive rows `+ (x A) B`.
#[derive(Clone, Copy, Debug)]
pub struct LinearLayer<'a> {
    /// `W`, `[n_out, n_in]`.
    pub matrix: &'a PackedMatrix,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
    /// The delta of adaptive rows.
    pub delta: Option<&'a LowRank>,
}

/// `outs[i] = layers[i](input)`, each `[n_rows, n_out]`, in one parallel region.
///
/// # Panics
/// When the sizes do not fit each other.
pub fn project<const N: usize>(
    pool: &Pool,
    tier: Tier,
    layers: [LinearLayer<'_>; N],
    input: &mut LinearInput,
    outs: [&mut [f32]; N],
) {
    let n_rows = input.rows.n_rows;
    for (layer, out) in layers.iter().zip(&outs) {
        layer.check(input.rows.width);
        assert_eq!(out.len(), n_rows * layer.matrix.n_out, "the size of the output");
    }
    input.prepare_deltas(pool, tier, &layers);
    let outs = outs.map(SharedSlice::new);
    let n_tiles = layers.map(|layer| layer.matrix.n_tiles());
    run_each(pool, n_tiles.iter().sum(), &|tile_idx, _| {
        let (idx, tile_idx) = place_among(&n_tiles, tile_idx);
        let (layer, out) = (&layers[idx], &outs[idx]);
        let n_out = layer.matrix.n_out;
        let n_valid = TILE.min(n_out - tile_idx * TILE);
        for first in (0..n_rows).step_by(MAX_ROWS) {
            let mut results = [[0.0f32; TILE]; MAX_ROWS];
            let results = &mut results[..MAX_ROWS.min(n_rows - first)];
            input.tile(tier, idx, layer, tile_idx, first, results);
            for (row, result) in results.iter().enumerate() {
                // SAFETY: each tile of each layer belongs to one task.
                let target = unsafe { out.range_mut((first + row) * n_out + tile_idx * TILE, n_valid) };
                target.copy_from_slice(&result[..n_valid]);
            }
        }
    });
}

/// Where the `idx`-th item is, when the items of several lists are counted through: its list, and its place
/// there.
fn place_among(lens: &[usize], mut idx: usize) -> (usize, usize) {
    for (list, &len) in lens.iter().enumerate() {
        if idx < len {
            return (list, idx);
        }
        idx -= len;
    }
    unreachable!("an item beyond all lists");
}

/// `out = silu(gate(input)) * up(input)`, as the next layer's input.
///
/// # Panics
/// When the sizes do not fit each other.
pub fn project_swiglu(
    pool: &Pool,
    tier: Tier,
    layers: [LinearLayer<'_>; 2],
    input: &mut LinearInput,
    out: &mut LinearInput,
) {
    let n_rows = input.rows.n_rows;
    let n_out = layers[0].matrix.n_out;
    layers.iter().for_each(|layer| layer.check(input.rows.width));
    assert_eq!(n_out, layers[1].matrix.n_out, "gate and up are of one width");
    out.resize(n_rows, n_out);
    out.first_adaptive = input.first_adaptive;
    input.prepare_deltas(pool, tier, &layers);
    let writer = out.writer();
    run_each(pool, n_out.div_ceil(BLOCK), &|block, _| {
        let n_outputs = BLOCK.min(n_out - block * BLOCK);
        for first in (0..n_rows).step_by(MAX_ROWS) {
            let n = MAX_ROWS.min(n_rows - first);
            let mut values = [[[0.0f32; BLOCK]; MAX_ROWS]; 2];
            for half in 0..n_outputs.div_ceil(TILE) {
                let mut results = [[0.0f32; TILE]; MAX_ROWS];
                for (idx, layer) in layers.iter().enumerate() {
                    results[..n].fill([0.0; TILE]);
                    input.tile(tier, idx, layer, block * BLOCK / TILE + half, first, &mut results[..n]);
                    for (values, result) in values[idx].iter_mut().zip(&results[..n]) {
                        values[half * TILE..(half + 1) * TILE].copy_from_slice(result);
                    }
                }
            }
            let [gates, ups] = &mut values;
            for (row, (gate, up)) in gates.iter_mut().zip(ups.iter()).take(n).enumerate() {
                swiglu(tier, gate, up);
                // SAFETY: each block belongs to one task.
                unsafe { writer.write(tier, first + row, block, &gate[..n_outputs]) };
            }
        }
    });
}

/// Scratch of [`project_vocabulary`], kept from pass to pass.
#[derive(Debug, Default)]
pub struct VocabularyScratch {
    /// `[n_threads, n_rows]`
    partial: Vec<Top>,
}

/// What is wanted of the rows of the vocabulary projection.
#[derive(Clone, Copy, Debug)]
pub struct VocabularyRows<'a> {
    /// Rows of which all logits are written; the others are only ranked.
    pub is_full: &'a [bool],
    /// Rows from this one on are ranked among the first `n_draft_outputs` outputs only.
    pub first_draft: usize,
    /// Outputs that are looked at for those: the commonest tokens of a vocabulary come first.
    pub n_draft_outputs: usize,
}

/// Where the vocabulary projection writes.
#[derive(Debug)]
pub struct VocabularyOut<'a> {
    /// The largest logits of each row.
    pub tops: &'a mut Vec<TopLogits>,
    /// All logits of the full rows, `[number of those, n_out]`.
    pub full: &'a mut Vec<f32>,
}

/// The vocabulary projection. All logits of a row are written only where they are asked for: sampling
/// needs them, and they are most of what this layer would write.
///
/// # Panics
/// When the sizes do not fit each other.
pub fn project_vocabulary(
    pool: &Pool,
    tier: Tier,
    layer: LinearLayer<'_>,
    input: &LinearInput,
    wanted: VocabularyRows<'_>,
    scratch: &mut VocabularyScratch,
    out: VocabularyOut<'_>,
) {
    let (n_rows, n_out) = (input.rows.n_rows, layer.matrix.n_out);
    layer.check(input.rows.width);
    let VocabularyRows { is_full, first_draft, n_draft_outputs } = wanted;
    assert_eq!(is_full.len(), n_rows, "a mark for each row");
    assert!(is_full.iter().skip(first_draft).all(|&is_full| !is_full), "drafts are not full");
    let layer = LinearLayer { delta: None, ..layer };
    let VocabularyOut { tops, full } = out;
    full.resize(is_full.iter().filter(|&&is_full| is_full).count() * n_out, 0.0);
    scratch.partial.clear();
    scratch.partial.resize(pool.n_threads() * n_rows, Top::default());
    let shared_full = SharedSlice::new(full);
    let partial = SharedSlice::new(&mut scratch.partial);
    run_each(pool, layer.matrix.n_tiles(), &|tile_idx, worker| {
        let n_valid = TILE.min(n_out - tile_idx * TILE);
        let n_rows_here = if tile_idx * TILE < n_draft_outputs { n_rows } else { n_rows.min(first_draft) };
        // SAFETY: no two calls at a time have the same worker.
        let partial = unsafe { partial.range_mut(worker * n_rows, n_rows) };
        let mut full_row = 0;
        for first in (0..n_rows_here).step_by(MAX_ROWS) {
            let mut results = [[0.0f32; TILE]; MAX_ROWS];
            let results = &mut results[..MAX_ROWS.min(n_rows_here - first)];
            input.tile(tier, 0, &layer, tile_idx, first, results);
            for (row, result) in results.iter().enumerate() {
                partial[first + row].push_tile((tile_idx * TILE) as u32, &result[..n_valid]);
                if is_full[first + row] {
                    // SAFETY: each tile belongs to one task.
                    let target =
                        unsafe { shared_full.range_mut(full_row * n_out + tile_idx * TILE, n_valid) };
                    target.copy_from_slice(&result[..n_valid]);
                    full_row += 1;
                }
            }
        }
    });
    tops.clear();
    for row in 0..n_rows {
        let mut top = Top::default();
        scratch.partial.iter().skip(row).step_by(n_rows.max(1)).for_each(|partial| top.merge(partial));
        tops.push(top.finish());
    }
}

impl LinearLayer<'_> {
    fn check(&self, width: usize) {
        assert_eq!(width, self.matrix.n_in, "the width of the activations");
        assert!(self.bias.is_none_or(|bias| bias.len() == self.matrix.n_out), "the size of the bias");
        let fits = |delta: &LowRank| delta.a.n_in == width && delta.b.n_out == self.matrix.n_out;
        assert!(self.delta.is_none_or(fits), "the size of the delta");
    }
}

/// Calls `work(item, worker)` for all items, see [`Pool::run_shares`].
fn run_each(pool: &Pool, n_items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    pool.run_shares(n_items, &|items, worker| items.for_each(|item| work(item, worker)));
}

/// Both tiles of a block of outputs; those beyond the matrix are 0.
fn block_rows(
    tier: Tier,
    matrix: &PackedMatrix,
    block: usize,
    rows: Rows<'_>,
    first: usize,
    out: &mut [[f32; BLOCK]],
) {
    for half in 0..BLOCK / TILE {
        let tile_idx = block * BLOCK / TILE + half;
        if tile_idx < matrix.n_tiles() {
            let mut results = [[0.0f32; TILE]; MAX_ROWS];
            tile_rows(tier, matrix, tile_idx, rows, first, &mut results[..out.len()]);
            for (out, result) in out.iter_mut().zip(&results) {
                out[half * TILE..(half + 1) * TILE].copy_from_slice(result);
            }
        }
    }
}

/// What a tile kernel needs of the activations.
#[derive(Clone, Copy)]
struct RowsView<'a> {
    codes: &'a [i8],
    blocks: &'a [BlockStatistics],
    width: usize,
}

impl QuantizedRows {
    fn view(&self, first: usize, n: usize) -> RowsView<'_> {
        let (codes, blocks) = (self.width, self.width / BLOCK);
        RowsView {
            codes: &self.codes[first * codes..(first + n) * codes],
            blocks: &self.blocks[first * blocks..(first + n) * blocks],
            width: self.width,
        }
    }
}

/// The rows that layers multiply, in both forms.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// Empty where the width is not whole blocks; its sizes hold in any case.
    quantized: &'a QuantizedRows,
    /// `[n_rows, width]`, or empty where no layer reads them.
    values: &'a [f32],
}

/// [`specialised`] on a quantized format.
macro_rules! quantized_tile {
    ($tier:ident, $format:expr, $arguments:tt) => {
        specialised!(
            ($tier::tile_rows),
            $format,
            QuantizedFormat [Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K],
            $arguments
        )
    };
}

/// Adds one tile of outputs to up to eight rows of `out`.
fn tile_rows(
    tier: Tier,
    matrix: &PackedMatrix,
    tile_idx: usize,
    rows: Rows<'_>,
    first: usize,
    out: &mut [[f32; TILE]],
) {
    let (tile, width) = (matrix.tile(tile_idx), rows.quantized.width);
    assert!((1..=MAX_ROWS).contains(&out.len()) && width == matrix.n_in);
    let format = match matrix.format {
        WeightFormat::Quantized(format) => format,
        WeightFormat::Dense(format) => {
            let values = &rows.values[first * width..(first + out.len()) * width];
            return dense::tile_rows(tier, format, tile, values, out);
        }
    };
    let rows = rows.quantized.view(first, out.len());
    match tier.instructions() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512Vnni => {
            // SAFETY: the tier is only chosen where the processor has its instructions; `tile` has
            // the bytes of the format for the width of the rows.
            unsafe { quantized_tile!(avx512, format, (tile, rows, out)) }
        }
        #[cfg(target_arch = "x86_64")]
        InstructionSet::AvxVnni => {
            // SAFETY: as above.
            unsafe { quantized_tile!(avx_vnni, format, (tile, rows, out)) }
        }
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => {
            // SAFETY: as above.
            unsafe { quantized_tile!(avx2, format, (tile, rows, out)) }
        }
        #[cfg(target_arch = "aarch64")]
        InstructionSet::NeonDotprod => {
            // SAFETY: as above.
            unsafe { quantized_tile!(neon, format, (tile, rows, out)) }
        }
        InstructionSet::Portable => {
            // SAFETY: as above.
            unsafe { quantized_tile!(portable, format, (tile, rows, out)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::quantized::{BlockPlace, code};

    /// What the head of this module says, code by code.
    fn reference(format: QuantizedFormat, tile: &[u8], rows: RowsView<'_>, out: &mut [[f32; TILE]]) {
        let n_blocks = rows.width / BLOCK;
        let mut values = [[0i32; TILE]; BLOCK];
        for block in 0..n_blocks {
            let place = BlockPlace::of(format, block);
            let codes = &tile[place.codes..place.codes + format.code_bytes()];
            for (input, values) in values.iter_mut().enumerate() {
                for (lane, value) in values.iter_mut().enumerate() {
                    *value = i32::from(code(format.bits(), codes, lane, input)) - format.centre();
                }
            }
            for (row, out) in out.iter_mut().enumerate() {
                let activations = &rows.codes[row * rows.width + block * BLOCK..][..BLOCK];
                let mut sums = [[0i32; TILE]; 2];
                for (input, (values, &activation)) in values.iter().zip(activations).enumerate() {
                    for (sum, value) in sums[input / 16].iter_mut().zip(values) {
                        *sum += value * i32::from(activation);
                    }
                }
                let statistics = rows.blocks[row * n_blocks + block];
                for (lane, out) in out.iter_mut().enumerate() {
                    let scales = place.scales(format, tile, lane);
                    let scaled = |sum: i32| sum as f32 * statistics.scale;
                    *out = if format.has_half_scales() {
                        let first = scaled(sums[0][lane]).mul_add(scales.scale[0], *out);
                        scaled(sums[1][lane]).mul_add(scales.scale[1], first)
                    } else {
                        scaled(sums[0][lane] + sums[1][lane]).mul_add(scales.scale[0], *out)
                    };
                    if format.has_offset() && format.has_half_scales() {
                        let [first, second] = statistics.scaled_half_sums;
                        *out = second.mul_add(scales.offset[1], first.mul_add(scales.offset[0], *out));
                    } else if format.has_offset() {
                        *out = statistics.scaled_sum.mul_add(scales.offset[0], *out);
                    }
                }
            }
        }
    }

    /// Bit for bit, every format for every number of rows.
    #[test]
    fn every_tier_is_what_the_definition_says() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let pool = Pool::new(1);
        for format in QuantizedFormat::ALL {
            // Half a super-block at the end, where the format has none.
            let n_in = if format.file_block().0 == BLOCK { 12 * BLOCK } else { 512 };
            let (file_block, block_bytes) = format.file_block();
            let mut bytes: Vec<u8> =
                (0..TILE * n_in / file_block * block_bytes).map(|_| next() as u8).collect();
            // Small numbers wherever a half-precision one may stand.
            bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0xb3);
            let matrix = PackedMatrix::pack(format, TILE, n_in, &bytes, &pool).expect("packs");
            let values: Vec<f32> =
                (0..MAX_ROWS * n_in).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect();
            let mut rows = QuantizedRows::default();
            rows.quantize(&pool, Tier::PORTABLE, &values, n_in);
            // What is there stays in the sum.
            let before = [[0.25f32; TILE]; MAX_ROWS];
            let mut expected = before;
            reference(format, matrix.tile(0), rows.view(0, MAX_ROWS), &mut expected);
            assert!(expected.as_flattened().iter().all(|value| value.is_finite()), "{format:?}");
            assert!(expected.as_flattened().iter().any(|value| *value != 0.25), "{format:?}");
            for (tier, n) in Tier::available().into_iter().flat_map(|tier| (1..=8).map(move |n| (tier, n))) {
                let mut out = before;
                let rows = Rows { quantized: &rows, values: &[] };
                tile_rows(tier, &matrix, 0, rows, MAX_ROWS - n, &mut out[..n]);
                assert_eq!(out[..n], expected[MAX_ROWS - n..], "{format:?} on {tier:?}, {n} rows");
            }
        }
    }
}
