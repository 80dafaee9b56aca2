//! Low-rank deltas of adaptive rows.

use crate::{BLOCK, LinearInput, LinearLayer, PackedMatrix, Pool, Tier, add_rows, project};

/// `y += (x A) B`, both factors in eight bits with a scale per 32 weights (Q8_0). Deltas only shape
/// drafts, so their rounding can change how many are accepted, and never a token.
#[derive(Debug)]
pub struct LowRank {
    /// `A` transposed, `[rank, n_in]`.
    pub(crate) a: PackedMatrix,
    /// `B` transposed, `[n_out, rank]`, the rank padded to whole blocks.
    pub(crate) b: PackedMatrix,
}

impl LowRank {
    /// Packs `a`, `[n_in, rank]`, and `b`, `[rank, n_out]`.
    ///
    /// # Panics
    /// When the sizes do not fit each other, or `n_in` is not a multiple of 32.
    pub fn pack(a: &[f32], b: &[f32], rank: usize, pool: &Pool) -> Self {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank));
        let (n_in, n_out, padded) = (a.len() / rank, b.len() / rank, rank.next_multiple_of(BLOCK));
        let transposed: Vec<f32> = (0..rank * n_in).map(|i| a[i % n_in * rank + i / n_in]).collect();
        let a = PackedMatrix::quantize(rank, n_in, &transposed, pool);
        let mut transposed = vec![0.0; n_out * padded];
        for (row, values) in b.chunks_exact(n_out).enumerate() {
            transposed.iter_mut().skip(row).step_by(padded).zip(values).for_each(|(to, from)| *to = *from);
        }
        Self { a, b: PackedMatrix::quantize(n_out, padded, &transposed, pool) }
    }

    /// `out += (values A) B` for rows `[n_rows, n_in]`, beside weights that are not packed; where they are,
    /// [`project`] does it on the way.
    ///
    /// # Panics
    /// When the sizes do not fit each other.
    pub fn add(&self, pool: &Pool, tier: Tier, values: &[f32], out: &mut [f32]) {
        let n_rows = values.len() / self.a.n_in;
        let inner = product(pool, tier, &self.a, values);
        let mut padded = vec![0.0; n_rows * self.b.n_in];
        for (padded, inner) in padded.chunks_exact_mut(self.b.n_in).zip(inner.chunks_exact(self.a.n_out)) {
            padded[..inner.len()].copy_from_slice(inner);
        }
        add_rows(tier, &product(pool, tier, &self.b, &padded), out);
    }
}

/// `values Wᵀ` for rows `[n_rows, n_in]`.
fn product(pool: &Pool, tier: Tier, matrix: &PackedMatrix, values: &[f32]) -> Vec<f32> {
    let n_rows = values.len() / matrix.n_in;
    let mut input = LinearInput::default();
    input.values.extend(values);
    input.first_adaptive = n_rows;
    input.quantize(pool, tier, matrix.n_in);
    let mut out = vec![0.0; n_rows * matrix.n_out];
    project(pool, tier, [LinearLayer { matrix, bias: None, delta: None }], &mut input, [&mut out]);
    out
}
