//! The product with a frozen weight and its low-rank delta, as one node of the graph: as candle's own operations they are five,
//! and each keeps, clears and adds gradients as large as the output.

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor};

use crate::base::Linear;
use crate::frozen::{frozen_product, product, turned_product};
use crate::rows::for_each_row;

/// Its arguments are `x`, `a` and `b`.
struct DeltaProduct {
    /// `[n_in, n_out]`, a view of the file's `[n_out, n_in]`.
    weight: Tensor,
    /// `[n_out]`
    bias: Option<Vec<f32>>,
}

impl CustomOp3 for DeltaProduct {
    fn name(&self) -> &'static str {
        "product with a frozen weight and its delta"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        of_x: &Layout,
        a: &CpuStorage,
        of_a: &Layout,
        b: &CpuStorage,
        of_b: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (weight, of_weight) = self.weight.storage_and_layout();
        let candle_core::Storage::Cpu(weight) = &*weight else {
            return Err(Error::Msg("the weight is not on the processor".to_owned()));
        };
        let Some(turned) = turned_product(x, of_x, weight, of_weight)? else {
            return Err(Error::Msg("rows with gaps, or a weight that is none".to_owned()));
        };
        let (narrow, of_narrow) = product(x, of_x, a, of_a)?;
        let (out, shape) = product(&narrow, &Layout::contiguous(of_narrow), b, of_b)?;
        let (m, n) = shape.dims2()?;
        let CpuStorage::F32(mut out) = out else {
            return Err(Error::Msg("an adapter's numbers are f32".to_owned()));
        };
        for_each_row(&mut out, n, |row, values| {
            for (value, of_output) in values.iter_mut().zip(turned.chunks_exact(m)) {
                *value += of_output[row];
            }
            if let Some(bias) = &self.bias {
                values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        });
        Ok((CpuStorage::F32(out), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // Else gradients would have a graph of their own, and keep all that it is made of.
        let [x, a, b, gradient] = [x.detach(), a.detach(), b.detach(), gradient.detach().contiguous()?];
        let of_narrow = gradient.matmul(&b.t()?)?;
        let of_x = (gradient.matmul(&self.weight.t()?)? + of_narrow.matmul(&a.t()?)?)?;
        let of_a = x.t()?.matmul(&of_narrow)?;
        let of_b = x.matmul(&a)?.t()?.matmul(&gradient)?;
        Ok((Some(of_x), Some(of_a), Some(of_b)))
    }
}

/// `x W + x a b + bias`, `[n_rows, n_out]` from `x [n_rows, n_in]`, `a [n_in, rank]` and `b [rank, n_out]`, to which gradients reach.
pub(crate) fn delta_product(x: &Tensor, linear: &Linear, [a, b]: &[Tensor; 2]) -> Result<Tensor> {
    if x.device().is_cpu() {
        let bias = linear.bias.as_ref().map(Tensor::to_vec1).transpose()?;
        return x.contiguous()?.apply_op3(a, b, DeltaProduct { weight: linear.weight.clone(), bias });
    }
    let y = (frozen_product(x, &linear.weight)? + x.matmul(a)?.matmul(b)?)?;
    linear.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::outside::value_and_gradients;

    #[test]
    fn it_is_what_its_parts_are() {
        let (n_rows, n_in, rank, n_out) = (5, 12, 3, 9);
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = |shape: (usize, usize)| {
            let numbers: Vec<f32> = (0..shape.0 * shape.1).map(|_| random.f32() - 0.5).collect();
            Var::from_vec(numbers, shape, &Device::Cpu).expect("numbers")
        };
        let (x, a, b) = (numbers((n_rows, n_in)), numbers((n_in, rank)), numbers((rank, n_out)));
        let weight = numbers((n_out, n_in)).as_detached_tensor().t().expect("a view");
        let of_loss = numbers((n_rows, n_out)).as_detached_tensor();
        let bias = numbers((1, n_out)).as_detached_tensor().squeeze(0).expect("a row");
        let of = |y| value_and_gradients(y, &of_loss, &[&x, &a, &b]);
        for bias in [None, Some(bias)] {
            let by_parts = || {
                let y = (x.matmul(&weight)? + x.matmul(&a)?.matmul(&b)?)?;
                bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
            };
            let expected = of(by_parts());
            let linear = Linear { weight: weight.clone(), bias: bias.clone() };
            let deltas = [a.as_tensor().clone(), b.as_tensor().clone()];
            let got = of(delta_product(x.as_tensor(), &linear, &deltas));
            for (expected, got) in expected.iter().zip(&got) {
                assert!((expected - got).abs() < 1e-5, "{expected} {got}");
            }
        }
    }
}
