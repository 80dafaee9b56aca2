//! The numbers of an adapter's file.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::mismatch;
use crate::ModelError;

/// The tensors of the file of an adapter, whatever types they have: f32, f16, bf16, or whole numbers in eight bits, which have
/// their scales in a tensor of their own.
pub struct AdapterTensors<'a> {
    tensors: SafeTensors<'a>,
    path: &'a Path,
}

impl<'a> AdapterTensors<'a> {
    /// Behind the name of a tensor in eight bits: the factors of its blocks, f16, `[n_blocks, n_columns]` or `[n_rows, n_blocks]`
    /// with blocks as long as that makes them.
    pub const SCALES: &'static str = ".scales";

    /// Those in `bytes`, which `path` names in errors.
    ///
    /// # Errors
    /// [`ModelError::AdapterFile`].
    pub fn new(bytes: &'a [u8], path: &'a Path) -> Result<Self, ModelError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| refusal(path, &error))?;
        Ok(Self { tensors, path })
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// How many there are, scales aside.
    pub(crate) fn len(&self) -> usize {
        let n_scales = self.tensors.iter().filter(|(_, tensor)| tensor.dtype() == Dtype::I8).count();
        self.tensors.len() - n_scales
    }

    fn named(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        self.tensors.tensor(name).map_err(|error| refusal(self.path, &format!("`{name}`: {error}")))
    }

    /// The shape of the tensor `name`.
    ///
    /// # Errors
    /// [`ModelError::AdapterFile`] where there is none.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, ModelError> {
        Ok(self.named(name)?.shape().to_vec())
    }

    /// The numbers of the tensor `name`, row by row.
    ///
    /// # Errors
    /// [`ModelError::AdapterFile`], [`ModelError::AdapterMismatch`] for types that are not read, and [`ModelError::NotFinite`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let tensor = self.named(name)?;
        let data = tensor.data();
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => halves(data).collect(),
            Dtype::BF16 => data
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32())
                .collect(),
            Dtype::I8 => {
                let scales = self.named(&format!("{name}{}", Self::SCALES))?;
                scaled(&tensor, &scales).ok_or_else(|| {
                    let expected = format!("F16, one for each block of {:?}", tensor.shape());
                    let got = format!("{:?}, {:?}", scales.dtype(), scales.shape());
                    mismatch(format!("scales of {name}"), expected, got)
                })?
            }
            got => {
                return Err(mismatch(format!("type of {name}"), "F32, F16, BF16 or I8", format!("{got:?}")));
            }
        };
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(ModelError::NotFinite { tensor: name.to_owned() }),
        }
    }

    /// The same of one that must have this shape.
    pub(crate) fn of_shape(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let got = self.shape(name)?;
        if got != shape {
            return Err(mismatch(format!("shape of {name}"), format!("{shape:?}"), format!("{got:?}")));
        }
        self.values(name)
    }
}

fn refusal(path: &Path, reason: &dyn ToString) -> ModelError {
    ModelError::AdapterFile { path: path.to_owned(), reason: reason.to_string() }
}

fn halves(data: &[u8]) -> impl Iterator<Item = f32> {
    data.as_chunks::<2>().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())
}

/// Numbers in eight bits times the scales of their blocks; `None` where these do not fit them.
fn scaled(numbers: &TensorView<'_>, scales: &TensorView<'_>) -> Option<Vec<f32>> {
    let (&[n_rows, n_columns], &[n_down, n_across]) = (numbers.shape(), scales.shape()) else { return None };
    let fits = |n_blocks: usize, n: usize| (1..=n.max(1)).contains(&n_blocks);
    if scales.dtype() != Dtype::F16 || !fits(n_down, n_rows) || !fits(n_across, n_columns) {
        return None;
    }
    let of_blocks: Vec<f32> = halves(scales.data()).collect();
    let (down, across) = (n_rows.div_ceil(n_down), n_columns.div_ceil(n_across));
    let values = numbers.data().iter().enumerate().map(|(idx, &number)| {
        let (row, column) = (idx / n_columns, idx % n_columns);
        f32::from(number as i8) * of_blocks[row / down * n_across + column / across]
    });
    Some(values.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(scales: (Dtype, Vec<usize>, &[u8])) -> Vec<u8> {
        let numbers = [1i8, -2, 3, 4, 5, -127, 7, 8].map(|number| number as u8);
        let view = TensorView::new(Dtype::I8, vec![4, 2], &numbers).expect("a tensor");
        let (dtype, shape, bytes) = scales;
        let scales = TensorView::new(dtype, shape, bytes).expect("scales");
        safetensors::serialize([("x", view), ("x.scales", scales)], None).expect("a file")
    }

    #[test]
    fn numbers_in_eight_bits_have_the_scales_of_their_blocks() {
        let halves = |values: [f32; 4]| values.map(half::f16::from_f32).map(half::f16::to_le_bytes).concat();
        let scales = halves([1.0, 10.0, 0.5, 2.0]);
        let values = |shape: Vec<usize>, bytes: &[u8]| {
            let bytes = file((Dtype::F16, shape, bytes));
            let tensors = AdapterTensors::new(&bytes, "x".as_ref()).expect("a file");
            assert_eq!((tensors.len(), tensors.shape("x").expect("a shape")), (1, vec![4, 2]));
            tensors.values("x")
        };
        // Two rows a block, a row a block across, and all in one.
        let down = values(vec![2, 2], &scales).expect("numbers");
        assert_eq!(down, [1.0, -20.0, 3.0, 40.0, 2.5, -254.0, 3.5, 16.0]);
        let across = values(vec![4, 1], &scales).expect("numbers");
        assert_eq!(across, [1.0, -2.0, 30.0, 40.0, 2.5, -63.5, 14.0, 16.0]);
        assert_eq!(values(vec![1, 1], &scales[..2]).expect("numbers")[5], -127.0);
        let infinite = values(vec![2, 2], &halves([1.0, f32::INFINITY, 1.0, 1.0])).expect_err("no number");
        assert!(matches!(infinite, ModelError::NotFinite { .. }), "{infinite}");
        for (dtype, shape, n) in
            [(Dtype::F16, vec![4], 8), (Dtype::F16, vec![0, 2], 0), (Dtype::I8, vec![4, 2], 8)]
        {
            let bytes = file((dtype, shape, &scales[..n]));
            let error = AdapterTensors::new(&bytes, "x".as_ref()).and_then(|tensors| tensors.values("x"));
            assert!(error.is_err_and(|error| error.to_string().contains("scales of x")), "{dtype:?}");
        }
    }
}
