//! Packed linear layers against candle's reading of the same bytes, and against themselves.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use kernels::{
    DenseFormat, LinearInput, LinearLayer, LowRank, N_TOP, PackedMatrix, Pool, QuantizedFormat,
    QuantizedRows, Tier, VocabularyOut, VocabularyRows, VocabularyScratch, WeightFormat, project,
    project_swiglu, project_vocabulary, swiglu,
};
use proptest::prelude::*;

/// All formats that can be packed.
fn formats() -> Vec<WeightFormat> {
    let quantized = QuantizedFormat::ALL.map(WeightFormat::from);
    quantized.into_iter().chain(DenseFormat::ALL.map(WeightFormat::from)).collect()
}

fn candle_type(format: WeightFormat) -> GgmlDType {
    let format = match format {
        WeightFormat::Quantized(format) => format,
        WeightFormat::Dense(DenseFormat::F16) => return GgmlDType::F16,
        WeightFormat::Dense(DenseFormat::BF16) => return GgmlDType::BF16,
        WeightFormat::Dense(DenseFormat::F32) => return GgmlDType::F32,
    };
    match format {
        QuantizedFormat::Q4_0 => GgmlDType::Q4_0,
        QuantizedFormat::Q4_1 => GgmlDType::Q4_1,
        QuantizedFormat::Q5_0 => GgmlDType::Q5_0,
        QuantizedFormat::Q5_1 => GgmlDType::Q5_1,
        QuantizedFormat::Q8_0 => GgmlDType::Q8_0,
        QuantizedFormat::Q2_K => GgmlDType::Q2K,
        QuantizedFormat::Q3_K => GgmlDType::Q3K,
        QuantizedFormat::Q4_K => GgmlDType::Q4K,
        QuantizedFormat::Q5_K => GgmlDType::Q5K,
        QuantizedFormat::Q6_K => GgmlDType::Q6K,
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 31)
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    /// Any bits for the codes, and scales that are finite numbers of a usual size.
    fn file_bytes(&mut self, format: WeightFormat, n_blocks: usize) -> Vec<u8> {
        let (_, block_bytes) = format.file_block();
        let format = match format {
            WeightFormat::Quantized(format) => format,
            WeightFormat::Dense(format) => {
                let values = self.floats(n_blocks).into_iter();
                return match format {
                    DenseFormat::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
                    DenseFormat::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
                    DenseFormat::F32 => values.flat_map(f32::to_le_bytes).collect(),
                };
            }
        };
        let halves: &[usize] = match format {
            QuantizedFormat::Q4_0 | QuantizedFormat::Q5_0 | QuantizedFormat::Q8_0 => &[0],
            QuantizedFormat::Q2_K => &[80, 82],
            QuantizedFormat::Q3_K => &[108],
            QuantizedFormat::Q6_K => &[208],
            _ => &[0, 2],
        };
        let mut bytes = Vec::with_capacity(n_blocks * block_bytes);
        for _ in 0..n_blocks {
            let mut block: Vec<u8> = (0..block_bytes).map(|_| self.next() as u8).collect();
            for &at in halves {
                let bits = 0x2400 | (self.next() as u16 & 0x8bff);
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
            bytes.extend(block);
        }
        bytes
    }
}

struct Case {
    packed: PackedMatrix,
    /// `[n_out, n_in]`, as candle reads the bytes.
    weights: Vec<f32>,
}

fn case(format: impl Into<WeightFormat>, n_out: usize, n_in: usize, seed: u64) -> Case {
    let format = format.into();
    let bytes = Random(seed).file_bytes(format, n_out * n_in / format.file_block().0);
    let storage = candle_type(format).from_data(Cow::Borrowed(&bytes)).dequantize(n_out * n_in);
    let CpuStorage::F32(weights) = storage.expect("dequantizes") else { panic!("not f32") };
    Case { packed: PackedMatrix::pack(format, n_out, n_in, &bytes, &Pool::new(2)).expect("packs"), weights }
}

fn input(pool: &Pool, tier: Tier, values: &[f32], width: usize) -> LinearInput {
    let mut input = LinearInput::default();
    input.values.extend(values);
    input.quantize(pool, tier, width);
    input.first_adaptive = values.len() / width;
    input
}

fn plain(matrix: &PackedMatrix) -> LinearLayer<'_> {
    LinearLayer { matrix, bias: None, delta: None }
}

fn run(pool: &Pool, tier: Tier, packed: &PackedMatrix, values: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; values.len() / packed.n_in() * packed.n_out()];
    project(pool, tier, [plain(packed)], &mut input(pool, tier, values, packed.n_in()), [&mut out]);
    out
}

