//! Values that are computed outside of candle's graph, with gradients that are known better than it would find them.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor};

/// The gradient of an argument, from the value and its gradient.
type Gradient = dyn Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync;

struct Outside {
    gradient: Box<Gradient>,
}

impl CustomOp2 for Outside {
    fn name(&self) -> &'static str {
        "a value that was computed outside"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        value: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((BackendStorage::try_clone(value, layout)?, layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        value: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((BackendStorage::try_clone(value, layout)?, layout.shape().clone()))
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        value: &MetalStorage,
        layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Ok((BackendStorage::try_clone(value, layout)?, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        value: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(((self.gradient)(value, gradient).map(Some)?, None))
    }
}

/// `value`, which was computed from `argument` outside of the graph, as part of it: `gradient` makes the argument's gradient
/// of the value and its own.
pub(crate) fn computed_outside(
    argument: &Tensor,
    value: &Tensor,
    gradient: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    argument.apply_op2(value, Outside { gradient: Box::new(gradient) })
}

/// For tests of nodes: the numbers of `value`, then those of the gradients of `variables` where its own gradient is `of_value`.
///
/// # Panics
/// When it was not computed, or a variable has no gradient.
#[cfg(test)]
pub(crate) fn value_and_gradients(
    value: Result<Tensor>,
    of_value: &Tensor,
    variables: &[&candle_core::Var],
) -> Vec<f32> {
    let numbers = || {
        let value = value?;
        let gradients = (&value * of_value)?.sum_all()?.backward()?;
        let mut all = vec![value.flatten_all()?];
        for variable in variables {
            all.push(gradients.get(variable.as_tensor()).expect("a gradient").flatten_all()?);
        }
        Tensor::cat(&all, 0)?.to_vec1()
    };
    numbers().expect("computes")
}
