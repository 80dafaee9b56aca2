//! The products of a layer of a 7B model, launched for 1, 8 and 16 rows, for a profiler to time:
//! `ncu --metrics gpu__time_duration.sum cargo run -p sateen-gpu --example layer cuda:0 q4_0`, or `f16`.
//!
//! Weights are any bits, in the layout of that type. Each launch comes twice; there is nothing to see but what a profiler says.

use gpu::{
    Activations, Device, DeviceInfo, GatedLayer, LinearLayer, Matrix, RowRange, ScaleLayout, TILE,
    WeightLayout,
};

const HIDDEN: usize = 4096;
const FEED_FORWARD: usize = 11_008;
const EPSILON: f32 = 1e-5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let id = std::env::args().nth(1).ok_or("a device like cuda:0")?;
    let device = Device::open(&DeviceInfo::find(&id)?)?;
    if !device.packs_rows() {
        return Err(format!("{id} has no matrix units").into());
    }
    let layout = match std::env::args().nth(2).as_deref() {
        Some("q4_0") => WeightLayout::Quantized { bits: 4, centre: 8, scales: ScaleLayout::Block },
        Some("f16") => WeightLayout::F16,
        other => return Err(format!("{other:?} is neither q4_0 nor f16").into()),
    };
    let mut random = fastrand::Rng::with_seed(1);
    let mut matrix = |n_out: usize, n_in: usize| -> Result<Matrix, gpu::GpuError> {
        let mut bytes = vec![0; 4 * layout.tile_words(n_in) * n_out / TILE as usize];
        random.fill(&mut bytes);
        device.matrix(layout, n_out, n_in, &bytes)
    };
    let [q, k, v, o] = [(); 4].map(|()| matrix(HIDDEN, HIDDEN));
    let (q, k, v, o) = (q?, k?, v?, o?);
    let (gate, up) = (matrix(FEED_FORWARD, HIDDEN)?, matrix(FEED_FORWARD, HIDDEN)?);
    let down = matrix(HIDDEN, FEED_FORWARD)?;
    let rows = device.empty(device.packed_words(16, FEED_FORWARD))?;
    let packed = device.empty(device.packed_words(16, FEED_FORWARD))?;
    let [a, b, c] = [(); 3].map(|()| device.empty(16 * HIDDEN));
    let (outs, gain) = ([a?, b?, c?], device.empty(HIDDEN)?);
    let normed = Activations::Packed { rows: &rows, epsilon: Some(EPSILON) };
    let plain = Activations::Packed { rows: &rows, epsilon: None };
    for n_rows in [1, 8, 16] {
        for _ in 0..2 {
            let all = RowRange { first: 0, n: n_rows };
            let gated = [&gate, &up].map(|matrix| GatedLayer { matrix, delta: None });
            let layer = |matrix, i: usize| LinearLayer { matrix, bias: None, delta: None, out: &outs[i] };
            device.products(&[layer(&q, 0), layer(&k, 1), layer(&v, 2)], normed, all);
            device.residual_product(layer(&o, 0), plain, n_rows, &gain, &packed);
            device.swiglu_products(gated, normed, n_rows, &packed);
            device.residual_product(layer(&down, 0), plain, n_rows, &gain, &packed);
        }
    }
    device.read(&[(&gain, 1)])?;
    Ok(())
}
