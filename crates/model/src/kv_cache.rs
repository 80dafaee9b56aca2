//! Keys and values of the rows so far, in host memory.

/// A preallocated cache, f32. The operating system backs its pages as they are first written.
pub(crate) struct KvCache {
    /// `[n_layers, capacity, kv_width]`
    keys: Vec<f32>,
    /// `[n_layers, capacity, kv_width]`
    values: Vec<f32>,
    n_layers: usize,
    capacity: usize,
    kv_width: usize,
}

impl KvCache {
    /// An empty cache.
    pub(crate) fn new(n_layers: usize, capacity: usize, kv_width: usize) -> Self {
        let zeros = || vec![0.0; n_layers * capacity * kv_width];
        Self { keys: zeros(), values: zeros(), n_layers, capacity, kv_width }
    }

    fn at(&self, layer: usize, slot: usize) -> usize {
        (layer * self.capacity + slot) * self.kv_width
    }

    /// Writes `keys` and `values`, each `[n_rows, kv_width]`, from slot `first` on.
    pub(crate) fn store(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        let start = self.at(layer, first);
        self.keys[start..start + keys.len()].copy_from_slice(keys);
        self.values[start..start + values.len()].copy_from_slice(values);
    }

    /// Keys and values of a layer, each `[capacity, kv_width]`.
    pub(crate) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        let range = self.at(layer, 0)..self.at(layer + 1, 0);
        (&self.keys[range.clone()], &self.values[range])
    }

    /// Moves slot `n_base + kept[i]` to slot `n_base + i`, for ascending `kept`.
    pub(crate) fn compact(&mut self, n_base: usize, kept: &[usize]) {
        for (slot, &source) in kept.iter().enumerate().filter(|&(slot, &source)| slot != source) {
            for layer in 0..self.n_layers {
                let from = self.at(layer, n_base + source);
                let to = self.at(layer, n_base + slot);
                self.keys.copy_within(from..from + self.kv_width, to);
                self.values.copy_within(from..from + self.kv_width, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compacting_keeps_the_path_in_every_layer() {
        let mut cache = KvCache::new(2, 6, 1);
        for layer in 0..2 {
            let rows: Vec<f32> = (0..6).map(|slot| (10 * layer + slot) as f32).collect();
            cache.store(layer, 0, &rows, &rows);
        }
        cache.compact(2, &[0, 2, 3]);
        assert_eq!(cache.layer(0).0[..5], [0.0, 1.0, 2.0, 4.0, 5.0]);
        assert_eq!(cache.layer(1).1[..5], [10.0, 11.0, 12.0, 14.0, 15.0]);
    }
}
