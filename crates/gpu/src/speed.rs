//! How fast a device reads, and multiplies.

use cubecl::prelude::*;

use crate::GpuError;
use crate::device::{Buffer, Device, on_client};
use crate::packed::{ScaleLayout, TILE, WeightLayout};
use crate::products::{Activations, LinearLayer, ProductExtent, RowRange};
use crate::rows::{READ_UNITS, ROW_UNITS, read_through};

/// How a device's speeds are measured: on how much, and how often before it is waited for.
#[derive(Clone, Copy)]
struct MeasuredWork {
    /// More than caches hold.
    read_bytes: usize,
    n_launches: usize,
}

impl Device {
    fn measured_work(&self) -> MeasuredWork {
        match self.info().is_software {
            true => MeasuredWork { read_bytes: 96 << 20, n_launches: 1 },
            false => MeasuredWork { read_bytes: 1 << 30, n_launches: 8 },
        }
    }

    /// Bytes per second of a kernel that reads memory that is in no cache, and does nothing else.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn read_bandwidth(&self) -> Result<f64, GpuError> {
        let MeasuredWork { read_bytes, n_launches } = self.measured_work();
        let memory = self.empty(read_bytes.min(self.max_buffer_bytes()) / 16 * 4)?;
        let out = self.empty(READ_UNITS)?;
        let seconds = self.shortest(&out, n_launches, || {
            let n = memory.len() / 4;
            // SAFETY: the buffer has as many vectors of four, and the output a number for each unit.
            unsafe {
                on_client!(self, client, R => read_through::launch_unchecked::<R>(
                    client,
                    CubeCount::Static((READ_UNITS / ROW_UNITS as usize) as u32, 1, 1),
                    CubeDim::new_1d(ROW_UNITS),
                    ArrayArg::from_raw_parts(memory.handle.clone(), n),
                    out.array(),
                    n as u32,
                ));
            }
        })?;
        Ok((4 * memory.len()) as f64 / seconds)
    }

    /// Multiply-adds per second of products with many rows on 4-bit weights that stay in caches.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn product_throughput(&self) -> Result<f64, GpuError> {
        let (n_out, n_in, n_rows) = (4096, 1024, 64);
        let layout = WeightLayout::Quantized { bits: 4, centre: 8, scales: ScaleLayout::Block };
        let n_bytes = 4 * layout.tile_words(n_in) * n_out / TILE as usize;
        let matrix = self.matrix(layout, n_out, n_in, &vec![0; n_bytes])?;
        // Zeros, packed or not.
        let x = self.upload_f32(&vec![0.0; n_rows * n_in])?;
        let activations = match self.packs_rows() {
            true => Activations::Packed { rows: &x, epsilon: None },
            false => Activations::Plain(&x),
        };
        let out = self.empty(n_rows * n_out)?;
        let seconds = self.shortest(&out, self.measured_work().n_launches, || {
            let rows = RowRange { first: 0, n: n_rows };
            let layer = LinearLayer { matrix: &matrix, bias: None, delta: None, out: &out };
            self.product(layer, activations, rows, ProductExtent::default());
        })?;
        Ok((n_out * n_in * n_rows) as f64 / seconds)
    }

    /// Seconds of a launch, the shortest of some, over so many of which one waits for `out`.
    fn shortest(&self, out: &Buffer, n_launches: usize, launch: impl Fn()) -> Result<f64, GpuError> {
        let mut shortest = f64::INFINITY;
        for _ in 0..5 {
            let started = std::time::Instant::now();
            for _ in 0..n_launches {
                launch();
            }
            self.read(&[(out, 1)])?;
            shortest = shortest.min(started.elapsed().as_secs_f64() / n_launches as f64);
        }
        Ok(shortest)
    }
}
