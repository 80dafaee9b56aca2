//! Keys and values of the rows so far.
//!
//! Keys are interleaved over 16 slots, `[slots / 16, n_kv_heads, head_dim, 16]`, so that one load
//! meets the same dimension of 16 slots and a score is a sum down a lane. Values stay row after row,
//! `[slots, n_kv_heads * head_dim]`.

use std::ops::Range;

use crate::zeroed::zeroed;
use crate::{AttentionShape, KernelError};

/// Slots that share a block of keys.
pub(crate) const SLOTS: usize = 16;

/// A preallocated cache, f32. The operating system backs its pages as they are first written.
#[derive(Debug)]
pub struct KvCache {
    /// `[n_layers, capacity / 16, n_kv_heads, head_dim, 16]`
    keys: Vec<f32>,
    /// `[n_layers, capacity, n_kv_heads * head_dim]`
    values: Vec<f32>,
    /// Slots whose keys are kept as they were before their rotation.
    aside: Range<usize>,
    /// Those keys, `[n_layers, aside, n_kv_heads * head_dim]`
    unturned: Vec<f32>,
    n_layers: usize,
    capacity: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

/// One layer of a [`KvCache`].
#[derive(Clone, Copy, Debug)]
pub struct CachedLayer<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
}

impl KvCache {
    /// An empty cache for `capacity` rows.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new(n_layers: usize, capacity: usize, shape: AttentionShape) -> Result<Self, KernelError> {
        let AttentionShape { n_kv_heads, head_dim, .. } = shape;
        let capacity = capacity.next_multiple_of(SLOTS);
        let sizes = [n_layers, capacity, n_kv_heads, head_dim];
        let n = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).unwrap_or(usize::MAX);
        Ok(Self {
            keys: zeroed(n)?,
            values: zeroed(n)?,
            aside: 0..0,
            unturned: Vec::new(),
            n_layers,
            capacity,
            n_kv_heads,
            head_dim,
        })
    }

    fn width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Where the keys of a slot start, in steps of [`SLOTS`].
    fn key_at(&self, layer: usize, slot: usize) -> usize {
        (layer * self.capacity + slot / SLOTS * SLOTS) * self.width() + slot % SLOTS
    }

    /// Writes `keys` and `values`, each `[n_rows, n_kv_heads * head_dim]`, from slot `first` on.
    ///
    /// # Panics
    /// When they do not fit the cache.
    pub fn store(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        let width = self.width();
        assert!(keys.len() == values.len() && first + keys.len() / width <= self.capacity);
        let start = (layer * self.capacity + first) * width;
        self.values[start..start + values.len()].copy_from_slice(values);
        for (row, keys) in keys.chunks_exact(width).enumerate() {
            let start = self.key_at(layer, first + row);
            let lane = self.keys[start..].iter_mut().step_by(SLOTS);
            lane.zip(keys).for_each(|(cached, key)| *cached = *key);
        }
    }

    /// Says for which slots keys come as they are before their rotation too, so that these rows can take
    /// another position. What was kept before is forgotten.
    ///
    /// # Panics
    /// When the cache has no such slots.
    pub fn set_aside(&mut self, slots: Range<usize>) {
        assert!(slots.end <= self.capacity, "slots outside the cache");
        self.unturned.clear();
        self.unturned.resize(self.n_layers * slots.len() * self.width(), 0.0);
        self.aside = slots;
    }

    /// Keeps `keys`, `[n_rows, n_kv_heads * head_dim]`, which are not rotated, from slot `first` on.
    ///
    /// # Panics
    /// When these slots were not set aside.
    pub fn keep_unturned(&mut self, layer: usize, first: usize, keys: &[f32]) {
        let width = self.width();
        assert!(
            self.aside.start <= first && first + keys.len() / width <= self.aside.end,
            "slots not set aside"
        );
        let start = (layer * self.aside.len() + first - self.aside.start) * width;
        self.unturned[start..start + keys.len()].copy_from_slice(keys);
    }

    /// Gives the rows that were set aside their keys anew: `turn` rotates those of the `n`th such row, in
    /// every layer.
    pub fn turn(&mut self, mut turn: impl FnMut(usize, &mut [f32])) {
        let width = self.width();
        let mut keys = vec![0.0; width];
        for layer in 0..self.n_layers {
            for row in 0..self.aside.len() {
                let from = (layer * self.aside.len() + row) * width;
                keys.copy_from_slice(&self.unturned[from..from + width]);
                turn(row, &mut keys);
                let start = self.key_at(layer, self.aside.start + row);
                let lane = self.keys[start..].iter_mut().step_by(SLOTS);
                lane.zip(&keys).for_each(|(cached, key)| *cached = *key);
            }
        }
    }

    /// Copies the first `n` slots of `other`, which has the same shape.
    ///
    /// # Panics
    /// When the shapes differ, or either cache has fewer slots.
    pub fn copy_prefix(&mut self, other: &Self, n: usize) {
        let width = self.width();
        assert!(self.n_layers == other.n_layers && width == other.width() && self.head_dim == other.head_dim);
        assert!(n <= self.capacity && n <= other.capacity);
        // Whole blocks of keys; what stands behind the slots in the last is overwritten before it is read.
        let n_keys = n.next_multiple_of(SLOTS) * width;
        for layer in 0..self.n_layers {
            let (to, from) = (layer * self.capacity * width, layer * other.capacity * width);
            self.keys[to..to + n_keys].copy_from_slice(&other.keys[from..from + n_keys]);
            self.values[to..to + n * width].copy_from_slice(&other.values[from..from + n * width]);
        }
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> CachedLayer<'_> {
        let n = self.capacity * self.width();
        let range = layer * n..(layer + 1) * n;
        CachedLayer { keys: &self.keys[range.clone()], values: &self.values[range] }
    }

    /// Moves slot `n_base + kept[i]` to slot `n_base + i`, for ascending `kept`.
    pub fn compact(&mut self, n_base: usize, kept: &[usize]) {
        let width = self.width();
        for (slot, &source) in kept.iter().enumerate().filter(|&(slot, &source)| slot != source) {
            for layer in 0..self.n_layers {
                let (from, to) = (self.key_at(layer, n_base + source), self.key_at(layer, n_base + slot));
                for i in 0..width {
                    self.keys[to + i * SLOTS] = self.keys[from + i * SLOTS];
                }
                let from = (layer * self.capacity + n_base + source) * width;
                let to = (layer * self.capacity + n_base + slot) * width;
                self.values.copy_within(from..from + width, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_set_aside_take_another_rotation_and_prefixes_are_copied() {
        let shape = AttentionShape::new(2, 2, 2);
        let mut cache = KvCache::new(2, 40, shape).expect("memory");
        let rows: Vec<f32> = (0..160).map(|i| i as f32).collect();
        for layer in 0..2 {
            cache.store(layer, 0, &rows, &rows);
        }
        cache.set_aside(14..18);
        for layer in 0..2 {
            cache.keep_unturned(layer, 14, &rows[..8]);
            cache.keep_unturned(layer, 16, &rows[8..16]);
        }
        cache.turn(|row, keys| keys.iter_mut().for_each(|key| *key = 1000.0 * row as f32 - *key));
        let mut copy = KvCache::new(2, 20, shape).expect("memory");
        copy.copy_prefix(&cache, 17);
        for (cache, layer) in [(&cache, 0), (&cache, 1), (&copy, 0), (&copy, 1)] {
            let key = |slot: usize, i: usize| cache.keys[cache.key_at(layer, slot) + i * SLOTS];
            for i in 0..4 {
                assert_eq!(key(13, i), rows[13 * 4 + i]);
                assert_eq!(key(16, i), 2000.0 - rows[2 * 4 + i]);
                assert_eq!(cache.layer(layer).values[16 * 4 + i], rows[16 * 4 + i]);
            }
        }
    }

    #[test]
    fn compacting_keeps_the_path_in_every_layer() {
        let shape = AttentionShape::new(1, 1, 2);
        let mut cache = KvCache::new(2, 40, shape).expect("memory");
        for layer in 0..2 {
            let rows: Vec<f32> = (0..80).map(|i| (100 * layer + i) as f32).collect();
            cache.store(layer, 0, &rows, &rows);
        }
        cache.compact(14, &[0, 2, 3, 9]);
        let key = |cache: &KvCache, layer, slot, dim| cache.keys[cache.key_at(layer, slot) + dim * SLOTS];
        for layer in 0..2 {
            for (slot, source) in [(13, 13), (14, 14), (15, 16), (16, 17), (17, 23)] {
                for dim in 0..2 {
                    let expected = (100 * layer + 2 * source + dim) as f32;
                    assert_eq!(key(&cache, layer, slot, dim), expected);
                    assert_eq!(cache.layer(layer).values[2 * slot + dim], expected);
                }
            }
        }
    }
}
