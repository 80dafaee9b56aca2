//! The operations that the forward pass is written over.
//!
//! One definition of the Llama family (`forward`) runs on every device that implements
//! [`Backend`]. Outputs are written into buffers that the caller keeps, so that a backend may
//! reuse them from pass to pass.
//!
//! Every operation treats each row for itself, in an order of arithmetic that does not depend on
//! how many rows share the pass: that is what makes speculative output equal ordinary output.

mod cpu;

pub(crate) use cpu::Cpu;
use kernels::{AttentionShape, CacheType};
use std::ops::Range;

use speculate::{Layout, Logits, RowPlan, Wanted};

use crate::ModelError;
use crate::architecture::{Architecture, RopeLayout};
use crate::gguf::TensorType;
use crate::weights::Linear;

/// A tensor of a weight file: `[n_out, n_in]`, row after row.
pub(crate) struct MatrixSource<'a> {
    pub(crate) tensor: &'a str,
    pub(crate) tensor_type: TensorType,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    /// Fills a buffer with its bytes from an offset on, for several threads at a time.
    pub(crate) read: &'a (dyn Fn(usize, &mut [u8]) -> std::io::Result<()> + Sync),
}

/// Rotary tables and where they apply.
pub(crate) struct Rope {
    pub(crate) layout: RopeLayout,
    pub(crate) head_dim: usize,
    pub(crate) rope_dim: usize,
    /// `[positions, rope_dim / 2]`
    pub(crate) cos: Vec<f32>,
    /// `[positions, rope_dim / 2]`
    pub(crate) sin: Vec<f32>,
}

impl Rope {
    /// Tables for `n_positions` positions; angle = position / (scale * divisor_i * base^(2i / rope_dim))
    /// (RoFormer, arXiv 2104.09864, §3.2.2). `divisors` has one for each pair, as Llama 3.1 stretches low
    /// frequencies more than high ones, or is empty.
    pub(crate) fn new(architecture: &Architecture, divisors: &[f32], n_positions: usize) -> Self {
        let Architecture { rope_layout, head_dim, rope_dim, rope_base, rope_scale, .. } = *architecture;
        let n_pairs = rope_dim / 2;
        let frequency = |i: usize| {
            let divisor = divisors.get(i).map_or(1.0, |&divisor| f64::from(divisor));
            rope_base.powf(-2.0 * i as f64 / rope_dim as f64) / (rope_scale * divisor)
        };
        let frequencies: Vec<f64> = (0..n_pairs).map(frequency).collect();
        let mut cos = Vec::with_capacity(n_positions * n_pairs);
        let mut sin = Vec::with_capacity(n_positions * n_pairs);
        for position in 0..n_positions {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { layout: rope_layout, head_dim, rope_dim, cos, sin }
    }
}

/// Which matrix products the CPU uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinearKernels {
    /// Our own, over packed weights.
    #[default]
    Packed,
    /// candle's, row by row: slow, and written by others, hence the reference in tests.
    Candle,
}

/// What the rows of a pass see: all committed slots but those hidden from them, and the slots listed for each.
#[derive(Default)]
pub(crate) struct Visibility {
    pub(crate) n_committed: usize,
    pub(crate) visible: Vec<Vec<usize>>,
    /// By row; empty where nothing is hidden from any.
    pub(crate) hidden: Vec<Range<usize>>,
}

impl Visibility {
    /// Sets it for the rows of `plan`, which stand behind the committed ones.
    pub(crate) fn set(&mut self, plan: &RowPlan, layout: &Layout) {
        self.n_committed = plan.n_committed();
        self.visible.resize_with(plan.rows().len(), Vec::new);
        for (row, slots) in self.visible.iter_mut().enumerate() {
            plan.visible_into(row, slots);
            slots.iter_mut().for_each(|slot| *slot += plan.n_committed());
        }
        self.hidden.clear();
        if !layout.aside.is_empty() && plan.n_committed() >= layout.aside.end {
            self.hidden.extend(plan.rows().iter().map(|row| layout.hidden_from(row)));
        }
    }
}

/// A linear layer with what its adaptive rows add: `y = W x + bias`, and for those `+ (x A) B`.
pub(crate) struct Projection<'a, B: Backend> {
    pub(crate) linear: &'a Linear<B>,
    pub(crate) delta: Option<&'a B::LowRank>,
}

impl<B: Backend> Clone for Projection<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Projection<'_, B> {}

/// A device that runs the forward pass.
pub(crate) trait Backend: Sized + Send + Sync {
    /// A weight matrix `[n_out, n_in]` of any type.
    type Matrix: Send + Sync;
    /// A low-rank delta: `A [n_in, rank]` and `B [rank, n_out]`.
    type LowRank: Send + Sync;
    /// Activations `[n_rows, width]`, f32.
    type Rows: Default + Send;
    /// Activations in the form that linear layers read; adaptive rows come last.
    type Input: Default + Send;
    /// Keys and values of all layers.
    type Cache: Send;
    /// What the vocabulary projection keeps between passes.
    type Scratch: Default + Send;

