//! Where is trained.

use std::str::FromStr;

use candle_core::Device;

use crate::error::TrainError;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainDevice {
    /// The processor.
    Cpu,
    /// NVIDIA's GPU of that number, in builds with the feature `cuda`. Products are TF32 there (ten bits behind the point):
    /// what is learnt from is the model's own distribution but for that, what is written is checked by the engine like
    /// any adapter.
    Cuda(usize),
}

impl FromStr for TrainDevice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            Some(("cuda", index)) => match index.parse() {
                Ok(index) => Ok(Self::Cuda(index)),
                Err(_) => Err(format!("`{index}` is no number of a GPU")),
            },
            _ => Err("expected `cpu` or `cuda:0`".to_owned()),
        }
    }
}

impl TrainDevice {
    /// # Errors
    /// [`TrainError::NoCuda`], and what CUDA says.
    pub(crate) fn open(self) -> Result<Device, TrainError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(TrainError::NoCuda),
            Self::Cuda(index) => {
                // The steps of a run free and need the same memory over and over.
                #[cfg(feature = "cuda")]
                gpu::keep_freed_memory(index).map_err(|error| TrainError::Gpu(error.to_string()))?;
                candle_core::cuda::set_gemm_reduced_precision_f32(true);
                Ok(Device::new_cuda(index)?)
            }
        }
    }
}
