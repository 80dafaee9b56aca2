//! The norm by the root of the mean square (arXiv 1910.07467), with a weight that is frozen, as one node of the graph.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};

use crate::rows::{for_each_row, numbers};

#[derive(Clone)]
struct Norm {
    weight: Vec<f32>,
    epsilon: f32,
}

impl Norm {
    /// One over the root of the mean square of `x`.
    fn scale(&self, x: &[f32]) -> f32 {
        let sum: f32 = x.iter().map(|x| x * x).sum();
        1.0 / (sum / x.len() as f32 + self.epsilon).sqrt()
    }
}

/// Of `x` and the gradient of what became of it.
struct Gradient(Norm);

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm with a frozen weight"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = numbers(x, layout)?;
        let n = self.weight.len();
        let mut out = vec![0.0f32; x.len()];
        for_each_row(&mut out, n, |row, out| {
            let x = &x[row * n..][..n];
            let scale = self.scale(x);
            for ((out, x), weight) in out.iter_mut().zip(x).zip(&self.weight) {
                *out = x * scale * weight;
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        x.apply_op2_no_bwd(&gradient.contiguous()?, &Gradient(self.clone())).map(Some)
    }
}

impl CustomOp2 for Gradient {
    fn name(&self) -> &'static str {
        "gradient of a norm with a frozen weight"
    }

    /// With `s` for the scale and `h` for the gradient times the weight: `s h - x s³ mean(h x)`.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        of_gradient: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Self(norm) = self;
        let (x, gradient) = (numbers(x, layout)?, numbers(gradient, of_gradient)?);
        let n = norm.weight.len();
        let mut out = vec![0.0f32; x.len()];
        for_each_row(&mut out, n, |row, out| {
            let (x, gradient) = (&x[row * n..][..n], &gradient[row * n..][..n]);
            let scale = norm.scale(x);
            for ((out, gradient), weight) in out.iter_mut().zip(gradient).zip(&norm.weight) {
                *out = gradient * weight;
            }
            let sum: f32 = out.iter().zip(x).map(|(of_normed, x)| of_normed * x).sum();
            let along = sum / n as f32 * scale * scale * scale;
            out.iter_mut().zip(x).for_each(|(out, x)| *out = *out * scale - x * along);
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// `x / sqrt(mean(x²) + epsilon) * weight` over the last dimension, by operations that pass a gradient on to the weight too.
pub(crate) fn norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(weight)
}

/// The same where the weight is frozen.
pub(crate) fn frozen_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => x.contiguous()?.apply_op1(Norm { weight: weight.to_vec1()?, epsilon }),
        false => norm(x, weight, epsilon),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::outside::value_and_gradients;

    #[test]
    fn it_is_what_its_parts_are() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = |n: usize| {
            let numbers: Vec<f32> = (0..n).map(|_| 3.0 * (random.f32() - 0.3)).collect();
            Tensor::from_vec(numbers, n, &Device::Cpu).expect("numbers")
        };
        let rows = |x: Tensor| x.reshape((2, 3, 10)).expect("rows");
        let (x, of_loss, weight) = (rows(numbers(60)), rows(numbers(60)), numbers(10));
        let x = Var::from_tensor(&x).expect("a variable");
        let of = |y| value_and_gradients(y, &of_loss, &[&x]);
        let expected = of(norm(x.as_tensor(), &weight, 0.1));
        let got = of(frozen_norm(x.as_tensor(), &weight, 0.1));
        for (expected, got) in expected.iter().zip(&got) {
            assert!((expected - got).abs() < 1e-5 * expected.abs().max(1.0), "{expected} {got}");
        }
    }
}
