//! A model in parts, as packages in a folder.

use std::io::Write;
use std::path::Path;

use engine::{CatalogEntry, ModelSource, Part};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

pub const VERSION: &str = "1.0.0";

/// The smallest file that is a model: the repository's tiny test model.
pub fn tiny_model() -> Vec<u8> {
    std::fs::read(concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf")).expect("the tiny model")
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The model that is `parts`, joined.
pub fn entry(parts: &[&[u8]]) -> CatalogEntry {
    let content = parts.concat();
    let part = |(idx, content): (usize, &&[u8])| Part {
        package: format!("sateen-test-part{}", idx + 1),
        version: VERSION.to_owned(),
        file: format!("sateen_test_part{}/data/part.bin", idx + 1),
        size_bytes: content.len() as u64,
        sha256: sha256(content),
    };
    CatalogEntry {
        id: "tiny".to_owned(),
        name: "Tiny".to_owned(),
        about: String::new(),
        parameters: String::new(),
        quantization: String::new(),
        licence: String::new(),
        size_bytes: content.len() as u64,
        sha256: Some(sha256(&content)),
        row_weights: 1,
        can_infill: true,
        source: ModelSource::Packages(parts.iter().enumerate().map(part).collect()),
    }
}

/// What is in a folder, by name.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Writes a wheel whose data file is `content`.
pub fn publish(wheels: &Path, n: usize, content: &[u8]) {
    let file = std::fs::File::create(wheels.join(format!("sateen_test_part{n}-{VERSION}-py3-none-any.whl")));
    let mut wheel = zip::ZipWriter::new(file.expect("a file"));
    let info = format!("sateen_test_part{n}-{VERSION}.dist-info");
    let members: [(String, Vec<u8>); 4] = [
        (format!("sateen_test_part{n}/data/part.bin"), content.to_vec()),
        (
            format!("{info}/METADATA"),
            format!("Metadata-Version: 2.1\nName: sateen-test-part{n}\nVersion: {VERSION}\n").into(),
        ),
        (
            format!("{info}/WHEEL"),
            b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_vec(),
        ),
        (format!("{info}/RECORD"), Vec::new()),
    ];
    for (name, bytes) in members {
        wheel.start_file(name, SimpleFileOptions::default()).expect("a member");
        wheel.write_all(&bytes).expect("writes");
    }
    wheel.finish().expect("a wheel");
}
