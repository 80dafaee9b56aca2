//! CUDA without a GPU: NVIDIA's compiler is asked about every kernel, and a double of the driver (`double/`) runs its
//! source on the processor, a block's threads in turns. So what kernels compute there is tested, tensor cores included;
//! what differs is the order in which one instruction of theirs adds.

use std::path::{Path, PathBuf};
use std::process::Command;

use gpu::{
    Activations, Api, AttentionSizes, CacheNumber, Delta, Device, DeviceInfo, GatedLayer, LinearLayer,
    PassRows, ProductExtent, ROW_WORDS, RotaryTables, RotationConfig, RowRange,
};
use kernels::{DenseFormat, PackedMatrix, Pool, QuantizedFormat, WeightFormat};

use crate::common::{layout_of, random_file};

/// Where `make cuda` puts the compiler and its headers.
fn toolkit() -> PathBuf {
    let folder = std::env::var_os("SATEEN_CUDA").map(PathBuf::from).expect("SATEEN_CUDA: run `make test`");
    assert!(folder.join("lib/libnvrtc.so").exists(), "no compiler in {}: run `make cuda`", folder.display());
    folder
}

/// What becomes of a kernel.
#[derive(Clone, Copy, PartialEq)]
enum Kernels {
    /// It is compiled.
    Compile,
    /// It runs on the processor, too.
    Run,
}

/// Runs tests of this file's program in a process that finds the double.
fn on_the_double(kernels: Kernels, tests: &[&str]) {
    let toolkit = toolkit();
    let folder = tempfile::tempdir().expect("a folder");
    let sources = Path::new(env!("SATEEN_CHECKOUT")).join("crates/gpu/tests/kernels/double");
    for (source, library) in [("driver.c", "libcuda.so"), ("compiler.cpp", "libnvrtc.so")] {
        let compiler = if source.ends_with(".c") { "cc" } else { "c++" };
        let mut command = Command::new(compiler);
        command.args(["-O1", "-shared", "-fPIC", "-w", "-o"]).arg(folder.path().join(library));
        assert!(command.arg(sources.join(source)).arg("-ldl").status().expect("a compiler").success());
    }
    for header in ["cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "mma.h"] {
        std::fs::copy(sources.join("processor.hpp"), folder.path().join(header)).expect("a header");
    }
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    if kernels == Kernels::Compile {
        child.env("SATEEN_COMPILE_ONLY", "1");
    }
    let child = child
        .args(["--include-ignored", "--exact", "--test-threads", "1"])
        .args(tests)
        .env("LD_LIBRARY_PATH", folder.path())
        .env("SATEEN_DOUBLE", folder.path())
        .env("CUDA_PATH", &toolkit)
        .env("VK_DRIVER_FILES", "/dev/null")
        .output()
        .expect("this test runs");
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    assert!(output.contains(&format!("{} passed", tests.len())), "{output}");
}

#[test]
fn linear_layers_compute_on_cuda_what_they_do_elsewhere() {
    let tests = [
        "linear::products_are_those_of_the_files_values",
        "linear::products_in_one_launch_are_those_of_several",
        "linear::deltas_change_the_rows_that_have_them",
        "linear::norms_of_packed_rows_come_last",
    ];
    on_the_double(Kernels::Run, &tests);
}

#[test]
fn attention_computes_on_cuda_what_it_does_elsewhere() {
    let tests = [
        "attention::attention_is_the_weighted_mean_of_what_a_row_sees",
        "attention::attention_of_a_row_has_the_same_bits_beside_any_rows",
        "attention::attention_of_a_row_has_the_same_bits_whatever_is_committed",
        "attention::attention_packs_what_it_would_write",
    ];
    on_the_double(Kernels::Run, &tests);
}

#[test]
fn every_kernel_compiles_for_cuda() {
    on_the_double(Kernels::Compile, &["cuda::with_the_double"]);
}

/// Run by the test above.
#[test]
#[ignore = "needs the double of the driver"]
fn with_the_double() {
    let info = DeviceInfo::find("cuda:0").expect("the double");
    assert_eq!((info.api, info.name.as_str()), (Api::Cuda, "double"));
    gpu::keep_freed_memory(0).expect("the double has a pool");
    let device = Device::open(&info).expect("it opens");
    linear_layers(&device);
    rows(&device);
    for number in [CacheNumber::F32, CacheNumber::F16] {
        for (head_dim, halves) in [(6, false), (128, true), (256, true)] {
            attention(&device, number, head_dim, halves);
        }
    }
}

