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
use kernels::AttentionShape;
use speculate::RowPlan;

use crate::ModelError;
use crate::architecture::RopeLayout;
use crate::gguf::TensorType;

/// A tensor of a weight file: `[n_out, n_in]`, row after row.
#[derive(Clone, Copy)]
pub(crate) struct MatrixBytes<'a> {
    pub(crate) tensor_type: TensorType,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    pub(crate) bytes: &'a [u8],
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
    /// Tables for `n_positions` positions; angle = position / base^(2i / rope_dim)
    /// (RoFormer, arXiv 2104.09864, §3.2.2).
    pub(crate) fn new(
        layout: RopeLayout,
        head_dim: usize,
        rope_dim: usize,
        base: f64,
        n_positions: usize,
    ) -> Self {
        let n_pairs = rope_dim / 2;
        let frequencies: Vec<f64> =
            (0..n_pairs).map(|i| base.powf(-2.0 * i as f64 / rope_dim as f64)).collect();
        let mut cos = Vec::with_capacity(n_positions * n_pairs);
        let mut sin = Vec::with_capacity(n_positions * n_pairs);
        for position in 0..n_positions {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { layout, head_dim, rope_dim, cos, sin }
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

/// What the rows of a pass see: all committed slots, and those listed for each.
pub(crate) struct Visibility {
    pub(crate) n_committed: usize,
    pub(crate) visible: Vec<Vec<usize>>,
}

impl Visibility {
    /// Of the rows of `plan`, which stand behind the committed ones.
    pub(crate) fn of(plan: &RowPlan) -> Self {
        let n_committed = plan.n_committed();
        let slots = |row| plan.visible(row).into_iter().map(|row| n_committed + row).collect();
        Self { n_committed, visible: (0..plan.rows().len()).map(slots).collect() }
    }
}

/// A device that runs the forward pass.
pub(crate) trait Backend: Send + Sync {
    /// A weight matrix `[n_out, n_in]` of any type.
    type Matrix: Send + Sync;
    /// A low-rank delta: `A [n_in, rank]` and `B [rank, n_out]`.
    type LowRank: Send + Sync;
    /// Activations `[n_rows, width]`, f32.
    type Rows: Default + Send;
    /// Keys and values of all layers.
    type Cache: Send;

    fn matrix(&self, matrix: MatrixBytes<'_>) -> Result<Self::Matrix, ModelError>;
    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> Self::LowRank;
    fn cache(&self, n_layers: usize, capacity: usize, kv_width: usize) -> Self::Cache;
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
    fn rms_norm(&self, input: &Self::Rows, weight: &[f32], epsilon: f32, out: &mut Self::Rows);
    fn linear(
        &self,
        matrix: &Self::Matrix,
        bias: Option<&[f32]>,
        input: &Self::Rows,
        out: &mut Self::Rows,
    ) -> Result<(), ModelError>;
    /// `out += (input A) B` for the rows from `first_row` on.
    fn add_low_rank(&self, delta: &Self::LowRank, first_row: usize, input: &Self::Rows, out: &mut Self::Rows);
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
    fn attend(
        &self,
        cache: &Self::Cache,
        layer: usize,
        shape: AttentionShape,
        pass: &Visibility,
        queries: &Self::Rows,
        out: &mut Self::Rows,
    );
    /// `gate = silu(gate) * up`
    fn swiglu(&self, gate: &mut Self::Rows, up: &Self::Rows);
    /// `out += input`
    fn add(&self, input: &Self::Rows, out: &mut Self::Rows);
    /// Copies the rows of `selection`.
    fn select(&self, input: &Self::Rows, selection: &[usize], out: &mut Self::Rows);
    /// The values on the host, row after row. What `rows` hold afterwards is not defined.
    fn to_host(&self, rows: &mut Self::Rows, out: &mut Vec<f32>);
}
