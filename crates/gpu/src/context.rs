//! Keys and values of a sequence on a device, and attention over them.

use cubecl::prelude::*;

use crate::GpuError;
use crate::attention::{AttentionConfig, MergeConfig, attend, lanes, merge, part_words};
use crate::cache::{RotationConfig, compact, copy, rotate_and_store, turn};
use crate::device::{Buffer, Client, Device, on_client};
use crate::packed::BLOCK;
use crate::plan::ROW_WORDS;

/// Units of a cube that works on a row.
const UNITS: u32 = 128;
/// Rows that share the loads of attention at most.
const ROWS_OF_ATTENTION: u32 = 4;
/// Slots of a chunk of attention, but in software, where they are half of that, and for heads of more numbers.
pub const ATTENTION_CHUNK: usize = 256;
/// Units of whole planes on every device.
const WHOLE_PLANES: u32 = 64;

/// How the numbers of a cache are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheNumber {
    /// As they are.
    F32,
    /// Rounded to half precision.
    F16,
}

impl CacheNumber {
    /// How many share 32 bits.
    fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 => 2,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => half::f16::MAX.to_f32(),
        }
    }
}

/// Keys and values of the layers of a model, `[capacity, kv_width]` each.
#[derive(Debug)]
pub struct KvCache {
    number: CacheNumber,
    capacity: usize,
    kv_width: usize,
    layers: Vec<[Buffer; 2]>,
    aside: std::ops::Range<usize>,
    /// Keys of the slots aside before their rotation, f32, for each layer.
    unturned: Vec<Buffer>,
}

/// Rotary tables, `[positions, rope_dim / 2]` each.
#[derive(Debug)]
pub struct RotaryTables {
    /// Which pairs are rotated.
    pub config: RotationConfig,
    /// Cosines.
    pub cos: Buffer,
    /// Sines.
    pub sin: Buffer,
}

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSizes {
    /// Query heads.
    pub n_heads: usize,
    /// Heads of keys and values; divides the former.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

impl AttentionSizes {
    /// Numbers of a row of queries.
    pub fn width(self) -> usize {
        self.n_heads * self.head_dim
    }
}

/// A pass: its plan on the device, how many rows it has, and how many slots are committed before them.
#[derive(Clone, Copy, Debug)]
pub struct PassRows<'a> {
    /// As [`crate::ROW_WORDS`] says.
    pub plan: &'a Buffer,
    /// Its rows.
    pub n_rows: usize,
    /// Committed slots.
    pub n_committed: usize,
}

/// Does the same with either type of numbers, which is called `$number`.
macro_rules! with_number {
    ($cache:expr, $number:ident => $do:expr) => {
        match $cache.number {
            CacheNumber::F32 => {
                type $number = f32;
                $do
            }
            CacheNumber::F16 => {
                type $number = half::f16;
                $do
            }
        }
    };
}

impl KvCache {
    /// An array argument of the cache's numbers.
    fn array<R: Runtime>(&self, buffer: &Buffer) -> ArrayArg<R> {
        // SAFETY: a word of the buffer holds as many numbers as the cache's type says.
        unsafe { ArrayArg::from_raw_parts(buffer.handle.clone(), buffer.len() * self.number.per_word()) }
    }
}

