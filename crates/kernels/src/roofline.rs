//! What this machine could do at best: how fast its threads read memory, and multiply bytes.

use std::time::{Duration, Instant};

use crate::{
    BLOCK, LinearInput, LinearLayer, PackedMatrix, Pool, QuantizedFormat, SharedSlice, Tier, per_tier,
    project,
};

/// Larger than any cache.
const BUFFER_BYTES: usize = 512 << 20;
/// Runs, of which the fastest counts.
const N_RUNS: usize = 6;
/// How long products are run.
const PRODUCT_TIME: Duration = Duration::from_millis(100);

/// Bytes per second that the threads of `pool` read together, from a buffer that no cache holds.
pub fn read_bandwidth(pool: &Pool, tier: Tier) -> f64 {
    let buffer = vec![1u64; BUFFER_BYTES / 8];
    let n_pieces = pool.n_threads() * 16;
    let piece = buffer.len() / n_pieces;
    let mut sums = vec![0u64; n_pieces];
    let mut fastest = f64::INFINITY;
    for _ in 0..N_RUNS {
        let shared = SharedSlice::new(&mut sums);
        let started = Instant::now();
        pool.run(n_pieces, &|idx| {
            // SAFETY: each sum belongs to one task.
            unsafe { shared.range_mut(idx, 1)[0] = sum(tier, &buffer[idx * piece..(idx + 1) * piece]) };
        });
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    // Used, so that the reads cannot be left out.
    assert!(sums.iter().all(|&sum| sum == piece as u64), "the buffer holds ones");
    (n_pieces * piece * 8) as f64 / fastest
}

per_tier! {
    fn sum(values: &[u64]) -> u64 {
        values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
    }
}

/// Multiply-adds of bytes per second that the threads of `pool` do together: the linear kernel itself,
/// eight rows, on weights that stay in the caches.
pub fn product_throughput(pool: &Pool, tier: Tier) -> f64 {
    // The format that every tier is fastest with.
    let format = QuantizedFormat::Q4_0;
    let (n_out, n_in, n_rows) = (1024, 512, 8);
    let (block, block_bytes) = format.file_block();
    let bytes = vec![1u8; n_out * n_in / block * block_bytes];
    let Ok(matrix) = PackedMatrix::pack(format, n_out, n_in, &bytes, pool) else { return 0.0 };
    let layer = LinearLayer { matrix: &matrix, bias: None, delta: None };
    let mut input = LinearInput::default();
    input.values = vec![1.0; n_rows * n_in];
    input.first_adaptive = n_rows;
    input.quantize(pool, tier, n_in);
    let mut out = vec![0.0; n_rows * n_out];
    let mut fastest = f64::INFINITY;
    let all = Instant::now();
    while all.elapsed() < PRODUCT_TIME {
        let started = Instant::now();
        project(pool, tier, [layer], &mut input, [&mut out]);
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    debug_assert!(n_in.is_multiple_of(BLOCK));
    (n_out * n_in * n_rows) as f64 / fastest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_measured_on_every_tier() {
        let pool = Pool::new(2);
        for tier in Tier::available() {
            assert!(product_throughput(&pool, tier) > 0.0);
            assert_eq!(sum(tier, &vec![3; 100]), 300);
        }
        assert!(read_bandwidth(&pool, Tier::detect()) > 0.0);
    }
}
