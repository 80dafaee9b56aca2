//! Low-rank deltas of adaptive rows.

use crate::{BLOCK, KernelError, PackedMatrix, Pool};

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
    /// # Errors
    /// [`KernelError`].
    ///
    /// # Panics
    /// When the sizes do not fit each other.
    pub fn pack(a: &[f32], b: &[f32], rank: usize, pool: &Pool) -> Result<Self, KernelError> {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank));
        let (n_in, n_out, padded) = (a.len() / rank, b.len() / rank, rank.next_multiple_of(BLOCK));
        let transposed: Vec<f32> = (0..rank * n_in).map(|i| a[i % n_in * rank + i / n_in]).collect();
        let a = PackedMatrix::quantize(rank, n_in, &transposed, pool)?;
        let mut transposed = vec![0.0; n_out * padded];
        for (row, values) in b.chunks_exact(n_out).enumerate() {
            transposed.iter_mut().skip(row).step_by(padded).zip(values).for_each(|(to, from)| *to = *from);
        }
        Ok(Self { a, b: PackedMatrix::quantize(n_out, padded, &transposed, pool)? })
    }
}