fn linear_layers(device: &Device) {
    let pool = Pool::new(1);
    let quantized = QuantizedFormat::ALL.into_iter().map(WeightFormat::from);
    let formats = quantized.chain(DenseFormat::ALL.into_iter().map(WeightFormat::from));
    let (n_out, n_in) = (64, 512);
    for format in formats {
        let packed = PackedMatrix::pack(format, n_out, n_in, &random_file(format, n_out, n_in), &pool);
        let packed = packed.expect("finite");
        let matrix = device.matrix(layout_of(format), n_out, n_in, packed.bytes()).expect("memory");
        let (bias, x) = (device.empty(n_out).expect("memory"), device.empty(40 * n_in).expect("memory"));
        let (out, b) = (device.empty(40 * n_out).expect("memory"), device.empty(4 * n_out).expect("memory"));
        let (nine, extent) = (RowRange { first: 0, n: 9 }, ProductExtent::default());
        let packs = matrix.takes_packed_rows();
        let packed = Activations::Packed { rows: &x, epsilon: None };
        let normed = Activations::Packed { rows: &x, epsilon: Some(1e-5) };
        let forms = if packs { vec![packed, normed] } else { vec![Activations::Plain(&x)] };
        let layer = LinearLayer { matrix: &matrix, bias: Some(&bias), delta: None, out: &out };
        let delta = Some(Delta { b: &b, inner: &b, rank: 4, first_row: 2 });
        for x in forms {
            device.product(layer, x, nine, extent);
            device.product(LinearLayer { delta, ..layer }, x, nine, extent);
            // How many rows are at hand is the same in all formats.
            if matches!(format, WeightFormat::Quantized(QuantizedFormat::Q4_K) | WeightFormat::Dense(_)) {
                for n in [1, 2, 4, 9, 40] {
                    let layer = LinearLayer { bias: None, ..layer };
                    device.product(layer, x, RowRange { first: 0, n }, extent);
                }
            }
            device.products(&[layer, layer, LinearLayer { bias: None, ..layer }], x, nine);
            device.products(&[LinearLayer { delta, ..layer }; 3], x, nine);
        }
        let blocks = LinearLayer { bias: None, ..layer };
        for delta in [None, delta] {
            let gated = [GatedLayer { matrix: &matrix, delta }; 2];
            assert_eq!(device.swiglu_products(gated, normed, 9, &x), packs);
            assert!(device.swiglu_products(gated, Activations::Plain(&x), 9, &out));
            let blocks = LinearLayer { delta, ..blocks };
            assert_eq!(device.residual_product(blocks, packed, 9, &bias, &x), packs);
        }
        device.product(LinearLayer { bias: None, ..layer }, Activations::Plain(&x), nine, extent);
        let plan = device.upload_u32(&[0; ROW_WORDS as usize]).expect("memory");
        device.embed(&matrix, Some(&x), &plan, 1, &x);
        // A kernel that does not compile fails what is read next.
        device.read_f32(&out).expect("kernels of linear layers");
    }
    device.read_bandwidth().expect("the kernel that reads");
}

fn rows(device: &Device) {
    let n = 256;
    let [a, b, out] = [(); 3].map(|()| device.empty(n).expect("memory"));
    let selection = device.upload_u32(&[0]).expect("memory");
    for residual in [None, Some(&b)] {
        for selection in [None, Some((&selection, 0))] {
            device.normalise(residual, &a, &b, 1e-5, selection, 1, &out);
            for gain in [None, Some(&b)] {
                device.pack(residual, &a, gain, selection, 1, n, &out);
            }
        }
    }
    let weight = device.empty(64).expect("memory");
    device.normalise_heads(&a, 4, &weight, 1e-5);
    device.swiglu(&a, &b, n);
    device.scale(&a, 2.0, n);
    let ranking = device.ranking(1, n).expect("memory");
    device.rank(&a, n, n, RowRange { first: 0, n: 1 }, &ranking);
    device.read_f32(&ranking.logits).expect("kernels of rows");
}

fn attention(device: &Device, number: CacheNumber, head_dim: usize, halves: bool) {
    let (n_heads, n_kv_heads, n_rows) = (4, 2, 4);
    let (width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
    let mut cache = device.cache(1, 1000, kv_width, number).expect("memory");
    let other = device.cache(1, 1000, kv_width, number).expect("memory");
    let [queries, keys, values, rotated, out] =
        [width, kv_width, kv_width, width, width].map(|width| device.empty(n_rows * width).expect("memory"));
    let rope_dim = head_dim as u32;
    let tables = RotaryTables {
        config: RotationConfig { head_dim: rope_dim, rope_dim, halves },
        cos: device.empty(8 * head_dim / 2).expect("memory"),
        sin: device.empty(8 * head_dim / 2).expect("memory"),
    };
    let plan = device.upload_u32(&[0; 4 * ROW_WORDS as usize]).expect("memory");
    let pass = PassRows { plan: &plan, n_rows, n_committed: 2 };
    device.set_aside(&mut cache, 2..6).expect("memory");
    for is_aside in [false, true] {
        let sources = [&queries, &keys, &values];
        device.rotate_and_store(pass, sources, width, &tables, &rotated, &cache, 0, is_aside);
    }
    device.turn(&cache, &tables, 4);
    device.copy_prefix(&other, 4, &cache);
    device.compact(&cache, 2, &[1, 3]).expect("memory");
    let sizes = AttentionSizes { n_heads, n_kv_heads, head_dim, scale: 1.0 };
    // A row alone, and rows that share loads; one chunk, and several.
    for (n_rows, n_committed) in [(1, 2), (2, 2), (n_rows, 2), (1, 900)] {
        let pass = PassRows { n_rows, n_committed, ..pass };
        let room = device.empty(device.attention_room(sizes, n_rows, n_committed)).expect("memory");
        device.attend(pass, sizes, &rotated, &cache, 0, &room, &out, None);
        if width.is_multiple_of(32) {
            let packed = device.empty(device.packed_words(n_rows, width)).expect("memory");
            device.attend(pass, sizes, &rotated, &cache, 0, &room, &out, Some(&packed));
        }
    }
    device.read_f32(&out).expect("kernels of attention");
}
