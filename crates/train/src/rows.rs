//! Numbers of candle's tensors on the processor, row by row, for nodes of our own.

use candle_core::{CpuStorage, Error, Layout, Result};

/// The numbers of a tensor without gaps.
///
/// # Errors
/// When it has some, or is not f32.
pub(crate) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Msg("numbers must be contiguous".to_owned()));
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `of_row` with the index of each row of `out` and the row, on as many threads as there are.
pub(crate) fn for_each_row(out: &mut [f32], n_columns: usize, of_row: impl Fn(usize, &mut [f32]) + Sync) {
    let n_rows = out.len() / n_columns.max(1);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = n_rows.div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        for (idx, rows) in out.chunks_mut(share * n_columns).enumerate() {
            let of_row = &of_row;
            scope.spawn(move || {
                rows.chunks_exact_mut(n_columns)
                    .enumerate()
                    .for_each(|(row, values)| of_row(idx * share + row, values));
            });
        }
    });
}
