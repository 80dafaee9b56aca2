//! Linear layers on every device of this machine: the values of the file, and the same bits for any number of rows.

use crate::common::{devices, layout_of, random_file, values};
use gpu::{LinearLayer, Matrix, ProductExtent, RowRange};
use kernels::{DenseFormat, PackedMatrix, Pool, QuantizedFormat, WeightFormat};

fn formats() -> Vec<WeightFormat> {
    let quantized = QuantizedFormat::ALL.into_iter().map(WeightFormat::from);
    quantized.chain(DenseFormat::ALL.into_iter().map(WeightFormat::from)).collect()
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
            let (x_there, bias_there) =
                (device.upload_f32(&x).expect("memory"), device.upload_f32(&bias).expect("memory"));
            let out = device.empty(n_rows * n_out).expect("memory");
            let all = RowRange { first: 0, n: n_rows };
            device.product(&matrix, Some(&bias_there), &x_there, all, &out, ProductExtent::default());
            let got = device.read_f32(&out).expect("the device works");
            let mut weights = vec![0.0f32; n_in];
            for output in 0..n_out {
                packed.dequantize_row(output, &mut weights);
                for row in 0..n_rows {
                    let terms =
                        x[row * n_in..].iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (sum, size) =
                        terms.fold((f64::from(bias[output]), 0.0), |(s, z), t| (s + t, z + t.abs()));
                    let got = f64::from(got[row * n_out + output]);
                    let far = (got - sum).abs();
                    assert!(
                        far <= 1e-5 * size.max(1e-3),
                        "{format:?} on {device:?}: {got}, not {sum}, of {size}"
                    );
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
            let x = device.upload_f32(&x).expect("memory");
            let product = |first: usize, n: usize| {
                let out = device.empty(n * n_out).expect("memory");
                device.product(&matrix, None, &x, RowRange { first, n }, &out, ProductExtent::default());
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

/// Where a device does several products in one launch, they are to the bit what it does one after the other.
#[test]
fn products_in_one_launch_are_those_of_several() {
    let pool = Pool::new(1);
    let n_in = 512;
    let quantized = [QuantizedFormat::Q8_0, QuantizedFormat::Q4_K, QuantizedFormat::Q6_K];
    let formats = quantized.map(WeightFormat::from).into_iter().chain([DenseFormat::F16.into()]);
    for device in devices() {
        for format in formats.clone() {
            let upload = |n_out: usize| {
                let file = random_file(format, n_out, n_in);
                let packed = PackedMatrix::pack(format, n_out, n_in, &file, &pool).expect("finite");
                device.matrix(layout_of(format), n_out, n_in, packed.bytes()).expect("memory")
            };
            let matrices = [37, 64, 48, 64].map(upload);
            // How rows are cut is the same in all formats.
            let widths: &[usize] = if format == QuantizedFormat::Q4_K.into() { &[1, 11, 40] } else { &[11] };
            for &n_rows in widths {
                let x = device.upload_f32(&values(n_rows * n_in, 3)).expect("memory");
                let bias = device.upload_f32(&values(37, 4)).expect("memory");
                let empty = |matrix: &Matrix| device.empty(n_rows * matrix.n_out()).expect("memory");
                let (together, apart) = (matrices.each_ref().map(empty), matrices.each_ref().map(empty));
                let layer = |i: usize| LinearLayer {
                    matrix: &matrices[i],
                    bias: (i == 0).then_some(&bias),
                    out: &together[i],
                };
                device.products(&[layer(0), layer(1), layer(2)], &x, n_rows);
                let rows = RowRange { first: 0, n: n_rows };
                for (i, matrix) in matrices.iter().enumerate() {
                    let bias = (i == 0).then_some(&bias);
                    device.product(matrix, bias, &x, rows, &apart[i], ProductExtent::default());
                }
                let bits = |buffer| {
                    let numbers = device.read_f32(buffer).expect("the device works");
                    numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let what = || format!("{format:?}, {n_rows} rows on {device:?}");
                for i in 0..3 {
                    assert_eq!(bits(&together[i]), bits(&apart[i]), "matrix {i}, {}", what());
                }
                if device.swiglu_products([&matrices[1], &matrices[3]], &x, n_rows, &together[3]) {
                    device.swiglu(&apart[1], &apart[3], n_rows * 64);
                    assert_eq!(bits(&together[3]), bits(&apart[1]), "SwiGLU, {}", what());
                }
            }
        }
    }
}