#[test]
fn packed_values_are_exactly_those_of_the_format() {
    for format in formats() {
        let (n_out, n_in) = (35, 512);
        let Case { packed, weights } = case(format, n_out, n_in, 1);
        let mut row = vec![0.0; n_in];
        for (idx, expected) in weights.chunks_exact(n_in).enumerate() {
            packed.dequantize_row(idx, &mut row);
            for (input, (got, expected)) in row.iter().zip(expected).enumerate() {
                // Where a minimum is added, the one rounding of that sum may fall otherwise.
                let tolerance = f32::EPSILON * 4.0 * (got.abs() + 64.0 * 2.0);
                let is_equal = if format.file_block().0 <= 32 {
                    got == expected
                } else {
                    (got - expected).abs() <= tolerance
                };
                assert!(is_equal, "{format:?} row {idx} input {input}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn packing_keeps_the_size_of_the_file() {
    for format in formats() {
        let Case { packed, .. } = case(format, 64, 1024, 2);
        let (file_block, file_block_bytes) = format.file_block();
        let file_bytes = 64 * 1024 / file_block * file_block_bytes;
        assert!(
            packed.n_bytes() <= file_bytes * 11 / 10,
            "{format:?}: {} for {file_bytes}",
            packed.n_bytes()
        );
    }
}

/// Against the plain sum in f64; beside quantized weights activations are quantized to 8 bits, so each
/// contributes an error of half a step at most.
#[test]
fn products_are_near_those_of_the_unquantized_input() {
    for format in formats() {
        let (n_out, n_in, n_rows) = (48, 768, 3);
        let Case { packed, weights } = case(format, n_out, n_in, 3);
        let input = Random(4).floats(n_rows * n_in);
        let out = run(&Pool::new(1), Tier::detect(), &packed, &input);
        for (row, input) in input.chunks_exact(n_in).enumerate() {
            for (idx, weights) in weights.chunks_exact(n_in).enumerate() {
                let expected: f64 =
                    input.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let step = if matches!(format, WeightFormat::Dense(_)) { 0.0 } else { 0.5 / 127.0 };
                let bound: f64 = weights.iter().map(|w| f64::from(w.abs()) * step).sum();
                let got = f64::from(out[row * n_out + idx]);
                assert!(
                    (got - expected).abs() <= bound * 1.01 + 1e-3,
                    "{format:?}: {got} for {expected} ± {bound}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bit for bit: every tier and number of threads, every number of rows, alone or in company.
    #[test]
    fn a_rows_result_depends_on_the_row_alone(
        format in prop::sample::select(formats()),
        n_out in 1usize..70,
        n_super in 1usize..4,
        n_rows in 1usize..20,
        seed in any::<u64>(),
    ) {
        // Widths that are no whole super-blocks, or blocks, where the format has none.
        let n_in = match format.file_block().0 {
            1 => n_super * 37,
            32 => n_super * 96,
            _ => n_super * 256,
        };
        let Case { packed, .. } = case(format, n_out, n_in, seed);
        let input = Random(seed ^ 1).floats(n_rows * n_in);
        let expected: Vec<f32> =
            input.chunks_exact(n_in).flat_map(|row| run(&Pool::new(1), Tier::PORTABLE, &packed, row)).collect();
        for tier in Tier::available() {
            for n_threads in [1, 3] {
                let out = run(&Pool::new(n_threads), tier, &packed, &input);
                prop_assert_eq!(&out, &expected, "{:?} with {} threads", tier, n_threads);
            }
        }
    }
}

/// Several layers in one region, with biases, and with deltas on the adaptive rows only.
#[test]
fn layers_that_share_an_input_are_each_what_they_are_alone() {
    let (n_in, n_rows, first_adaptive, rank) = (256, 13, 9, 20);
    let pool = Pool::new(3);
    let cases: [(WeightFormat, usize); 3] = [
        (QuantizedFormat::Q5_0.into(), 96),
        (DenseFormat::F16.into(), 20),
        (QuantizedFormat::Q8_0.into(), 1),
    ];
    let cases = cases.map(|(format, n_out)| case(format, n_out, n_in, 5));
    let mut random = Random(6);
    let biases: Vec<Vec<f32>> = cases.iter().map(|case| random.floats(case.packed.n_out())).collect();
    let factors: Vec<(Vec<f32>, Vec<f32>)> = cases
        .iter()
        .map(|case| (random.floats(n_in * rank), random.floats(rank * case.packed.n_out())))
        .collect();
    let deltas: Vec<LowRank> =
        factors.iter().map(|(a, b)| LowRank::pack(a, b, rank, &pool).expect("packs")).collect();
    let values = random.floats(n_rows * n_in);
    for tier in Tier::available() {
        let mut outs: Vec<Vec<f32>> =
            cases.iter().map(|case| vec![f32::NAN; n_rows * case.packed.n_out()]).collect();
        let layers: [LinearLayer<'_>; 3] = std::array::from_fn(|i| LinearLayer {
            matrix: &cases[i].packed,
            bias: Some(&biases[i]),
            delta: Some(&deltas[i]),
        });
        let mut shared = input(&pool, tier, &values, n_in);
        shared.first_adaptive = first_adaptive;
        let [first, second, third] = &mut outs[..] else { panic!("three outputs") };
        project(&pool, tier, layers, &mut shared, [first, second, third]);
        for (idx, out) in outs.iter().enumerate() {
            let n_out = cases[idx].packed.n_out();
            let alone = run(&pool, tier, &cases[idx].packed, &values);
            for row in 0..n_rows {
                for output in 0..n_out {
                    let without = alone[row * n_out + output] + biases[idx][output];
                    let got = out[row * n_out + output];
                    if row < first_adaptive {
                        assert_eq!(got, without, "token rows do not see the delta");
                        continue;
                    }
                    let (a, b) = &factors[idx];
                    let inner = |r: usize| -> f32 {
                        (0..n_in).map(|i| values[row * n_in + i] * a[i * rank + r]).sum()
                    };
                    let terms: Vec<f32> = (0..rank).map(|r| inner(r) * b[r * n_out + output]).collect();
                    // Three roundings to eight bits: of the input, of both factors, of the inner values.
                    let bound = terms.iter().map(|term| term.abs()).sum::<f32>() * 0.03 + 2.0;
                    let expected = without + terms.iter().sum::<f32>();
                    assert!((got - expected).abs() < bound, "{got} for {expected} ± {bound}");
                }
            }
        }
    }
}

#[test]
fn swiglu_is_fused_with_its_layers() {
    let n_rows = 11;
    let dense = WeightFormat::from(DenseFormat::BF16);
    // Outputs that are no whole blocks have no bytes.
    for (format, n_in, n_out) in [(QuantizedFormat::Q4_1.into(), 96, 64), (dense, 96, 64), (dense, 37, 83)] {
        let (gate, up) = (case(format, n_out, n_in, 7), case(format, n_out, n_in, 8));
        let values = Random(9).floats(n_rows * n_in);
        for tier in Tier::available() {
            let pool = Pool::new(2);
            let mut fused = LinearInput::default();
            let layers = [plain(&gate.packed), plain(&up.packed)];
            project_swiglu(&pool, tier, layers, &mut input(&pool, tier, &values, n_in), &mut fused);
            let mut activated = run(&pool, tier, &gate.packed, &values);
            swiglu(tier, &mut activated, &run(&pool, tier, &up.packed, &values));
            let mut expected = QuantizedRows::default();
            expected.quantize(&pool, tier, &activated, n_out);
            assert_eq!(format!("{:?}", fused.rows()), format!("{expected:?}"));
            assert_eq!(fused.values, activated);
        }
    }
}

/// Deltas of layers whose width is no whole blocks.
#[test]
fn deltas_fit_any_width() {
    let (n_in, n_out, rank) = (37, 48, 5);
    let pool = Pool::new(2);
    let mut random = Random(12);
    let (a, b) = (random.floats(n_in * rank), random.floats(rank * n_out));
    let values = random.floats(n_in);
    let Case { packed, weights } = case(DenseFormat::F32, n_out, n_in, 13);
    let delta = LowRank::pack(&a, &b, rank, &pool).expect("packs");
    for tier in Tier::available() {
        let mut out = vec![0.0; n_out];
        let mut input = input(&pool, tier, &values, n_in);
        input.first_adaptive = 0;
        let layer = LinearLayer { delta: Some(&delta), ..plain(&packed) };
        project(&pool, tier, [layer], &mut input, [&mut out]);
        for (output, got) in out.iter().enumerate() {
            let product = |weight: &dyn Fn(usize) -> f32| -> f32 {
                values.iter().enumerate().map(|(i, value)| value * weight(i)).sum()
            };
            let inner: Vec<f32> = (0..rank).map(|r| product(&|i| a[i * rank + r])).collect();
            let delta: f32 = (0..rank).map(|r| inner[r] * b[r * n_out + output]).sum();
            let expected = product(&|i| weights[output * n_in + i]) + delta;
            assert!((got - expected).abs() < 0.1, "{got} for {expected}");
        }
    }
}

#[test]
fn the_vocabulary_projection_finds_the_largest_and_writes_what_is_asked_for() {
    let (n_in, n_out, n_rows) = (64, 1003, 11);
    let Case { packed, .. } = case(QuantizedFormat::Q8_0, n_out, n_in, 10);
    let values = Random(11).floats(n_rows * n_in);
    let is_full: Vec<bool> = (0..n_rows).map(|row| row % 3 == 0).collect();
    for (tier, n_threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]) {
        let pool = Pool::new(n_threads);
        let expected = run(&pool, tier, &packed, &values);
        let (mut tops, mut full) = (Vec::new(), Vec::new());
        let mut scratch = VocabularyScratch::default();
        let input = input(&pool, tier, &values, n_in);
        let wanted = VocabularyRows { is_full: &is_full, first_draft: 10, n_draft_outputs: 512 };
        let out = VocabularyOut { tops: &mut tops, full: &mut full };
        project_vocabulary(&pool, tier, plain(&packed), &input, wanted, &mut scratch, out);
        let mut written = full.chunks_exact(n_out);
        for (row, expected) in expected.chunks_exact(n_out).enumerate() {
            let among = if row < 10 { n_out } else { 512 };
            let mut ranked: Vec<(u32, f32)> = (0..).zip(expected[..among].iter().copied()).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(tops[row][..], ranked[..N_TOP]);
            if is_full[row] {
                assert_eq!(written.next(), Some(expected));
            }
        }
        assert_eq!(written.next(), None);
    }
}
