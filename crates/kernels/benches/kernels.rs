//! Each kernel for itself: `cargo bench -p sateen-kernels`. Throughput is in multiply-adds for
//! the products, and in values for the rest.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::{
    AttentionShape, AttentionSlices, CacheType, DenseFormat, KvCache, LinearInput, LinearLayer, PackedMatrix,
    Pool, QuantizedFormat, QuantizedRows, Tier, WeightFormat, attend, project, rms_norm, swiglu,
};

/// Values of a usual size, the same in every run.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 252.0).collect()
}

/// A matrix whose codes are any bits and whose scales are small numbers.
fn matrix(format: WeightFormat, n_out: usize, n_in: usize, pool: &Pool) -> PackedMatrix {
    let (block, block_bytes) = format.file_block();
    let bytes: Vec<u8> = (0..n_out * n_in / block * block_bytes).map(|i| (i * 31 % 41) as u8).collect();
    PackedMatrix::pack(format, n_out, n_in, &bytes, pool).expect("packs")
}

fn linears(criterion: &mut Criterion) {
    let (pool, tier) = (Pool::for_this_machine(0), Tier::detect());
    let mut group = criterion.benchmark_group("linear");
    // One thread's share stays in its cache: what is measured is arithmetic, not memory.
    let (n_out, n_in) = (1024, 1024);
    let quantized = QuantizedFormat::ALL.map(|format| (format!("{format:?}"), format.into()));
    let dense = DenseFormat::ALL.map(|format| (format!("{format:?}"), format.into()));
    for (name, format) in quantized.into_iter().chain(dense) {
        let matrix = matrix(format, n_out, n_in, &pool);
        for n_rows in [1, 4, 8, 16] {
            let mut input = LinearInput::default();
            input.values = values(n_rows * n_in);
            input.quantize(&pool, tier, n_in);
            let layer = LinearLayer { matrix: &matrix, bias: None, delta: None };
            let mut out = vec![0.0; n_rows * n_out];
            group.throughput(Throughput::Elements((n_rows * n_out * n_in) as u64));
            group.bench_function(BenchmarkId::new(&name, n_rows), |bencher| {
                bencher.iter(|| project(&pool, tier, [layer], &mut input, [&mut out]));
            });
        }
    }
}

fn attention(criterion: &mut Criterion) {
    let (pool, tier) = (Pool::for_this_machine(0), Tier::detect());
    let mut group = criterion.benchmark_group("attend");
    let shape = AttentionShape::new(14, 2, 64);
    let shapes = [(128, 1), (128, 8), (1024, 1), (1024, 8), (512, 32)];
    let types = [CacheType::F32, CacheType::F16];
    for (cache_type, (n_committed, n_rows)) in
        types.map(|of| shapes.map(|shape| (of, shape))).into_iter().flatten()
    {
        let slots = n_committed + n_rows;
        let mut cache = KvCache::new(1, slots, shape, cache_type).expect("memory");
        cache.store(0, 0, &values(slots * 2 * 64), &values(slots * 2 * 64));
        let queries = values(n_rows * 14 * 64);
        let visible: Vec<Vec<usize>> =
            (0..n_rows).map(|row| (n_committed..=n_committed + row).collect()).collect();
        let slices = AttentionSlices {
            queries: &queries,
            cached: cache.layer(0),
            n_committed,
            visible: &visible,
            hidden: &[],
        };
        let mut out = vec![0.0; queries.len()];
        group.throughput(Throughput::Elements((n_rows * 14 * 64 * slots * 2) as u64));
        group.bench_function(
            BenchmarkId::new(format!("{cache_type:?}, {n_committed} slots"), n_rows),
            |bencher| {
                bencher.iter(|| attend(&pool, tier, shape, &slices, &mut out));
            },
        );
    }
}

fn elementwise(criterion: &mut Criterion) {
    let (pool, tier) = (Pool::for_this_machine(0), Tier::detect());
    let mut group = criterion.benchmark_group("elementwise");
    let (input, weight) = (values(1024), values(1024));
    group.throughput(Throughput::Elements(1024));
    let mut out = input.clone();
    group.bench_function("rms_norm", |bencher| {
        bencher.iter(|| rms_norm(tier, &input, &weight, 1e-5, &mut out));
    });
    group.bench_function("swiglu", |bencher| {
        bencher.iter(|| {
            out.copy_from_slice(&input);
            swiglu(tier, &mut out, &weight);
        });
    });
    let mut rows = QuantizedRows::default();
    group.bench_function("quantize", |bencher| bencher.iter(|| rows.quantize(&pool, tier, &input, 1024)));
    group.bench_function("an empty parallel region", |bencher| bencher.iter(|| pool.run(2, &|_| ())));
}

criterion_group!(benches, linears, attention, elementwise);
criterion_main!(benches);
