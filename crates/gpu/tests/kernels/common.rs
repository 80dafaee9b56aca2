//! Devices, weights and numbers for tests.
#![allow(dead_code, unreachable_pub, missing_docs)]

use gpu::{Device, DeviceInfo, ScaleLayout, WeightLayout};
use half::{bf16, f16};
use kernels::{DenseFormat, QuantizedFormat, WeightFormat};

/// Those of this machine. Where there is no graphics card, Debian's `mesa-vulkan-drivers` has one in software.
pub fn devices() -> Vec<Device> {
    let devices: Vec<Device> =
        DeviceInfo::all().iter().map(|info| Device::open(info).expect("a device opens")).collect();
    assert!(!devices.is_empty(), "no device: install `mesa-vulkan-drivers`");
    devices
}

/// Between -1 and 1.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| random.f32() * 2.0 - 1.0).collect()
}

/// Random blocks, whose numbers in half precision are finite, small ones among them.
pub fn random_file(format: WeightFormat, n_out: usize, n_in: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    match format {
        WeightFormat::Dense(format) => values(n_out * n_in, 5)
            .into_iter()
            .flat_map(|value| match format {
                DenseFormat::F32 => value.to_le_bytes().to_vec(),
                DenseFormat::F16 => f16::from_f32(value * value * 1e-3).to_le_bytes().to_vec(),
                DenseFormat::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
            })
            .collect(),
        WeightFormat::Quantized(quantized) => {
            let (block, block_bytes) = format.file_block();
            let mut bytes: Vec<u8> = (0..n_out * n_in / block * block_bytes).map(|_| random.u8(..)).collect();
            let halves: &[usize] = match quantized {
                QuantizedFormat::Q4_0 | QuantizedFormat::Q5_0 | QuantizedFormat::Q8_0 => &[0],
                QuantizedFormat::Q4_1 | QuantizedFormat::Q5_1 => &[0, 2],
                QuantizedFormat::Q4_K | QuantizedFormat::Q5_K => &[0, 2],
                QuantizedFormat::Q2_K => &[80, 82],
                QuantizedFormat::Q3_K => &[108],
                QuantizedFormat::Q6_K => &[208],
            };
            for (idx, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
                for &at in halves {
                    let size = if idx % 7 == 0 { 3e-7 } else { 0.01 };
                    let value = f16::from_f32((random.f32() - 0.5) * size);
                    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
            bytes
        }
    }
}

pub fn layout_of(format: WeightFormat) -> WeightLayout {
    match format {
        WeightFormat::Dense(DenseFormat::F32) => WeightLayout::F32,
        WeightFormat::Dense(DenseFormat::F16) => WeightLayout::F16,
        WeightFormat::Dense(DenseFormat::BF16) => WeightLayout::BF16,
        WeightFormat::Quantized(format) => WeightLayout::Quantized {
            bits: format.bits() as u32,
            centre: format.centre() as u32,
            scales: match format.scale_layout() {
                kernels::ScaleLayout::Block => ScaleLayout::Block,
                kernels::ScaleLayout::BlockMin => ScaleLayout::BlockMin,
                kernels::ScaleLayout::Super => ScaleLayout::Super,
                kernels::ScaleLayout::SuperHalf => ScaleLayout::SuperHalf,
                kernels::ScaleLayout::SuperHalfMin => ScaleLayout::SuperHalfMin,
            },
        },
    }
}
