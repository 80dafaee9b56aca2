//! Linear layers on every device of this machine: the values of the file, and the same bits for any number of rows.

use crate::common::{devices, layout_of, random_file, values};
use gpu::{Activations, Buffer, Delta, Device, GatedLayer, LinearLayer, Matrix, ProductExtent, RowRange};
use kernels::{DenseFormat, PackedMatrix, Pool, QuantizedFormat, WeightFormat};

fn formats() -> Vec<WeightFormat> {
    let quantized = QuantizedFormat::ALL.into_iter().map(WeightFormat::from);
    quantized.chain(DenseFormat::ALL.into_iter().map(WeightFormat::from)).collect()
}

/// A layer that has weights alone.
fn plain<'a>(matrix: &'a Matrix, out: &'a Buffer) -> LinearLayer<'a> {
    LinearLayer { matrix, bias: None, delta: None, out }
}

/// Rows on a device in every form that a matrix of this format takes there: as they are, and packed.
struct Rows {
    plain: Buffer,
    packed: Option<Buffer>,
}

impl Rows {
    fn new(device: &Device, format: WeightFormat, x: &[f32], width: usize) -> Self {
        let plain = device.upload_f32(x).expect("memory");
        let packs = device.packs_rows() && format != DenseFormat::F32.into();
        let packed = packs.then(|| {
            let n_rows = x.len() / width;
            let packed = device.empty(device.packed_words(n_rows, width)).expect("memory");
            device.pack(None, &plain, None, None, n_rows, width, &packed);
            packed
        });
        Self { plain, packed }
    }

    fn forms(&self) -> impl Iterator<Item = Activations<'_>> {
        let packed = self.packed.as_ref().map(|rows| Activations::Packed { rows, epsilon: None });
        [Activations::Plain(&self.plain)].into_iter().chain(packed)
    }
}

/// Against sums in f64 of the weights as the CPU has them.
#[test]
fn products_are_those_of_the_files_values() {
    let pool = Pool::new(1);
    let (n_out, n_in, n_rows) = (37, 512, 11);
    let x = values(n_rows * n_in, 1);
    for device in devices() {
        for format in formats() {
            let packed = PackedMatrix::pack(format, n_out, n_in, &random_file(format, n_out, n_in), &pool);
            let packed = packed.expect("finite");
            let matrix = device.matrix(layout_of(format), n_out, n_in, packed.bytes()).expect("memory");
            let bias = values(n_out, 2);
            let bias_there = device.upload_f32(&bias).expect("memory");
            let rows = Rows::new(&device, format, &x, n_in);
            let all = RowRange { first: 0, n: n_rows };
            let got: Vec<Vec<f32>> = (rows.forms())
                .map(|x| {
                    let out = device.empty(n_rows * n_out).expect("memory");
                    let layer = LinearLayer { bias: Some(&bias_there), ..plain(&matrix, &out) };
                    device.product(layer, x, all, ProductExtent::default());
                    device.read_f32(&out).expect("the device works")
                })
                .collect();
            let mut weights = vec![0.0f32; n_in];
            for output in 0..n_out {
                packed.dequantize_row(output, &mut weights);
                for row in 0..n_rows {
                    let terms =
                        x[row * n_in..].iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) =
                        terms.fold((f64::from(bias[output]), 0.0), |(s, z), t| (s + t, z + t.abs()));
                    for (form, got) in got.iter().enumerate() {
                        let got = f64::from(got[row * n_out + output]);
                        let far = (got - sum).abs();
                        assert!(
                            far <= 1e-5 * size.max(1e-3),
                            "{format:?}, form {form}, on {device:?}: {got}, not {sum}, of {size}"
                        );
                    }
                }
            }
        }
    }
}

/// A row alone, and among any number of others.
#[test]
fn a_rows_result_depends_on_the_row_alone() {
    let pool = Pool::new(1);
    let (n_out, n_in, n_rows) = (48, 1024, 19);
    let x = values(n_rows * n_in, 3);
    for device in devices() {
        for format in formats() {
            let file = random_file(format, n_out, n_in);
            let packed = PackedMatrix::pack(format, n_out, n_in, &file, &pool).expect("finite");
            let matrix = device.matrix(layout_of(format), n_out, n_in, packed.bytes()).expect("memory");
            for x in Rows::new(&device, format, &x, n_in).forms() {
                let product = |first: usize, n: usize| {
                    let out = device.empty(n * n_out).expect("memory");
                    let rows = RowRange { first, n };
                    device.product(plain(&matrix, &out), x, rows, ProductExtent::default());
                    device.read_f32(&out).expect("the device works")
                };
                let alone: Vec<f32> = (0..n_rows).flat_map(|row| product(row, 1)).collect();
                for n in [2, 3, 4, 5, 8, 9, 16, 19] {
                    let together = product(0, n);
                    let equal = together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(equal, "{format:?}, {n} rows on {device:?}");
                }
            }
        }
    }
}

