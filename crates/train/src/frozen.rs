//! Products with what does not learn.

use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

/// Stands for a product that was computed outside of the graph: forward it is its second argument, backward it knows
/// the gradient of the first. candle's own product computes the gradient of both, and that of a frozen weight is as
/// large as the weight.
struct Product {
    /// What the first argument was multiplied with.
    right: Tensor,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product with a frozen weight"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        product: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((candle_core::backend::BackendStorage::try_clone(product, layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        product: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((candle_core::backend::BackendStorage::try_clone(product, layout)?, layout.shape().clone()))
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        product: &MetalStorage,
        layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Ok((candle_core::backend::BackendStorage::try_clone(product, layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.contiguous()?.matmul(&self.right.t()?)?), None))
    }
}

/// `left right`, whose gradient reaches `left` alone. Shapes as of [`Tensor::matmul`].
pub(crate) fn frozen_product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let product = left.detach().matmul(right)?;
    left.apply_op2(&product, Product { right: right.clone() })
}
