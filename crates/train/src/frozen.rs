//! Products with what does not learn.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

use crate::rows::for_each_row;

/// A product whose gradient reaches its first argument alone: candle's own computes that of both, and that of a frozen
/// weight is as large as the weight.
struct FrozenProduct;

/// Shapes as of [`Tensor::matmul`].
pub(crate) fn product<S: BackendStorage>(
    left: &S,
    of_left: &Layout,
    right: &S,
    of_right: &Layout,
) -> Result<(S, Shape)> {
    let (left_dims, right_dims) = (of_left.dims(), of_right.dims());
    let rank = left_dims.len();
    let (batch, [m, k]) = (&left_dims[..rank - 2], [left_dims[rank - 2], left_dims[rank - 1]]);
    let n = right_dims[rank - 1];
    let shape = [batch, &[m, n]].concat();
    let storage = left.matmul(right, (batch.iter().product(), m, n, k), of_left, of_right)?;
    Ok((storage, Shape::from(shape)))
}

/// `(left right)ᵀ`, `[n, m]` in rows, where `left [m, k]` has no gaps and `right [k, n]` is a view of a file's `[n_out, n_in]`: for
/// gemm `W xᵀ` is the faster way around, 190 to 205 GFLOPS where the other has 115 to 150 (2 cores of an Intel Xeon at 2.5 GHz,
/// shapes of the 0.5B).
pub(crate) fn turned_product(
    left: &CpuStorage,
    of_left: &Layout,
    right: &CpuStorage,
    of_right: &Layout,
) -> Result<Option<Vec<f32>>> {
    let is_weight = of_right.stride().first() == Some(&1) && of_right.dims().len() == 2;
    if !is_weight || !of_left.is_contiguous() {
        return Ok(None);
    }
    let (turned, _) = product(right, &of_right.transpose(0, 1)?, left, &of_left.transpose(0, 1)?)?;
    match turned {
        CpuStorage::F32(turned) => Ok(Some(turned)),
        _ => Ok(None),
    }
}

impl CustomOp2 for FrozenProduct {
    fn name(&self) -> &'static str {
        "product with a frozen weight"
    }

    fn cpu_fwd(
        &self,
        left: &CpuStorage,
        of_left: &Layout,
        right: &CpuStorage,
        of_right: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Some(turned) = turned_product(left, of_left, right, of_right)? else {
            return product(left, of_left, right, of_right);
        };
        let (m, n) = (of_left.dims()[0], of_right.dims()[1]);
        let mut out = vec![0.0f32; m * n];
        for_each_row(&mut out, n, |row, values| {
            values
                .iter_mut()
                .zip(turned.chunks_exact(m))
                .for_each(|(value, of_output)| *value = of_output[row]);
        });
        Ok((CpuStorage::F32(out), Shape::from((m, n))))
    }

    fn cuda_fwd(
        &self,
        left: &CudaStorage,
        of_left: &Layout,
        right: &CudaStorage,
        of_right: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        product(left, of_left, right, of_right)
    }

    fn metal_fwd(
        &self,
        left: &MetalStorage,
        of_left: &Layout,
        right: &MetalStorage,
        of_right: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        product(left, of_left, right, of_right)
    }

    fn bwd(
        &self,
        _: &Tensor,
        right: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.contiguous()?.matmul(&right.t()?)?), None))
    }
}

/// `left right`, whose gradient reaches `left` alone. Shapes as of [`Tensor::matmul`], ranks alike.
///
/// # Errors
/// Shapes that do not match.
pub(crate) fn frozen_product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (left_dims, right_dims) = (left.dims(), right.dims());
    let rank = left_dims.len();
    let fits = rank >= 2 && right_dims.len() == rank && left_dims[..rank - 2] == right_dims[..rank - 2];
    if !fits || left_dims[rank - 1] != right_dims[rank - 2] {
        return Err(candle_core::Error::Msg(format!("no product of {left_dims:?} and {right_dims:?}")));
    }
    left.apply_op2(right, FrozenProduct)
}
