//! What attention takes in a layer, by the clock: `cargo run --release -p sateen-gpu --example attention DEVICE N_HEADS N_KV_HEADS
//! HEAD_DIM`, as in `cuda:0 32 32 128` for a 7B model. Keys and values are any numbers.

use std::time::Instant;

use gpu::{AttentionSizes, CacheNumber, Device, DeviceInfo, PassRows, ROW_WORDS};

/// Launches behind each other, of which the mean is printed.
const N_LAUNCHES: usize = 20;
/// Rounds, of which the quickest is printed.
const N_ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [id, sizes @ ..] = arguments.as_slice() else { return Err("a device like cuda:0".into()) };
    let sizes: Vec<usize> = sizes.iter().map(|size| size.parse()).collect::<Result<_, _>>()?;
    let [n_heads, n_kv_heads, head_dim] = sizes[..] else {
        return Err("heads, their number and width".into());
    };
    let sizes = AttentionSizes { n_heads, n_kv_heads, head_dim, scale: 0.1 };
    let device = Device::open(&DeviceInfo::find(id)?)?;
    println!("{:>8} {:>6} {:>10}", "slots", "rows", "µs");
    for n_committed in [128, 512, 1290, 2200] {
        let cache = device.cache(1, n_committed + 32, n_kv_heads * head_dim, CacheNumber::F32)?;
        for n_rows in [1, 8, 32] {
            let queries = device.upload_f32(&vec![0.5; n_rows * n_heads * head_dim])?;
            let room = device.empty(device.attention_room(sizes, n_rows, n_committed))?;
            let out = device.empty(n_rows * n_heads * head_dim)?;
            // Each row sees those before it and itself.
            let lists = n_rows * ROW_WORDS as usize;
            let row = |i: usize| [0, n_committed + i, 0, 0, lists, i + 1].map(|word| word as u32);
            let mut words: Vec<u32> = (0..n_rows).flat_map(row).collect();
            words.extend((0..n_rows).map(|i| (n_committed + i) as u32));
            let plan = device.upload_u32(&words)?;
            let pass = PassRows { plan: &plan, n_rows, n_committed };
            let packed = device.empty(device.packed_words(n_rows, n_heads * head_dim))?;
            let packed = device.packs_rows().then_some(&packed);
            let mut quickest = f64::INFINITY;
            for _ in 0..=N_ROUNDS {
                let started = Instant::now();
                for _ in 0..N_LAUNCHES {
                    device.attend(pass, sizes, &queries, &cache, 0, &room, &out, packed);
                }
                device.read(&[(&out, 1)])?;
                quickest = quickest.min(started.elapsed().as_secs_f64());
            }
            println!("{n_committed:>8} {n_rows:>6} {:>10.1}", 1e6 * quickest / N_LAUNCHES as f64);
        }
    }
    Ok(())
}
