//! Keys and values of the rows so far.
//!
//! Keys are interleaved over 16 slots, `[slots / 16, n_kv_heads, head_dim, 16]`, so that one load
//! meets the same dimension of 16 slots and a score is a sum down a lane. Values stay row after row,
//! `[slots, n_kv_heads * head_dim]`.

use std::ops::Range;

use half::f16;

use crate::lanes::Lanes;
use crate::zeroed::{Zeroable, zeroed};
use crate::{AttentionShape, KernelError};

/// Slots that share a block of keys.
pub(crate) const SLOTS: usize = 16;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to half precision: half the memory, and what attention reads.
    F16,
}

impl CacheType {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::F16 => size_of::<f16>(),
        }
    }
}

/// A number of a cache.
pub(crate) trait CacheNumber: Zeroable + Send + Sync {
    /// The nearest; what is too large becomes the largest.
    fn of(value: f32) -> Self;
    fn value(self) -> f32;
    /// A vector of them.
    ///
    /// # Safety
    /// See [`Lanes`].
    unsafe fn load<V: Lanes>(from: *const Self) -> V;
}

impl CacheNumber for f32 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

impl CacheNumber for f16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        // NaN stays what it is.
        Self::from_f32(value.clamp(Self::MIN.to_f32(), Self::MAX.to_f32()))
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from.cast()) }
    }
}

/// A preallocated cache. The operating system backs its pages as they are first written.
#[derive(Debug)]
pub struct KvCache {
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    F32(Rows<f32>),
    F16(Rows<f16>),
}

/// Does the same with either kind of numbers.
macro_rules! either {
    ($numbers:expr, $rows:ident => $do:expr) => {
        match $numbers {
            Numbers::F32($rows) => $do,
            Numbers::F16($rows) => $do,
        }
    };
}

/// One layer of a [`KvCache`].
#[derive(Clone, Copy, Debug)]
pub struct CachedLayer<'a> {
    pub(crate) numbers: LayerNumbers<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LayerNumbers<'a> {
    F32(LayerRows<'a, f32>),
    F16(LayerRows<'a, f16>),
}

/// Keys and values of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerRows<'a, T> {
    pub(crate) keys: &'a [T],
    pub(crate) values: &'a [T],
}

impl KvCache {
    /// An empty cache for `capacity` rows.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new(
        n_layers: usize,
        capacity: usize,
        shape: AttentionShape,
        cache_type: CacheType,
    ) -> Result<Self, KernelError> {
        let numbers = match cache_type {
            CacheType::F32 => Numbers::F32(Rows::new(n_layers, capacity, shape)?),
            CacheType::F16 => Numbers::F16(Rows::new(n_layers, capacity, shape)?),
        };
        Ok(Self { numbers })
    }

    /// Writes `keys` and `values`, each `[n_rows, n_kv_heads * head_dim]`, from slot `first` on.
    ///
    /// # Panics
    /// When they do not fit the cache.
    pub fn store(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        either!(&mut self.numbers, rows => rows.store(layer, first, keys, values));
    }

    /// Says for which slots keys come as they are before their rotation too, so that these rows can take
    /// another position. What was kept before is forgotten.
    ///
    /// # Panics
    /// When the cache has no such slots.
    pub fn set_aside(&mut self, slots: Range<usize>) {
        either!(&mut self.numbers, rows => rows.set_aside(slots));
    }

    /// Keeps `keys`, `[n_rows, n_kv_heads * head_dim]`, which are not rotated, from slot `first` on.
    ///
    /// # Panics
    /// When these slots were not set aside.
    pub fn keep_unturned(&mut self, layer: usize, first: usize, keys: &[f32]) {
        either!(&mut self.numbers, rows => rows.keep_unturned(layer, first, keys));
    }

    /// Gives the rows that were set aside their keys anew: `turn` rotates those of the `n`th such row, in
    /// every layer.
    pub fn turn(&mut self, turn: impl FnMut(usize, &mut [f32])) {
        either!(&mut self.numbers, rows => rows.turn(turn));
    }

    /// Copies the first `n` slots of `other`, which has the same shape and type.
    ///
    /// # Panics
    /// When shapes or types differ, or either cache has fewer slots.
    pub fn copy_prefix(&mut self, other: &Self, n: usize) {
        match (&mut self.numbers, &other.numbers) {
            (Numbers::F32(rows), Numbers::F32(other)) => rows.copy_prefix(other, n),
            (Numbers::F16(rows), Numbers::F16(other)) => rows.copy_prefix(other, n),
            _ => panic!("caches of different types"),
        }
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> CachedLayer<'_> {
        let numbers = match &self.numbers {
            Numbers::F32(rows) => LayerNumbers::F32(rows.layer(layer)),
            Numbers::F16(rows) => LayerNumbers::F16(rows.layer(layer)),
        };
        CachedLayer { numbers }
    }

    /// Moves slot `n_base + kept[i]` to slot `n_base + i`, for ascending `kept`.
    pub fn compact(&mut self, n_base: usize, kept: &[usize]) {
        either!(&mut self.numbers, rows => rows.compact(n_base, kept));
    }
}