/// Where a device does several products in one launch, they are to the bit what it does one after the other: three of
/// one input, behind a norm; gate, up and SwiGLU; a product that is added to the hidden rows, which are packed again.
#[test]
fn products_in_one_launch_are_those_of_several() {
    let quantized = [QuantizedFormat::Q8_0, QuantizedFormat::Q4_K, QuantizedFormat::Q6_K];
    let dense = [DenseFormat::F16, DenseFormat::BF16].map(WeightFormat::from);
    let formats = quantized.map(WeightFormat::from).into_iter().chain(dense);
    for device in devices() {
        for format in formats.clone() {
            // How rows are cut is the same in all formats.
            let widths: &[usize] = if format == QuantizedFormat::Q4_K.into() { &[1, 11, 40] } else { &[11] };
            for &n_rows in widths {
                compare_launches(&device, format, n_rows, 512, [37, 64, 48]);
            }
        }
        // Many outputs are cut another way; two matrices that have many together only are not.
        for widths in [[6161, 6176, 6160], [37, 3200, 48]] {
            compare_launches(&device, QuantizedFormat::Q8_0.into(), 9, 64, widths);
        }
    }
}

/// Three matrices of so many outputs; the second's are whole blocks, and there is another of its shape.
fn compare_launches(device: &Device, format: WeightFormat, n_rows: usize, n_in: usize, widths: [usize; 3]) {
    let [first, wide, third] = widths;
    let pool = Pool::new(1);
    let upload = |n_out: usize| {
        let file = random_file(format, n_out, n_in);
        let packed = PackedMatrix::pack(format, n_out, n_in, &file, &pool).expect("finite");
        device.matrix(layout_of(format), n_out, n_in, packed.bytes()).expect("memory")
    };
    let empty = |n: usize| device.empty(n).expect("memory");
    let numbers = |n: usize, seed: u64| device.upload_f32(&values(n, seed)).expect("memory");
    let bits = |buffer: &Buffer| {
        let numbers = device.read_f32(buffer).expect("the device works");
        numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let what = format!("{format:?}, {n_rows} rows on {device:?}");
    let rows = Rows::new(device, format, &values(n_rows * n_in, 3), n_in);
    for x in rows.forms() {
        let normed = match x {
            Activations::Packed { rows, .. } => Activations::Packed { rows, epsilon: Some(1e-5) },
            plain => plain,
        };
        let matrices = [first, wide, third, wide].map(upload);
        let bias = numbers(first, 4);
        let out = |matrix: &Matrix| empty(n_rows * matrix.n_out());
        let (together, apart) = (matrices.each_ref().map(out), matrices.each_ref().map(out));
        let layer =
            |i: usize| LinearLayer { bias: (i == 0).then_some(&bias), ..plain(&matrices[i], &together[i]) };
        let all = RowRange { first: 0, n: n_rows };
        device.products(&[layer(0), layer(1), layer(2)], normed, all);
        for (i, matrix) in matrices.iter().enumerate() {
            let bias = (i == 0).then_some(&bias);
            let layer = LinearLayer { bias, ..plain(matrix, &apart[i]) };
            device.product(layer, normed, all, ProductExtent::default());
        }
        for i in 0..3 {
            assert_eq!(bits(&together[i]), bits(&apart[i]), "matrix {i}, {what}");
        }
        let packed = [(); 2].map(|()| empty(device.packed_words(n_rows, wide)));
        let [gate, up] = [&matrices[1], &matrices[3]];
        let gated = [gate, up].map(|matrix| GatedLayer { matrix, delta: None });
        let is_packed = matches!(x, Activations::Packed { .. });
        let swiglu = if is_packed { &packed[0] } else { &empty(n_rows * wide) };
        let in_one = device.swiglu_products(gated, normed, n_rows, swiglu);
        device.swiglu(&apart[1], &apart[3], n_rows * wide);
        if !is_packed {
            assert!(in_one && bits(swiglu) == bits(&apart[1]), "SwiGLU, {what}");
        } else if in_one {
            device.pack(None, &apart[1], None, None, n_rows, wide, &packed[1]);
            // The squares of what is behind no norm are nobody's.
            let without_squares = |buffer: &Buffer| {
                let words = bits(buffer);
                words.into_iter().enumerate().filter(|(i, _)| i % 20 != 19).collect::<Vec<_>>()
            };
            assert_eq!(without_squares(&packed[0]), without_squares(&packed[1]), "SwiGLU, {what}");
        }
        let (hidden, gain) = ([(); 2].map(|()| numbers(n_rows * wide, 5)), numbers(wide, 6));
        let layer = plain(up, &hidden[0]);
        if device.residual_product(layer, x, n_rows, &gain, &packed[0]) {
            device.product(plain(up, &apart[3]), x, all, ProductExtent::default());
            device.pack(Some(&apart[3]), &hidden[1], Some(&gain), None, n_rows, wide, &packed[1]);
            assert_eq!(bits(&hidden[0]), bits(&hidden[1]), "hidden rows, {what}");
            assert_eq!(bits(&packed[0]), bits(&packed[1]), "packed rows, {what}");
        }
    }
}

/// Rows from some row on are changed by what the delta says, in every launch; those in front stay what they are, to the bit.
#[test]
fn deltas_change_the_rows_that_have_them() {
    let (n_rows, first_row, rank, n_in, wide) = (11, 4, 5, 512, 64);
    let (pool, epsilon) = (Pool::new(1), Some(1e-5));
    for device in devices() {
        for format in [WeightFormat::from(QuantizedFormat::Q4_K), DenseFormat::F16.into()] {
            let upload = |n_out: usize| {
                let file = random_file(format, n_out, n_in);
                let packed = PackedMatrix::pack(format, n_out, n_in, &file, &pool).expect("finite");
                device.matrix(layout_of(format), n_out, n_in, packed.bytes()).expect("memory")
            };
            let numbers = |n: usize, seed: u64| device.upload_f32(&values(n, seed)).expect("memory");
            let empty = |n: usize| device.empty(n).expect("memory");
            let read = |buffer: &Buffer| device.read_f32(buffer).expect("the device works");
            let rows = Rows::new(&device, format, &values(n_rows * n_in, 3), n_in);
            let inner = [1, 2, 3].map(|seed| numbers((n_rows - first_row) * rank, seed));
            let widths = [48, wide, wide];
            let b: Vec<Buffer> = (0..3).map(|i| numbers(widths[i] * rank, 4 + i as u64)).collect();
            let delta = |i: usize| Delta { b: &b[i], inner: &inner[i], rank, first_row };
            // Against what it adds, in f64.
            let added = |i: usize, row: usize, output: usize| -> f64 {
                let (inner, b) = (values(inner[i].len(), 1 + i as u64), values(b[i].len(), 4 + i as u64));
                let of_row = row.checked_sub(first_row).map(|row| &inner[row * rank..][..rank]);
                let terms = of_row.into_iter().flatten().zip(&b[output * rank..]);
                terms.map(|(x, b)| f64::from(*x) * f64::from(*b)).sum()
            };
            let check = |i: usize, without: &[f32], with: &[f32], what: &str| {
                for (at, (before, after)) in without.iter().zip(with).enumerate() {
                    let (row, output) = (at / widths[i], at % widths[i]);
                    let case = format!("{what}, {format:?}, row {row}, output {output} on {device:?}");
                    if row < first_row {
                        assert_eq!(before.to_bits(), after.to_bits(), "{case}");
                    }
                    let far = (f64::from(*after) - f64::from(*before) - added(i, row, output)).abs();
                    assert!(far < 1e-5 * (1.0 + f64::from(before.abs())), "{case}: {far}");
                }
            };
            let matrices = widths.map(upload);
            for x in rows.forms() {
                let normed = match x {
                    Activations::Packed { rows, .. } => Activations::Packed { rows, epsilon },
                    plain => plain,
                };
                let all = RowRange { first: 0, n: n_rows };
                let outs = || widths.map(|width| empty(n_rows * width));
                let (without, with, one) = (outs(), outs(), outs());
                let of = |i: usize| plain(&matrices[i], &without[i]);
                device.products(&[of(0), of(1), of(2)], normed, all);
                let of = |i: usize| LinearLayer { delta: Some(delta(i)), ..plain(&matrices[i], &with[i]) };
                device.products(&[of(0), of(1), of(2)], normed, all);
                for i in 0..3 {
                    check(i, &read(&without[i]), &read(&with[i]), "three products");
                    let layer = LinearLayer { out: &one[i], ..of(i) };
                    device.product(layer, normed, all, ProductExtent::default());
                    assert_eq!(read(&one[i]), read(&with[i]), "one product, {format:?} on {device:?}");
                }
                let gated = |i: usize| GatedLayer { matrix: &matrices[i], delta: Some(delta(i)) };
                let is_packed = matches!(x, Activations::Packed { .. });
                let words = device.packed_words(n_rows, wide);
                let room = || empty(if is_packed { words } else { n_rows * wide });
                let (swiglu, expected) = (room(), room());
                if device.swiglu_products([gated(1), gated(2)], normed, n_rows, &swiglu) {
                    device.swiglu(&with[1], &with[2], n_rows * wide);
                    if is_packed {
                        device.pack(None, &with[1], None, None, n_rows, wide, &expected);
                        assert_eq!(
                            without_squares(&read(&swiglu)),
                            without_squares(&read(&expected)),
                            "{format:?}"
                        );
                    } else {
                        assert_eq!(read(&swiglu), read(&with[1]), "SwiGLU, {format:?} on {device:?}");
                    }
                }
                let (gain, packed) = (numbers(wide, 8), empty(words));
                for layer in [LinearLayer { delta: None, out: &without[1], ..of(1) }, of(1)] {
                    device.scale(layer.out, 0.0, n_rows * wide);
                    let does_so = device.residual_product(layer, x, n_rows, &gain, &packed);
                    assert_eq!(does_so, is_packed, "{format:?} on {device:?}");
                }
                if is_packed {
                    check(1, &read(&without[1]), &read(&with[1]), "a residual product");
                }
            }
        }
    }
}

/// The bits of packed rows but for the sums of squares, which are nobody's behind no norm.
fn without_squares(words: &[f32]) -> Vec<u32> {
    let words = words.iter().enumerate().filter(|(i, _)| i % 20 != 19);
    words.map(|(_, word)| word.to_bits()).collect()
}

/// A norm that products apply at their end, against one in f64; a number that is none stays none.
#[test]
fn norms_of_packed_rows_come_last() {
    let (pool, n_out, n_in, n_rows) = (Pool::new(1), 48, 256, 3);
    let formats = [WeightFormat::from(QuantizedFormat::Q8_0), DenseFormat::F16.into()];
    let devices = devices();
    let with_matrix_units = devices.iter().filter(|device| device.packs_rows());
    for (device, format) in with_matrix_units.flat_map(|device| formats.map(|format| (device, format))) {
        let file = random_file(format, n_out, n_in);
        let packed_matrix = PackedMatrix::pack(format, n_out, n_in, &file, &pool).expect("finite");
        let matrix = device.matrix(layout_of(format), n_out, n_in, packed_matrix.bytes()).expect("memory");
        let (mut x, gain) = (values(n_rows * n_in, 1), values(n_in, 2));
        x[2 * n_in + 5] = f32::NAN;
        let rows = device.empty(device.packed_words(n_rows, n_in)).expect("memory");
        let [x_there, gain_there] = [&x, &gain].map(|values| device.upload_f32(values).expect("memory"));
        device.pack(None, &x_there, Some(&gain_there), None, n_rows, n_in, &rows);
        let out = device.empty(n_rows * n_out).expect("memory");
        let normed = Activations::Packed { rows: &rows, epsilon: Some(1e-2) };
        let all = RowRange { first: 0, n: n_rows };
        device.product(plain(&matrix, &out), normed, all, ProductExtent::default());
        let got = device.read_f32(&out).expect("the device works");
        let mut weights = vec![0.0f32; n_in];
        for output in 0..n_out {
            packed_matrix.dequantize_row(output, &mut weights);
            for (row, x) in x.chunks_exact(n_in).enumerate() {
                let got = f64::from(got[row * n_out + output]);
                if row == 2 {
                    assert!(got.is_nan(), "{got}");
                    continue;
                }
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n_in as f64;
                let factor = 1.0 / (mean + 1e-2).sqrt();
                let terms = (x.iter().zip(&gain).zip(&weights)).map(|((x, gain), weight)| {
                    f64::from(*x) * f64::from(*gain) * f64::from(*weight) * factor
                });
                let (sum, size) = terms.fold((0.0, 0.0), |(s, z): (f64, f64), t| (s + t, z + t.abs()));
                assert!((got - sum).abs() <= 1e-5 * size.max(1e-3), "{got}, not {sum}, of {size}");
            }
        }
    }
}
