//! Rotary positions (RoFormer, arXiv 2104.09864), as one node of the graph.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use model::RopeLayout;

use crate::rows::{for_each_row, numbers};

/// How heads turn at some positions.
#[derive(Clone)]
pub(crate) struct Rotation {
    layout: RopeLayout,
    /// `[n_rows, rope_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
    /// The same on the processor.
    angles: Option<Arc<[Vec<f32>; 2]>>,
}

impl Rotation {
    /// From tables of all positions, `[n_positions, rope_dim / 2]` each, to `positions [n_rows]`.
    pub(crate) fn new(layout: RopeLayout, [cos, sin]: [&Tensor; 2], positions: &Tensor) -> Result<Self> {
        let (cos, sin) = (cos.index_select(positions, 0)?, sin.index_select(positions, 0)?);
        let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let angles = match cos.device().is_cpu() {
            true => Some(Arc::new([numbers(&cos)?, numbers(&sin)?])),
            false => None,
        };
        Ok(Self { layout, cos, sin, angles })
    }

    /// Turns `x [n_rows, n_heads, head_dim]`.
    pub(crate) fn turn(&self, x: &Tensor) -> Result<Tensor> {
        match &self.angles {
            Some(angles) => {
                let turn = Turn { layout: self.layout, angles: angles.clone(), direction: 1.0 };
                x.contiguous()?.apply_op1(turn)
            }
            None => self.turn_by_tensors(x),
        }
    }

    /// The same by operations that every device has.
    fn turn_by_tensors(&self, x: &Tensor) -> Result<Tensor> {
        let (n_rows, n_heads, head_dim) = x.dims3()?;
        let half = self.cos.dim(1)?;
        let of_rows = |table: &Tensor| table.reshape((n_rows, 1, half));
        let (cos, sin) = (of_rows(&self.cos)?, of_rows(&self.sin)?);
        let turning = x.narrow(D::Minus1, 0, 2 * half)?;
        let pairs = |a: &Tensor, b: &Tensor| -> Result<(Tensor, Tensor)> {
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Ok((first, second))
        };
        let turned = match self.layout {
            RopeLayout::Half => {
                let (a, b) =
                    pairs(&turning.narrow(D::Minus1, 0, half)?, &turning.narrow(D::Minus1, half, half)?)?;
                Tensor::cat(&[a, b], D::Minus1)?
            }
            RopeLayout::Interleaved => {
                let both = turning.reshape((n_rows, n_heads, half, 2))?;
                let part = |i| both.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
                let (a, b) = pairs(&part(0)?, &part(1)?)?;
                Tensor::stack(&[a, b], D::Minus1)?.reshape((n_rows, n_heads, 2 * half))?
            }
        };
        match 2 * half == head_dim {
            true => Ok(turned),
            false => Tensor::cat(&[turned, x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?], D::Minus1),
        }
    }
}

struct Turn {
    layout: RopeLayout,
    angles: Arc<[Vec<f32>; 2]>,
    /// 1, or -1 back: the gradient of a rotation is the rotation back.
    direction: f32,
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "rotary positions"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n_rows, n_heads, head_dim) = layout.shape().dims3()?;
        let mut out = numbers(x, layout)?.to_vec();
        let [cos, sin] = &*self.angles;
        let half = cos.len() / n_rows.max(1);
        for_each_row(&mut out, n_heads * head_dim, |row, heads| {
            let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
            for head in heads.chunks_exact_mut(head_dim) {
                for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                    let (a, b) = match self.layout {
                        RopeLayout::Half => (i, i + half),
                        RopeLayout::Interleaved => (2 * i, 2 * i + 1),
                    };
                    let (x, y, sin) = (head[a], head[b], sin * self.direction);
                    head[a] = x * cos - y * sin;
                    head[b] = x * sin + y * cos;
                }
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { layout: self.layout, angles: self.angles.clone(), direction: -self.direction };
        gradient.contiguous()?.apply_op1_no_bwd(&back).map(Some)
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
            let numbers: Vec<f32> = (0..n).map(|_| random.f32() - 0.5).collect();
            Tensor::from_vec(numbers, n, &Device::Cpu).expect("numbers")
        };
        let angles = (numbers(5 * 4) * 6.0).and_then(|angles| angles.reshape((5, 4))).expect("angles");
        let (cos, sin) = (angles.cos().expect("a table"), angles.sin().expect("a table"));
        let positions = Tensor::new(&[4u32, 0, 2], &Device::Cpu).expect("positions");
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            // Whole heads turn, or the first eight of twelve dimensions.
            for head_dim in [8, 12] {
                let rows = |x: Tensor| x.reshape((3, 2, head_dim)).expect("rows");
                let (x, of_loss) = (rows(numbers(6 * head_dim)), rows(numbers(6 * head_dim)));
                let x = Var::from_tensor(&x).expect("a variable");
                let of = |turned| value_and_gradients(turned, &of_loss, &[&x]);
                let rotation = Rotation::new(layout, [&cos, &sin], &positions).expect("a rotation");
                let expected = of(rotation.turn_by_tensors(x.as_tensor()));
                let got = of(rotation.turn(x.as_tensor()));
                for (expected, got) in expected.iter().zip(&got) {
                    assert!((expected - got).abs() < 1e-5, "{expected} {got}");
                }
            }
        }
    }
}
