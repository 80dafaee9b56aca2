//! Attention on every device of this machine: sums over what a row sees, and the same bits whichever rows are beside it
//! and however much of what it sees is committed.

use crate::common::{devices, values};
use gpu::{
    AttentionSizes, Buffer, CacheNumber, Device, KvCache, PassRows, ROW_WORDS, RotaryTables, RotationConfig,
};
use half::f16;

const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;
/// Slots of the cache.
const N_SLOTS: usize = 620;
/// Rows of a pass: a branching tree, in which each sees the slots of its ancestors and its own.
const PARENTS: [Option<usize>; 7] = [None, Some(0), Some(0), Some(1), Some(3), Some(2), Some(5)];
/// Committed slots that are hidden from every other row.
const HIDDEN: std::ops::Range<usize> = 3..7;

/// Words of a block of a packed row.
const BLOCK_WORDS: usize = 20;

/// What a row sees.
#[derive(Clone)]
struct Row {
    hidden: std::ops::Range<usize>,
    /// Slots that are not committed.
    list: Vec<usize>,
}

fn tree(n_committed: usize) -> Vec<Row> {
    let rows = PARENTS.iter().enumerate().map(|(idx, parent)| {
        let mut list = vec![n_committed + idx];
        let mut ancestor = *parent;
        while let Some(parent) = ancestor {
            list.insert(0, n_committed + parent);
            ancestor = PARENTS[parent];
        }
        Row { hidden: if idx % 2 == 1 { HIDDEN } else { 0..0 }, list }
    });
    rows.collect()
}

/// Keys and values of a layer, on the device and here.
struct Setting {
    sizes: AttentionSizes,
    cache: KvCache,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
}

impl Setting {
    fn new(device: &Device, head_dim: usize, number: CacheNumber) -> Self {
        let (width, kv_width) = (N_HEADS * head_dim, N_KV_HEADS * head_dim);
        let kept = |value: f32| match number {
            CacheNumber::F32 => value,
            CacheNumber::F16 => f16::from_f32(value).to_f32(),
        };
        let numbers = |seed| values(N_SLOTS * kv_width, seed).into_iter().map(kept).collect::<Vec<f32>>();
        let (keys, values_here) = (numbers(1), numbers(2));
        let queries = values(PARENTS.len() * width, 3);
        let cache = device.cache(1, N_SLOTS, kv_width, number).expect("memory");
        // Position 0 turns nothing.
        let tables = RotaryTables {
            config: RotationConfig { head_dim: head_dim as u32, rope_dim: head_dim as u32, halves: true },
            cos: device.upload_f32(&vec![1.0; head_dim / 2]).expect("memory"),
            sin: device.upload_f32(&vec![0.0; head_dim / 2]).expect("memory"),
        };
        let plan = device.upload_u32(&vec![0; N_SLOTS * ROW_WORDS as usize]).expect("memory");
        let pass = PassRows { plan: &plan, n_rows: N_SLOTS, n_committed: 0 };
        let [a, b] = [&keys, &values_here].map(|numbers| device.upload_f32(numbers).expect("memory"));
        let rotated = device.empty(N_SLOTS * kv_width).expect("memory");
        device.rotate_and_store(pass, [&a, &a, &b], kv_width, &tables, &rotated, &cache, 0, false);
        let sizes = AttentionSizes { n_heads: N_HEADS, n_kv_heads: N_KV_HEADS, head_dim, scale: 0.7 };
        Self { sizes, cache, keys, values: values_here, queries }
    }

    fn width(&self) -> usize {
        N_HEADS * self.sizes.head_dim
    }

    /// Runs a pass; `first` is the row of the queries that its first row has.
    fn attend(
        &self,
        device: &Device,
        n_committed: usize,
        rows: &[Row],
        first: usize,
        packed: Option<&Buffer>,
    ) -> Buffer {
        let mut words = vec![0u32; rows.len() * ROW_WORDS as usize];
        for (idx, row) in rows.iter().enumerate() {
            let of_row = [0, 0, row.hidden.start, row.hidden.end, words.len(), row.list.len()];
            let at = idx * ROW_WORDS as usize;
            words.iter_mut().skip(at).zip(of_row).for_each(|(word, value)| *word = value as u32);
            words.extend(row.list.iter().map(|&slot| slot as u32));
        }
        let plan = device.upload_u32(&words).expect("memory");
        let pass = PassRows { plan: &plan, n_rows: rows.len(), n_committed };
        let of_rows = &self.queries[first * self.width()..(first + rows.len()) * self.width()];
        let queries = device.upload_f32(of_rows).expect("memory");
        let out = device.empty(of_rows.len()).expect("memory");
        let n_room = device.attention_room(self.sizes, rows.len(), n_committed);
        let room = device.empty(n_room).expect("memory");
        device.attend(pass, self.sizes, &queries, &self.cache, 0, &room, &out, packed);
        out
    }