    fn matrix(&self, matrix: MatrixSource<'_>) -> Result<Self::Matrix, ModelError>;
    /// Bytes that a product with it reads.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> Result<Self::LowRank, ModelError>;
    fn cache(
        &self,
        n_layers: usize,
        capacity: usize,
        shape: AttentionShape,
        cache_type: CacheType,
    ) -> Result<Self::Cache, ModelError>;
    /// Says which slots of `cache` hold tokens aside.
    fn set_aside(&self, cache: &mut Self::Cache, slots: Range<usize>);
    /// Keeps the keys of a plan whose rows are all aside as they are before their rotation.
    fn keep_unturned(&self, cache: &mut Self::Cache, layer: usize, plan: &RowPlan, keys: &Self::Rows);
    /// Turns the keys of the tokens aside, in all layers, to the positions from `first` on.
    fn turn(&self, cache: &mut Self::Cache, rope: &Rope, first: usize);
    /// Copies the first `n` rows of `from`.
    fn copy_prefix(&self, from: &Self::Cache, n: usize, to: &mut Self::Cache);
    /// Keeps the first `n_base` rows, and of those behind them the rows `n_base + kept`, in order.
    fn compact(&self, cache: &mut Self::Cache, n_base: usize, kept: &[usize]);

    /// Embeddings of the plan's rows; adaptive rows take theirs from `slots [k, hidden]`.
    fn embed(
        &self,
        table: &Self::Matrix,
        hidden: usize,
        slots: &[f32],
        plan: &RowPlan,
        out: &mut Self::Rows,
    ) -> Result<(), ModelError>;
    /// The sum of the embeddings of the plan's tokens, each times its weight, on the host: `[hidden]`.
    fn weighted_embedding(
        &self,
        table: &Self::Matrix,
        hidden: usize,
        plan: &RowPlan,
        weights: &[f32],
    ) -> Result<Vec<f32>, ModelError>;
    /// `hidden += residual`, then `out = rms_norm(hidden) * weight`, whose rows from
    /// `first_adaptive` on are adaptive.
    fn normalise(
        &self,
        residual: Option<&Self::Rows>,
        hidden: &mut Self::Rows,
        norm: Norm<'_>,
        first_adaptive: usize,
        out: &mut Self::Input,
    );
    /// Multiplies every value.
    fn scale(&self, rows: &mut Self::Rows, factor: f32);
    /// `rows = rms_norm(rows) * weight`, each head for itself; the weight has the width of a head.
    fn normalise_heads(&self, rows: &mut Self::Rows, norm: Norm<'_>);
    /// Several layers on one input.
    fn project<const N: usize>(
        &self,
        layers: [Projection<'_, Self>; N],
        input: &mut Self::Input,
        outs: [&mut Self::Rows; N],
    ) -> Result<(), ModelError>;
    /// `out = silu(gate(input)) * up(input)`
    fn project_swiglu(
        &self,
        gate: Projection<'_, Self>,
        up: Projection<'_, Self>,
        input: &mut Self::Input,
        out: &mut Self::Input,
    ) -> Result<(), ModelError>;
    /// Logits of all rows of `input`, as much as is `wanted` of each. Rows of which drafts are wanted come
    /// last.
    fn project_vocabulary(
        &self,
        head: VocabularyHead<'_, Self>,
        input: &Self::Input,
        wanted: &[Wanted],
        scratch: &mut Self::Scratch,
        logits: &mut Logits,
    ) -> Result<(), ModelError>;
    fn rope(&self, rope: &Rope, plan: &RowPlan, rows: &mut Self::Rows);
    /// Writes keys and values behind the committed rows of `layer`.
    fn store(
        &self,
        cache: &mut Self::Cache,
        layer: usize,
        plan: &RowPlan,
        keys: &Self::Rows,
        values: &Self::Rows,
    );
    /// Each row attends to all committed rows, its ancestors in the plan, and itself.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        cache: &Self::Cache,
        layer: usize,
        shape: AttentionShape,
        pass: &Visibility,
        queries: &Self::Rows,
        first_adaptive: usize,
        out: &mut Self::Input,
    );
    /// Copies the rows of `selection`.
    fn select(&self, input: &Self::Rows, selection: &[usize], out: &mut Self::Rows);
}

/// RMSNorm: `x / sqrt(mean(x²) + epsilon) * weight`.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) epsilon: f32,
}

/// The layer from hidden rows to logits. With tied embeddings its matrix is the embedding table.
pub(crate) struct VocabularyHead<'a, B: Backend> {
    pub(crate) matrix: &'a B::Matrix,
    pub(crate) bias: Option<&'a [f32]>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Family, Multipliers};

    fn architecture(rope_scale: f64) -> Architecture {
        Architecture {
            family: Family::Llama,
            n_layers: 1,
            hidden: 32,
            feed_forward: 32,
            n_heads: 4,
            n_kv_heads: 4,
            head_dim: 8,
            rope_dim: 8,
            rope_base: 10_000.0,
            rope_scale,
            rope_layout: RopeLayout::Half,
            norm_epsilon: 1e-5,
            multipliers: Multipliers::default(),
            context_length: 64,
            vocabulary: 300,
        }
    }

    /// Linear scaling by two: every second position is where an unscaled model has it. Divisors act on their
    /// own pair only.
    #[test]
    fn scaled_positions_lie_closer() {
        let plain = Rope::new(&architecture(1.0), &[], 32);
        let scaled = Rope::new(&architecture(2.0), &[], 32);
        let stretched = Rope::new(&architecture(1.0), &[1.0, 1.0, 2.0, 8.0], 32);
        let pair =
            |rope: &Rope, position: usize, i: usize| (rope.cos[position * 4 + i], rope.sin[position * 4 + i]);
        for position in 0..4 {
            for i in 0..4 {
                assert_eq!(pair(&scaled, 2 * position, i), pair(&plain, position, i));
            }
            assert_eq!(pair(&stretched, position, 1), pair(&plain, position, 1));
            assert_eq!(pair(&stretched, 2 * position, 2), pair(&plain, position, 2));
            assert_eq!(pair(&stretched, 8 * position, 3), pair(&plain, position, 3));
        }
    }
}
