//! What a device can be asked for besides linear layers: kernels with checked sizes.

use cubecl::prelude::*;

use crate::GpuError;
use crate::device::{Buffer, Device, on_client};
use crate::packed::TILE;
use crate::plan::ROW_WORDS;
use crate::products::{Matrix, RowRange};
use crate::rank::{N_RANKED, RANK_CHUNK, RANK_UNITS, rank};
use crate::rows::{NormConfig, ROW_UNITS, embed, normalise, normalise_heads, scale, swiglu};

impl Device {
    /// Embeddings of the `n_rows` rows of a pass, `[n_rows, n_in]` of `table`; those of adaptive tokens come from
    /// `slots`. `plan` is as [`crate::ROW_WORDS`] says.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn embed(&self, table: &Matrix, slots: Option<&Buffer>, plan: &Buffer, n_rows: usize, out: &Buffer) {
        let Matrix { layout, n_in, tile_words, .. } = *table;
        assert!(plan.len() >= n_rows * ROW_WORDS as usize && out.len() >= n_rows * n_in, "rows of the pass");
        for (part, words) in table.parts.iter().enumerate() {
            let first = part * table.tiles_per_part * TILE as usize;
            let n_tokens = (table.n_out - first).min(table.tiles_per_part * TILE as usize);
            // SAFETY: the sizes were checked above; the caller's plan names tokens of the table and slots.
            unsafe {
                on_client!(self, client, R => embed::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(n_rows as u32, 1, 1),
                    CubeDim::new_1d(ROW_UNITS),
                    words.array(),
                    slots.unwrap_or(out).array(),
                    plan.array(),
                    out.array(),
                    n_in as u32,
                    tile_words as u32,
                    first as u32,
                    n_tokens as u32,
                    layout,
                ));
            }
        }
    }

    /// `hidden += residual`, then `out = rms_norm(hidden) * weight` for `n_rows` rows. With a selection, a buffer and
    /// where in it the rows begin, these rows are taken instead, and `hidden` stays.
    ///
    /// # Panics
    /// When a buffer is too small.
    #[allow(clippy::too_many_arguments)]
    pub fn normalise(
        &self,
        residual: Option<&Buffer>,
        hidden: &Buffer,
        weight: &Buffer,
        epsilon: f32,
        selection: Option<(&Buffer, usize)>,
        n_rows: usize,
        out: &Buffer,
    ) {
        let width = weight.len();
        assert!(out.len() >= n_rows * width, "rows of the output");
        assert!(selection.is_some() || hidden.len() >= n_rows * width, "hidden rows");
        assert!(selection.is_none_or(|(rows, first)| rows.len() >= first + n_rows), "the selection");
        assert!(
            residual.is_none_or(|residual| selection.is_some() || residual.len() >= n_rows * width),
            "a residual for each row"
        );
        let config = NormConfig { has_residual: residual.is_some(), selects: selection.is_some() };
        let (rows, first) = selection.unwrap_or((hidden, 0));
        // SAFETY: the sizes were checked above; the caller's selection names rows of `hidden`.
        unsafe {
            on_client!(self, client, R => normalise::launch_unchecked::<R>(
                client,
                CubeCount::Static(n_rows as u32, 1, 1),
                CubeDim::new_1d(ROW_UNITS),
                residual.unwrap_or(hidden).array(),
                hidden.array(),
                weight.array(),
                rows.array(),
                out.array(),
                width as u32,
                epsilon,
                first as u32,
                config,
            ));
        }
    }

    /// The norm of each of `n_heads` heads for itself, in place; the weight has the width of a head.
    ///
    /// # Panics
    /// When the buffer is too small.
    pub fn normalise_heads(&self, rows: &Buffer, n_heads: usize, weight: &Buffer, epsilon: f32) {
        assert!(rows.len() >= n_heads * weight.len(), "heads of the rows");
        // SAFETY: the size was checked above.
        unsafe {
            on_client!(self, client, R => normalise_heads::launch_unchecked::<R>(
                client,
                CubeCount::Static(n_heads as u32, 1, 1),
                CubeDim::new_1d(ROW_UNITS),
                rows.array(),
                weight.array(),
                weight.len() as u32,
                epsilon,
            ));
        }
    }

    /// `gate = silu(gate) * up` of the first `n` numbers.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn swiglu(&self, gate: &Buffer, up: &Buffer, n: usize) {
        assert!(gate.len() >= n && up.len() >= n, "numbers of both");
        // SAFETY: the sizes were checked above.
        unsafe {
            on_client!(self, client, R => swiglu::launch_unchecked::<R>(
                client,
                cubes_for(n),
                CubeDim::new_1d(ROW_UNITS),
                gate.array(),
                up.array(),
                n as u32,
            ));
        }
    }

    /// Multiplies the first `n` numbers.
    ///
    /// # Panics
    /// When the buffer is too small.
    pub fn scale(&self, rows: &Buffer, factor: f32, n: usize) {
        assert!(rows.len() >= n, "numbers");
        // SAFETY: the size was checked above.
        unsafe {
            on_client!(self, client, R => scale::launch_unchecked::<R>(
                client,
                cubes_for(n),
                CubeDim::new_1d(ROW_UNITS),
                rows.array(),
                factor,
                n as u32,
            ));
        }
    }

    /// The likeliest tokens of rows of `logits`, `[_, width]`, among the first `n`: their logits and their numbers into
    /// those of `ranking` from row `rows.first` on.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn rank(&self, logits: &Buffer, width: usize, n: usize, rows: RowRange, ranking: &Ranking) {
        let n_chunks = n.div_ceil(RANK_CHUNK as usize);
        let n_candidates = n_chunks * N_RANKED as usize;
        let last = rows.first + rows.n;
        assert!(n <= width && logits.len() >= last * width, "rows of logits");
        assert!(n_candidates <= RANK_CHUNK as usize, "one chunk has all candidates");
        assert!(ranking.candidates.len() >= last * n_candidates, "candidates of each chunk");
        assert!(ranking.logits.len() >= last * N_RANKED as usize, "places of each row");
        if rows.n == 0 {
            return;
        }
        let launch = |entries: &Buffer,
                      entry_tokens: &Buffer,
                      [largest, tokens]: [&Buffer; 2],
                      [width, n, n_chunks]: [usize; 3],
                      has_tokens: bool| {
            // SAFETY: the sizes were checked above.
            unsafe {
                on_client!(self, client, R => rank::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(n_chunks as u32, rows.n as u32, 1),
                    CubeDim::new_1d(RANK_UNITS),
                    entries.array(),
                    entry_tokens.array(),
                    largest.array(),
                    tokens.array(),
                    width as u32,
                    n as u32,
                    rows.first as u32,
                    n_chunks as u32,
                    f32::INFINITY,
                    f32::NAN,
                    has_tokens,
                ));
            }
        };
        let Ranking { candidates, candidate_tokens, logits: ranked, tokens } = ranking;
        launch(logits, candidate_tokens, [candidates, candidate_tokens], [width, n, n_chunks], false);
        launch(candidates, candidate_tokens, [ranked, tokens], [n_candidates, n_candidates, 1], true);
    }

    /// Room to rank `n_rows` rows among `n` tokens.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn ranking(&self, n_rows: usize, n: usize) -> Result<Ranking, GpuError> {
        let n_candidates = n_rows * n.div_ceil(RANK_CHUNK as usize) * N_RANKED as usize;
        let n_ranked = n_rows * N_RANKED as usize;
        Ok(Ranking {
            candidates: self.empty(n_candidates)?,
            candidate_tokens: self.empty(n_candidates)?,
            logits: self.empty(n_ranked)?,
            tokens: self.empty(n_ranked)?,
        })
    }
}

/// The likeliest tokens of rows, and what it takes to find them.
#[derive(Debug)]
pub struct Ranking {
    candidates: Buffer,
    candidate_tokens: Buffer,
    /// `[n_rows, 8]`, largest first.
    pub logits: Buffer,
    /// The tokens of these.
    pub tokens: Buffer,
}

/// Cubes of [`ROW_UNITS`] units for `n` numbers.
pub(crate) fn cubes_for(n: usize) -> CubeCount {
    let n_cubes = n.div_ceil(ROW_UNITS as usize) as u32;
    // One dimension holds 65,535 of them.
    let height = n_cubes.div_ceil(32_768);
    CubeCount::Static(n_cubes.div_ceil(height), height, 1)
}

impl Buffer {
    /// For a kernel that counts in fours.
    pub(crate) fn array_of_fours<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the buffer has as many whole fours.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len() / 4) }
    }

    /// For a kernel that counts in twos.
    pub(crate) fn array_of_twos<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the buffer has as many whole twos.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len() / 2) }
    }

    /// For a kernel.
    pub(crate) fn array<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the buffer has as many numbers as it says.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len()) }
    }
}