    /// In f64, as the definition says.
    fn expected(&self, n_committed: usize, row: &Row, query: usize) -> Vec<f64> {
        let AttentionSizes { head_dim, scale, .. } = self.sizes;
        let kv_width = N_KV_HEADS * head_dim;
        let committed = (0..n_committed).filter(|slot| !row.hidden.contains(slot));
        let seen: Vec<usize> = committed.chain(row.list.iter().copied()).collect();
        let mut out = Vec::new();
        for head in 0..N_HEADS {
            let column = head / (N_HEADS / N_KV_HEADS) * head_dim;
            let query = &self.queries[query * self.width() + head * head_dim..][..head_dim];
            let of = |numbers: &[f32], slot: usize| -> Vec<f64> {
                numbers[slot * kv_width + column..][..head_dim].iter().map(|&number| number.into()).collect()
            };
            let scores = seen.iter().map(|&slot| {
                let key = of(&self.keys, slot);
                f64::from(scale) * query.iter().zip(key).map(|(&a, b)| f64::from(a) * b).sum::<f64>()
            });
            let weights: Vec<f64> = scores.map(f64::exp).collect();
            let mut sums = vec![0.0; head_dim];
            for (&slot, weight) in seen.iter().zip(&weights) {
                sums.iter_mut().zip(of(&self.values, slot)).for_each(|(sum, value)| *sum += weight * value);
            }
            let total: f64 = weights.iter().sum();
            out.extend(sums.iter().map(|sum| sum / total));
        }
        out
    }
}

fn settings(device: &Device) -> Vec<Setting> {
    let shapes = [(6, CacheNumber::F32), (64, CacheNumber::F32), (128, CacheNumber::F16)];
    shapes.map(|(head_dim, number)| Setting::new(device, head_dim, number)).into()
}

fn bits(device: &Device, buffer: &Buffer) -> Vec<u32> {
    device.read_f32(buffer).expect("the device works").into_iter().map(f32::to_bits).collect()
}

/// Within one chunk, at its edges, and over several.
#[test]
fn attention_is_the_weighted_mean_of_what_a_row_sees() {
    for device in devices() {
        for setting in settings(&device) {
            for n_committed in [9, 125, 250, 255, 613] {
                let rows = tree(n_committed);
                let out = setting.attend(&device, n_committed, &rows, 0, None);
                let out = device.read_f32(&out).expect("the device works");
                for (idx, (row, got)) in rows.iter().zip(out.chunks_exact(setting.width())).enumerate() {
                    let expected = setting.expected(n_committed, row, idx);
                    let error = expected.iter().zip(got).map(|(a, &b)| (a - f64::from(b)).abs());
                    let error = error.fold(0.0, f64::max);
                    let case = (device.info().id(), setting.sizes, n_committed, idx);
                    assert!(error < 2e-6, "{case:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn attention_of_a_row_has_the_same_bits_beside_any_rows() {
    for device in devices() {
        for setting in settings(&device) {
            for n_committed in [9, 251, 400] {
                let rows = tree(n_committed);
                let all = bits(&device, &setting.attend(&device, n_committed, &rows, 0, None));
                for n in 1..rows.len() {
                    let some = bits(&device, &setting.attend(&device, n_committed, &rows[..n], 0, None));
                    let case = (device.info().id(), setting.sizes, n_committed, n);
                    assert!(some == all[..some.len()], "{case:?}");
                }
            }
        }
    }
}

#[test]
fn attention_of_a_row_has_the_same_bits_whatever_is_committed() {
    for device in devices() {
        for setting in settings(&device) {
            for n_slots in [60, 259, 500] {
                let row = |n_committed: usize, slot: usize| Row {
                    hidden: 0..0,
                    list: (n_committed..=slot).collect(),
                };
                let pass = |n_committed: usize| -> Vec<Row> {
                    (n_committed..n_slots).map(|slot| row(n_committed, slot)).collect()
                };
                let first = n_slots - PARENTS.len();
                let all = bits(&device, &setting.attend(&device, first, &pass(first), 0, None));
                for n in 1..PARENTS.len() {
                    let rows = pass(first + n);
                    let some = bits(&device, &setting.attend(&device, first + n, &rows, n, None));
                    let case = (device.info().id(), setting.sizes, n_slots, n);
                    assert!(some == all[n * setting.width()..], "{case:?}");
                }
            }
        }
    }
}

/// Where rows are packed, those of attention are what packing them afterwards makes of them.
#[test]
fn attention_packs_what_it_would_write() {
    for device in devices().iter().filter(|device| device.packs_rows()) {
        for setting in settings(device).iter().filter(|setting| setting.width().is_multiple_of(32)) {
            for n_committed in [9, 400] {
                let (rows, width) = (tree(n_committed), setting.width());
                let words = device.packed_words(rows.len(), width);
                let [packed, expected] = [(); 2].map(|()| device.empty(words).expect("memory"));
                let out = setting.attend(device, n_committed, &rows, 0, None);
                device.pack(None, &out, None, None, rows.len(), width, &expected);
                setting.attend(device, n_committed, &rows, 0, Some(&packed));
                let case = (device.info().id(), setting.sizes, n_committed);
                // The last word of a block is for norms, which do not come behind attention.
                let is_same =
                    |(at, (a, b)): (usize, (&u32, &u32))| at % BLOCK_WORDS == BLOCK_WORDS - 1 || a == b;
                let (packed, expected) = (bits(device, &packed), bits(device, &expected));
                assert!(packed.iter().zip(&expected).enumerate().all(is_same), "{case:?}");
            }
        }
    }
}