impl Device {
    /// An empty cache.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn cache(
        &self,
        n_layers: usize,
        capacity: usize,
        kv_width: usize,
        number: CacheNumber,
    ) -> Result<KvCache, GpuError> {
        let n_words = (capacity * kv_width).div_ceil(number.per_word());
        let layers = (0..n_layers).map(|_| Ok([self.empty(n_words)?, self.empty(n_words)?]));
        let layers = layers.collect::<Result<_, GpuError>>()?;
        Ok(KvCache { number, capacity, kv_width, layers, aside: 0..0, unturned: Vec::new() })
    }

    /// Says for which slots keys come as they are before their rotation too. What was kept before is forgotten.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn set_aside(&self, cache: &mut KvCache, slots: std::ops::Range<usize>) -> Result<(), GpuError> {
        assert!(slots.end <= cache.capacity, "slots of the cache");
        let n = slots.len() * cache.kv_width;
        if cache.unturned.first().is_none_or(|buffer| buffer.len() < n) {
            cache.unturned = cache.layers.iter().map(|_| self.empty(n)).collect::<Result<_, _>>()?;
        }
        cache.aside = slots;
        Ok(())
    }

    /// Rotates queries, `[n_rows, query_width]`, into `rotated`, and keys into the cache, beside values.
    ///
    /// # Panics
    /// When a buffer is too small, or a pass aside has other rows than those aside.
    #[allow(clippy::too_many_arguments)]
    pub fn rotate_and_store(
        &self,
        pass: PassRows<'_>,
        [queries, keys, values]: [&Buffer; 3],
        query_width: usize,
        tables: &RotaryTables,
        rotated: &Buffer,
        cache: &KvCache,
        layer: usize,
        is_aside: bool,
    ) {
        let PassRows { plan, n_rows, n_committed } = pass;
        let kv_width = cache.kv_width;
        assert!(n_committed + n_rows <= cache.capacity, "slots of the cache");
        assert!(keys.len() >= n_rows * kv_width && values.len() >= n_rows * kv_width, "keys and values");
        let n_numbers = n_rows * query_width;
        assert!(queries.len() >= n_numbers && rotated.len() >= n_numbers, "rows of queries");
        assert!(plan.len() >= n_rows * ROW_WORDS as usize, "rows of the pass");
        assert!(!is_aside || cache.aside.start <= n_committed && n_committed + n_rows <= cache.aside.end);
        let unturned = if is_aside { &cache.unturned[layer] } else { rotated };
        let first_unturned = if is_aside { n_committed - cache.aside.start } else { 0 };
        let [cached_keys, cached_values] = &cache.layers[layer];
        // SAFETY: the sizes were checked above; positions of the plan are those of the tables.
        unsafe {
            with_number!(cache, N => on_client!(self, client, R => rotate_and_store::launch_unchecked::<N, R>(
                client,
                CubeCount::Static(n_rows as u32, (query_width.max(kv_width) as u32).div_ceil(UNITS), 1),
                CubeDim::new_1d(UNITS),
                queries.array(),
                keys.array(),
                values.array(),
                tables.cos.array(),
                tables.sin.array(),
                plan.array(),
                rotated.array(),
                cache.array(cached_keys),
                cache.array(cached_values),
                unturned.array(),
                query_width as u32,
                kv_width as u32,
                n_committed as u32,
                first_unturned as u32,
                cache.number.largest(),
                tables.config,
                is_aside,
            )));
        }
    }

    /// Turns the keys of the slots aside, in all layers, to the positions from `first` on.
    pub fn turn(&self, cache: &KvCache, tables: &RotaryTables, first: usize) {
        if cache.aside.is_empty() {
            return;
        }
        for ([keys, _], unturned) in cache.layers.iter().zip(&cache.unturned) {
            // SAFETY: as many keys were set aside, and positions are those of the tables.
            unsafe {
                with_number!(cache, N => on_client!(self, client, R => turn::launch_unchecked::<N, R>(
                    client,
                    CubeCount::Static(cache.aside.len() as u32, 1, 1),
                    CubeDim::new_1d(UNITS),
                    unturned.array(),
                    tables.cos.array(),
                    tables.sin.array(),
                    cache.array(keys),
                    cache.kv_width as u32,
                    cache.aside.start as u32,
                    first as u32,
                    cache.number.largest(),
                    tables.config,
                )));
            }
        }
    }

    /// Copies the first `n` slots of a cache of the same shape.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn copy_prefix(&self, from: &KvCache, n: usize, to: &KvCache) {
        assert!(from.number == to.number && from.kv_width == to.kv_width, "caches of one shape");
        assert!(n <= from.capacity.min(to.capacity) && from.layers.len() == to.layers.len(), "slots of both");
        let n_words = (n * from.kv_width).div_ceil(from.number.per_word());
        if n_words == 0 {
            return;
        }
        for (from, to) in from.layers.iter().flatten().zip(to.layers.iter().flatten()) {
            // SAFETY: the sizes were checked above.
            unsafe {
                on_client!(self, client, R => copy::launch_unchecked::<u32, R>(
                    client,
                    crate::operations::cubes_for(n_words),
                    CubeDim::new_1d(crate::rows::ROW_UNITS),
                    from.array(),
                    to.array(),
                    n_words as u32,
                ));
            }
        }
    }

    /// Keeps the first `n_base` slots, and of those behind them the slots `n_base + kept`, which ascend, in order.
    ///
    /// # Errors
    /// [`GpuError`].
    ///
    /// # Panics
    /// When a slot is outside the cache.
    pub fn compact(&self, cache: &KvCache, n_base: usize, kept: &[usize]) -> Result<(), GpuError> {
        assert!(kept.last().is_none_or(|last| n_base + last < cache.capacity), "slots of the cache");
        // Those in front stay where they are.
        let n_staying = kept.iter().enumerate().take_while(|(idx, slot)| idx == *slot).count();
        let moves: Vec<u32> = kept[n_staying..].iter().map(|&slot| (slot - n_staying) as u32).collect();
        if moves.is_empty() {
            return Ok(());
        }
        let moves_there = self.upload_u32(&moves)?;
        for [keys, values] in &cache.layers {
            // SAFETY: the slots were checked above.
            unsafe {
                with_number!(cache, N => on_client!(self, client, R => compact::launch_unchecked::<N, R>(
                    client,
                    CubeCount::Static((cache.kv_width as u32).div_ceil(UNITS), 1, 1),
                    CubeDim::new_1d(UNITS),
                    cache.array(keys),
                    cache.array(values),
                    moves_there.array(),
                    moves.len() as u32,
                    (n_base + n_staying) as u32,
                    cache.kv_width as u32,
                )));
            }
        }
        Ok(())
    }

    /// Numbers of the room that [`attend`](Self::attend) needs.
    pub fn attention_room(&self, sizes: AttentionSizes, n_rows: usize, n_committed: usize) -> usize {
        let AttentionSizes { n_heads, head_dim, .. } = sizes;
        match self.attention_config(head_dim, n_rows, false).n_chunks(n_committed + n_rows) {
            1 => 0,
            n_chunks => n_rows * n_heads * n_chunks * part_words(head_dim as u32) as usize,
        }
    }

    /// How attention over heads of this width works here.
    fn attention_config(&self, head_dim: usize, n_rows: usize, packs: bool) -> AttentionConfig {
        let n_together = [4, 2].into_iter().find(|n| head_dim.is_multiple_of(*n)).unwrap_or(1) as u32;
        let n_vectors = head_dim as u32 / n_together;
        // A device in software does one unit after the other, waits for no memory, and takes long to compile a long
        // program: what a model of heads of 64 needs took 15 s with four rows, 4 s with two.
        let is_software = self.info().is_software;
        let (n_units, most_rows) = match is_software {
            true => (ATTENTION_CHUNK / 2, 2),
            false => (ATTENTION_CHUNK, ROWS_OF_ATTENTION),
        };
        let n_rows = (n_rows as u32).next_power_of_two().min(most_rows);
        // Rows that share loads take the registers that more of these would need.
        let n_at_once = match n_rows {
            _ if is_software => 2,
            1 => 16,
            _ => 8,
        };
        AttentionConfig {
            n_units: n_vectors.next_power_of_two().max(n_units as u32),
            n_rows,
            head_dim: head_dim as u32,
            n_together,
            n_lanes: if self.has_planes() { lanes(n_vectors) } else { 1 },
            n_at_once,
            holds_loads: matches!(self.client, Client::Cuda(_)),
            packs: packs && head_dim.is_multiple_of(BLOCK as usize),
        }
    }

    /// Each row attends to what it sees; `queries` are rotated, `out` is `[n_rows, n_heads * head_dim]`, `room` as
    /// [`attention_room`](Self::attention_room) says. With `packed` they are left there, packed, and `out` is room for them.
    ///
    /// # Panics
    /// When a buffer is too small.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &self,
        pass: PassRows<'_>,
        sizes: AttentionSizes,
        queries: &Buffer,
        cache: &KvCache,
        layer: usize,
        room: &Buffer,
        out: &Buffer,
        packed: Option<&Buffer>,
    ) {
        let PassRows { plan, n_rows, n_committed } = pass;
        let AttentionSizes { n_heads, n_kv_heads, head_dim, scale } = sizes;
        let n = n_rows * sizes.width();
        assert!(
            queries.len() >= n && out.len() >= n && n_heads.is_multiple_of(n_kv_heads),
            "rows of queries"
        );
        assert!(
            cache.kv_width == n_kv_heads * head_dim && n_committed + n_rows <= cache.capacity,
            "the cache"
        );
        assert!(room.len() >= self.attention_room(sizes, n_rows, n_committed), "room for chunks");
        assert!(
            packed.is_none_or(|packed| packed.len() >= self.packed_words(n_rows, sizes.width())),
            "packed rows"
        );
        let config = self.attention_config(head_dim, n_rows, packed.is_some());
        let n_chunks = config.n_chunks(n_committed + n_rows) as u32;
        let [keys, values] = &cache.layers[layer];
        // SAFETY: the sizes were checked above; the plan's lists name slots of the pass.
        unsafe {
            with_number!(cache, N => on_client!(self, client, R => attend::launch_unchecked::<N, R>(
                client,
                CubeCount::Static(n_heads as u32, (n_rows as u32).div_ceil(config.n_rows), n_chunks),
                CubeDim::new_1d(config.n_units),
                config.n_together as usize,
                queries.array(),
                cache.array(keys),
                cache.array(values),
                plan.array(),
                room.array(),
                out.array(),
                packed.unwrap_or(out).array(),
                n_rows as u32,
                n_heads as u32,
                n_chunks,
                cache.kv_width as u32,
                (n_heads / n_kv_heads) as u32,
                n_committed as u32,
                scale,
                config,
            )));
        }
        if n_chunks > 1 {
            // SAFETY: as above; each row has seen some chunk.
            unsafe {
                on_client!(self, client, R => merge::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(n_heads as u32, n_rows as u32, 1),
                    CubeDim::new_1d(config.head_dim.next_multiple_of(WHOLE_PLANES)),
                    room.array(),
                    plan.array(),
                    out.array(),
                    packed.unwrap_or(out).array(),
                    n_heads as u32,
                    n_chunks,
                    n_committed as u32,
                    MergeConfig { n_slots: config.n_units, head_dim: config.head_dim, packs: config.packs },
                ));
            }
        }
        if let Some(packed) = packed.filter(|_| !config.packs) {
            self.pack(None, out, None, None, n_rows, sizes.width(), packed);
        }
    }
}
