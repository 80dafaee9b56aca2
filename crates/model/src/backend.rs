//! The operations that the forward pass is written over.
//!
//! One definition of the Llama family (`forward`) runs on every device that implements
//! [`Backend`]. All that lives on the device is the backend's: weights, tables, caches, and the buffers that a
//! sequence keeps, so that they are reused from pass to pass.
//!
//! Every operation treats each row for itself, in an order of arithmetic that does not depend on
//! how many rows share the pass: that is what makes speculative output equal ordinary output.

mod cpu;
mod gpu;

use std::ops::Range;

pub(crate) use cpu::Cpu;
pub(crate) use gpu::Gpu;
use kernels::{AttentionShape, CacheType};
use speculate::{Layout, Logits, RowPlan};

use crate::ModelError;
use crate::architecture::{Architecture, RopeLayout};
use crate::gguf::TensorType;

/// Tokens among which adaptive rows look for drafts. Byte-pair vocabularies are in the order in which
/// their pairs were found, so that common tokens come first; the whole of a large one would be a
/// third of what an adaptive row costs.
pub const DRAFT_VOCABULARY: usize = 32_768;

/// A tensor of a weight file: `[n_out, n_in]`, row after row.
pub(crate) struct MatrixSource<'a> {
    pub(crate) tensor: &'a str,
    pub(crate) tensor_type: TensorType,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    /// Fills a buffer with its bytes from an offset on, for several threads at a time.
    pub(crate) read: &'a (dyn Fn(usize, &mut [u8]) -> std::io::Result<()> + Sync),
}

/// Rotary tables and where they apply, on the host.
pub(crate) struct RopeTables {
    pub(crate) layout: RopeLayout,
    pub(crate) head_dim: usize,
    pub(crate) rope_dim: usize,
    /// `[positions, rope_dim / 2]`
    pub(crate) cos: Vec<f32>,
    /// `[positions, rope_dim / 2]`
    pub(crate) sin: Vec<f32>,
}

impl RopeTables {
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

/// A linear layer: `y = W x + bias`.
pub(crate) struct Linear<B: Backend> {
    pub(crate) matrix: B::Matrix,
    pub(crate) bias: Option<B::Vector>,
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

/// RMSNorm: `x / sqrt(mean(x²) + epsilon) * weight`.
pub(crate) struct Norm<'a, B: Backend> {
    pub(crate) weight: &'a B::Vector,
    pub(crate) epsilon: f32,
}

/// The layer from hidden rows to logits. With tied embeddings its matrix is the embedding table.
pub(crate) struct VocabularyHead<'a, B: Backend> {
    pub(crate) matrix: &'a B::Matrix,
    pub(crate) bias: Option<&'a B::Vector>,
    /// What drafts are looked for among beside the first [`DRAFT_VOCABULARY`] tokens.
    pub(crate) end: Option<&'a EndOfText<B>>,
}

/// The token that ends a text, where it is none of the first [`DRAFT_VOCABULARY`].
pub(crate) struct EndOfText<B: Backend> {
    pub(crate) token: u32,
    /// Its row of the vocabulary projection, as a layer with one output.
    pub(crate) linear: Linear<B>,
}

/// The rows that run: their plan, and what the device has of it.
pub(crate) struct Pass<'a, B: Backend> {
    pub(crate) plan: &'a RowPlan,
    pub(crate) on_device: &'a B::Plan,
    /// Whether its rows are tokens aside: a pass computes these or others, never both.
    pub(crate) is_aside: bool,
}

impl<B: Backend> Clone for Pass<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Pass<'_, B> {}

/// What a sequence keeps on the device between passes.
pub(crate) struct Buffers<B: Backend> {
    pub(crate) plan: B::Plan,
    pub(crate) hidden: B::Rows,
    pub(crate) normed: B::Input,
    pub(crate) queries: B::Rows,
    pub(crate) keys: B::Rows,
    pub(crate) values: B::Rows,
    pub(crate) attended: B::Input,
    pub(crate) activated: B::Input,
    pub(crate) projected: B::Rows,
    pub(crate) vocabulary: B::Scratch,
}