/// The numbers of a cache.
#[derive(Debug)]
struct Rows<T> {
    /// `[n_layers, capacity / 16, n_kv_heads, head_dim, 16]`
    keys: Vec<T>,
    /// `[n_layers, capacity, n_kv_heads * head_dim]`
    values: Vec<T>,
    /// Slots whose keys are kept as they were before their rotation.
    aside: Range<usize>,
    /// Those keys, `[n_layers, aside, n_kv_heads * head_dim]`: exact, so that they come out as if they had just
    /// been computed.
    unturned: Vec<f32>,
    n_layers: usize,
    capacity: usize,
    n_kv_heads: usize,
    head_dim: usize,
}

impl<T: CacheNumber> Rows<T> {
    fn new(n_layers: usize, capacity: usize, shape: AttentionShape) -> Result<Self, KernelError> {
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

    fn store(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        let width = self.width();
        assert!(keys.len() == values.len() && first + keys.len() / width <= self.capacity);
        let start = (layer * self.capacity + first) * width;
        let cached = self.values[start..].iter_mut();
        cached.zip(values).for_each(|(cached, value)| *cached = T::of(*value));
        for (row, keys) in keys.chunks_exact(width).enumerate() {
            let start = self.key_at(layer, first + row);
            let lane = self.keys[start..].iter_mut().step_by(SLOTS);
            lane.zip(keys).for_each(|(cached, key)| *cached = T::of(*key));
        }
    }

    fn set_aside(&mut self, slots: Range<usize>) {
        assert!(slots.end <= self.capacity, "slots outside the cache");
        self.unturned.clear();
        self.unturned.resize(self.n_layers * slots.len() * self.width(), 0.0);
        self.aside = slots;
    }

    fn keep_unturned(&mut self, layer: usize, first: usize, keys: &[f32]) {
        let width = self.width();
        assert!(
            self.aside.start <= first && first + keys.len() / width <= self.aside.end,
            "slots not set aside"
        );
        let start = (layer * self.aside.len() + first - self.aside.start) * width;
        self.unturned[start..start + keys.len()].copy_from_slice(keys);
    }

    fn turn(&mut self, mut turn: impl FnMut(usize, &mut [f32])) {
        let width = self.width();
        let mut keys = vec![0.0; width];
        for layer in 0..self.n_layers {
            for row in 0..self.aside.len() {
                let from = (layer * self.aside.len() + row) * width;
                keys.copy_from_slice(&self.unturned[from..from + width]);
                turn(row, &mut keys);
                let start = self.key_at(layer, self.aside.start + row);
                let lane = self.keys[start..].iter_mut().step_by(SLOTS);
                lane.zip(&keys).for_each(|(cached, key)| *cached = T::of(*key));
            }
        }
    }

    fn copy_prefix(&mut self, other: &Self, n: usize) {
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

    fn layer(&self, layer: usize) -> LayerRows<'_, T> {
        let n = self.capacity * self.width();
        let range = layer * n..(layer + 1) * n;
        LayerRows { keys: &self.keys[range.clone()], values: &self.values[range] }
    }

    fn compact(&mut self, n_base: usize, kept: &[usize]) {
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
        let mut cache = Rows::<f32>::new(2, 40, shape).expect("memory");
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
        let mut copy = Rows::<f32>::new(2, 20, shape).expect("memory");
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
        let mut cache = Rows::<f32>::new(2, 40, shape).expect("memory");
        for layer in 0..2 {
            let rows: Vec<f32> = (0..80).map(|i| (100 * layer + i) as f32).collect();
            cache.store(layer, 0, &rows, &rows);
        }
        cache.compact(14, &[0, 2, 3, 9]);
        let key = |cache: &Rows<f32>, layer, slot, dim| cache.keys[cache.key_at(layer, slot) + dim * SLOTS];
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

    #[test]
    fn half_precision_takes_half_and_keeps_what_is_no_number() {
        assert_eq!(CacheType::F16.size() * 2, CacheType::F32.size());
        assert_eq!([1e9, -1e9, 1.0 / 3.0].map(|n| f16::of(n).value()), [65504.0, -65504.0, 0.333_251_95]);
        assert!(f16::of(f32::NAN).value().is_nan());
    }
}
