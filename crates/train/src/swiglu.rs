//! SwiGLU with its gradient: a pass over the numbers each, where candle has an operation, and a gradient to keep, for every part.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::rows::{for_each_row, numbers};

/// Numbers that a thread takes together.
const CHUNK: usize = 1024;

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

struct Forward;

/// The gradient of the gate.
struct GateGradient;

fn of_chunks(n: usize, of_number: impl Fn(usize) -> f32 + Sync) -> CpuStorage {
    let mut out = vec![0.0f32; n];
    let (whole, rest) = out.split_at_mut(n / CHUNK * CHUNK);
    for_each_row(whole, CHUNK, |chunk, values| {
        values.iter_mut().enumerate().for_each(|(i, value)| *value = of_number(chunk * CHUNK + i));
    });
    let first = n - rest.len();
    rest.iter_mut().enumerate().for_each(|(i, value)| *value = of_number(first + i));
    CpuStorage::F32(out)
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        "SwiGLU"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        of_up: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (numbers(gate, layout)?, numbers(up, of_up)?);
        Ok((of_chunks(gate.len(), |i| silu(gate[i]) * up[i]), layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let of_gate = gate.apply_op3_no_bwd(up, &gradient, &GateGradient)?;
        Ok((Some(of_gate), Some(gate.apply_op2_no_bwd(&gradient, &Self)?)))
    }
}

impl CustomOp3 for GateGradient {
    fn name(&self) -> &'static str {
        "gradient of SwiGLU"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        of_up: &Layout,
        gradient: &CpuStorage,
        of_gradient: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (numbers(gate, layout)?, numbers(up, of_up)?);
        let gradient = numbers(gradient, of_gradient)?;
        let of_number = |i: usize| {
            let share = 1.0 / (1.0 + (-gate[i]).exp());
            gradient[i] * up[i] * share * (1.0 + gate[i] * (1.0 - share))
        };
        Ok((of_chunks(gate.len(), of_number), layout.shape().clone()))
    }
}

/// `silu(gate) * up`, shapes alike.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match gate.device().is_cpu() {
        true => gate.contiguous()?.apply_op2(&up.contiguous()?, Forward),
        false => gate.silu()? * up,
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
        // Not whole chunks.
        let mut rows = || {
            let numbers: Vec<f32> = (0..3 * 700).map(|_| 12.0 * (random.f32() - 0.5)).collect();
            Var::from_vec(numbers, (3, 700), &Device::Cpu).expect("rows")
        };
        let (gate, up, weight) = (rows(), rows(), rows());
        let of = |value| value_and_gradients(value, &weight.as_detached_tensor(), &[&gate, &up]);
        let expected = of(gate.silu().and_then(|activated| activated * up.as_tensor()));
        let got = of(swiglu(gate.as_tensor(), up.as_tensor()));
        for (expected, got) in expected.iter().zip(&got) {
            assert!((expected - got).abs() < 1e-5 * expected.abs().max(1.0), "{expected} {got}");
        }
    }
}