/// A device that runs the forward pass.
pub(crate) trait Backend: Sized + Send + Sync + 'static {
    /// A weight matrix `[n_out, n_in]` of any type.
    type Matrix: Send + Sync;
    /// A low-rank delta: `A [n_in, rank]` and `B [rank, n_out]`.
    type LowRank: Send + Sync;
    /// Numbers of a layer, f32: the weight of a norm, a bias, embeddings `[n, hidden]` of adaptive tokens.
    type Vector: Send + Sync;
    /// Rotary tables.
    type Rope: Send + Sync;
    /// A row plan: inputs, positions, and what each row sees.
    type Plan: Send;
    /// Activations `[n_rows, width]`, f32.
    type Rows: Send;
    /// Activations in the form that linear layers read; adaptive rows come last.
    type Input: Send;
    /// Keys and values of all layers.
    type Cache: Send;
    /// What the vocabulary projection keeps between passes.
    type Scratch: Send;

    /// What it runs on, for people.
    fn describe(&self) -> String;
    /// What measurements are valid for.
    fn fingerprint(&self) -> String;
    /// Threads of the host that share the work.
    fn n_threads(&self) -> usize;
    /// Bytes read and multiply-adds of bytes, per second, that the device reaches at best. Takes some seconds.
    fn roofline(&self) -> Result<(f64, f64), ModelError>;

    fn matrix(&self, matrix: MatrixSource<'_>) -> Result<Self::Matrix, ModelError>;
    /// Bytes that a product with it reads.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> Result<Self::LowRank, ModelError>;
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, ModelError>;
    fn rope(&self, tables: RopeTables) -> Result<Self::Rope, ModelError>;
    fn cache(
        &self,
        n_layers: usize,
        capacity: usize,
        shape: AttentionShape,
        cache_type: CacheType,
    ) -> Result<Self::Cache, ModelError>;
    /// Buffers for passes on a model of these sizes.
    fn buffers(&self, architecture: &Architecture) -> Result<Buffers<Self>, ModelError>;

    /// Says which slots of `cache` hold tokens aside.
    fn set_aside(&self, cache: &mut Self::Cache, slots: Range<usize>) -> Result<(), ModelError>;
    /// Turns the keys of the tokens aside, in all layers, to the positions from `first` on.
    fn turn(&self, cache: &mut Self::Cache, rope: &Self::Rope, first: usize) -> Result<(), ModelError>;
    /// Copies the first `n` rows of `from`.
    fn copy_prefix(&self, from: &Self::Cache, n: usize, to: &mut Self::Cache) -> Result<(), ModelError>;
    /// Keeps the first `n_base` rows, and of those behind them the rows `n_base + kept`, in order.
    fn compact(&self, cache: &mut Self::Cache, n_base: usize, kept: &[usize]) -> Result<(), ModelError>;

    /// Takes over what `plan` says of its rows.
    fn set_plan(&self, on_device: &mut Self::Plan, plan: &RowPlan, layout: &Layout)
    -> Result<(), ModelError>;
    /// Embeddings of the plan's rows; adaptive rows take theirs from `slots [k, hidden]`.
    fn embed(
        &self,
        pass: Pass<'_, Self>,
        table: &Self::Matrix,
        slots: Option<&Self::Vector>,
        out: &mut Self::Rows,
    ) -> Result<(), ModelError>;
    /// For each row the sum of the embeddings of its tokens, each times its weight; all rows `n_copies` times, one behind the
    /// other.
    fn weighted_embedding(
        &self,
        table: &Self::Matrix,
        rows: &[&[(u32, f32)]],
        n_copies: usize,
    ) -> Result<Self::Vector, ModelError>;
    /// Multiplies every value.
    fn scale(&self, rows: &mut Self::Rows, factor: f32) -> Result<(), ModelError>;
    /// `hidden += residual`, then `out = rms_norm(hidden) * weight`.
    fn normalise(
        &self,
        pass: Pass<'_, Self>,
        residual: Option<&Self::Rows>,
        hidden: &mut Self::Rows,
        norm: Norm<'_, Self>,
        out: &mut Self::Input,
    ) -> Result<(), ModelError>;
    /// The same of the rows whose logits are wanted, in their order, into `scratch`.
    fn normalise_wanted(
        &self,
        pass: Pass<'_, Self>,
        residual: &Self::Rows,
        hidden: &Self::Rows,
        norm: Norm<'_, Self>,
        scratch: &mut Self::Scratch,
    ) -> Result<(), ModelError>;
    /// `rows = rms_norm(rows) * weight`, each of the `n_heads` heads of a row for itself; the weight has the width of a
    /// head.
    fn normalise_heads(
        &self,
        pass: Pass<'_, Self>,
        n_heads: usize,
        rows: &mut Self::Rows,
        norm: Norm<'_, Self>,
    ) -> Result<(), ModelError>;
    /// Several layers on one input.
    fn project<const N: usize>(
        &self,
        pass: Pass<'_, Self>,
        layers: [Projection<'_, Self>; N],
        input: &mut Self::Input,
        outs: [&mut Self::Rows; N],
    ) -> Result<(), ModelError>;
    /// `hidden += layer(input)`, then `out = rms_norm(hidden) * weight`. `projected` is room for what is added.
    #[allow(clippy::too_many_arguments)]
    fn project_residual(
        &self,
        pass: Pass<'_, Self>,
        layer: Projection<'_, Self>,
        input: &mut Self::Input,
        projected: &mut Self::Rows,
        hidden: &mut Self::Rows,
        norm: Norm<'_, Self>,
        out: &mut Self::Input,
    ) -> Result<(), ModelError> {
        self.project(pass, [layer], input, [&mut *projected])?;
        self.normalise(pass, Some(projected), hidden, norm, out)
    }
    /// `out = silu(gate(input)) * up(input)`
    fn project_swiglu(
        &self,
        pass: Pass<'_, Self>,
        gate: Projection<'_, Self>,
        up: Projection<'_, Self>,
        input: &mut Self::Input,
        out: &mut Self::Input,
    ) -> Result<(), ModelError>;
    /// Rotates queries and keys to their positions, and writes keys and values behind the committed rows of
    /// `layer`. Of tokens aside it keeps the keys as they were too.
    #[allow(clippy::too_many_arguments)]
    fn rotate_and_store(
        &self,
        pass: Pass<'_, Self>,
        rope: &Self::Rope,
        queries: &mut Self::Rows,
        keys: &mut Self::Rows,
        values: &Self::Rows,
        cache: &mut Self::Cache,
        layer: usize,
    ) -> Result<(), ModelError>;
    /// Each row attends to the committed rows that are not hidden from it, its ancestors in the plan, and itself.
    fn attend(
        &self,
        pass: Pass<'_, Self>,
        cache: &Self::Cache,
        layer: usize,
        shape: AttentionShape,
        queries: &Self::Rows,
        out: &mut Self::Input,
    ) -> Result<(), ModelError>;
    /// Logits of the rows that [`normalise_wanted`](Self::normalise_wanted) left in `scratch`, as much as the plan
    /// wants of each.
    fn project_vocabulary(
        &self,
        pass: Pass<'_, Self>,
        head: VocabularyHead<'_, Self>,
        scratch: &mut Self::Scratch,
        logits: &mut Logits,
    ) -> Result<(), ModelError>;
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
        let plain = RopeTables::new(&architecture(1.0), &[], 32);
        let scaled = RopeTables::new(&architecture(2.0), &[], 32);
        let stretched = RopeTables::new(&architecture(1.0), &[1.0, 1.0, 2.0, 8.0], 32);
        let pair = |rope: &RopeTables, position: usize, i: usize| {
            (rope.cos[position * 4 + i], rope.sin[position * 4 + i])
        };
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
