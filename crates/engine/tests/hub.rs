//! Installing models from a model hub on the loopback.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::hub::{self, Fault, Hub};
use common::packages::{self, sha256, tiny_model};
use engine::{
    CancelToken, CatalogEntry, EngineError, ErrorCode, HubClient, InstallProgress, InstallStage,
    InstalledModel, ModelLibrary, ModelSources, install,
};

struct Workbench {
    _folder: tempfile::TempDir,
    library: ModelLibrary,
}

impl Workbench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let library = ModelLibrary::new(folder.path().join("models"));
        Self { _folder: folder, library }
    }

    fn install(
        &self,
        hub: &Hub,
        entry: &CatalogEntry,
    ) -> (Result<Option<InstalledModel>, EngineError>, Vec<InstallProgress>) {
        let mut progress = Vec::new();
        let cancel = CancelToken::default();
        let result = install(entry, &self.library, &sources(hub), &cancel, &mut |p| progress.push(p));
        (result, progress)
    }

    fn left_behind(&self) -> Vec<String> {
        packages::names_in(self.library.folder())
    }
}

fn sources(hub: &Hub) -> ModelSources {
    let hub = HubClient::new(Some(hub.endpoint.clone())).with_patience(Duration::from_secs(2));
    ModelSources { packages: None, hub }
}

fn good_hub(fault: Fault) -> Hub {
    let content = tiny_model();
    let hash = sha256(&content);
    Hub::new(content, hash, fault)
}

#[test]
fn a_file_of_the_hub_is_fetched_and_checked() {
    let (workbench, hub) = (Workbench::new(), good_hub(Fault::None));
    let (result, progress) = workbench.install(&hub, &hub::entry());
    let model = result.expect("installs").expect("was not cancelled");
    assert_eq!(std::fs::read(&model.path).expect("reads"), tiny_model());
    assert_eq!(model.sha256, sha256(&tiny_model()));
    assert_eq!(workbench.left_behind(), ["tiny.gguf", "tiny.json"]);
    let size = tiny_model().len() as u64;
    let last = progress.last().expect("progress");
    assert_eq!((last.stage, last.n_bytes, last.total_bytes), (InstallStage::Checking, size, size));
    assert!(progress.is_sorted_by_key(|progress| progress.n_bytes));
}

/// Whatever breaks, what has come is kept, and each connection goes on where the one before broke.
#[test]
fn a_connection_that_breaks_is_made_again() {
    let (workbench, hub) = (Workbench::new(), good_hub(Fault::BreaksAfter(50_000)));
    let (result, _) = workbench.install(&hub, &hub::entry());
    let model = result.expect("installs").expect("was not cancelled");
    assert_eq!(std::fs::read(&model.path).expect("reads"), tiny_model());
    let asked = hub.asked.lock().expect("no panic").clone();
    assert!(asked.len() > 2 && asked.is_sorted() && asked[1] > 0, "{asked:?}");
}

#[test]
fn what_was_paused_goes_on_where_it_stopped() {
    let (workbench, hub) = (Workbench::new(), good_hub(Fault::BreaksAfter(50_000)));
    let cancel = CancelToken::default();
    let result = install(&hub::entry(), &workbench.library, &sources(&hub), &cancel, &mut |progress| {
        if progress.n_bytes > 0 {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Ok(None)));
    let on_disk = std::fs::metadata(workbench.library.folder().join("tiny.gguf.part")).expect("kept").len();
    assert!(on_disk > 0);
    hub.set_fault(Fault::None);
    let (result, progress) = workbench.install(&hub, &hub::entry());
    assert!(result.expect("goes on").is_some());
    assert_eq!(progress[0].n_bytes, on_disk);
    assert_eq!(hub.asked.lock().expect("no panic").last(), Some(&(on_disk as usize)));
    assert_eq!(workbench.left_behind(), ["tiny.gguf", "tiny.json"]);
}

/// Bytes of a file that is not the hub's any more are not taken for the beginning of the one it has now.
#[test]
fn a_file_that_changed_on_the_hub_is_fetched_anew() {
    let workbench = Workbench::new();
    let mut other = tiny_model();
    other[70_000] ^= 1;
    let before = Hub::new(other.clone(), sha256(&other), Fault::BreaksAfter(90_000));
    let cancel = CancelToken::default();
    let result = install(&hub::entry(), &workbench.library, &sources(&before), &cancel, &mut |progress| {
        if progress.n_bytes >= 80_000 {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Ok(None)));
    let (result, _) = workbench.install(&good_hub(Fault::None), &hub::entry());
    let model = result.expect("installs").expect("was not cancelled");
    assert_eq!(std::fs::read(model.path).expect("reads"), tiny_model());
}

#[test]
fn a_hub_without_ranges_begins_anew() {
    let (workbench, hub) = (Workbench::new(), good_hub(Fault::BreaksAfter(50_000)));
    let cancel = CancelToken::default();
    let paused = install(&hub::entry(), &workbench.library, &sources(&hub), &cancel, &mut |progress| {
        if progress.n_bytes > 0 {
            cancel.cancel();
        }
    });
    assert!(matches!(paused, Ok(None)));
    hub.set_fault(Fault::KnowsNoRanges);
    let (result, _) = workbench.install(&hub, &hub::entry());
    let model = result.expect("installs").expect("was not cancelled");
    assert_eq!(std::fs::read(model.path).expect("reads"), tiny_model());
}

#[test]
fn what_is_not_the_file_leaves_nothing() {
    let content = tiny_model();
    let hash = sha256(&content);
    let mut changed = content.clone();
    changed[5000] ^= 1;
    let longer = [&content[..], &[0; 3]].concat();
    let cases: [(&str, Hub, &str); 5] = [
        ("changed", Hub::new(changed, hash.clone(), Fault::None), "must have the SHA-256"),
        ("longer", Hub::new(longer, hash.clone(), Fault::None), "must have the SHA-256"),
        ("missing", good_hub(Fault::Missing), "404"),
        ("no hash", good_hub(Fault::SaysNoHash), "no SHA-256"),
        ("nothing comes", good_hub(Fault::BreaksAfter(0)), "tiny.gguf of sateen-test/tiny-GGUF"),
    ];
    for (name, hub, message) in cases {
        let workbench = Workbench::new();
        let error = workbench.install(&hub, &hub::entry()).0.expect_err(name);
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert_eq!(error.code(), ErrorCode::DownloadFailed, "{name}");
        assert_eq!(workbench.left_behind(), Vec::<String>::new(), "{name}");
    }
    // A hash that the catalogue knows is not the hub's to say.
    let (workbench, hub) = (Workbench::new(), good_hub(Fault::None));
    let entry = CatalogEntry { sha256: Some(sha256(b"another")), ..hub::entry() };
    let error = workbench.install(&hub, &entry).0.expect_err("another file");
    assert!(matches!(error, EngineError::WrongHash { .. }), "{error}");
    assert!(hub.asked.lock().expect("no panic").is_empty(), "nothing of it was fetched");
}

#[test]
fn a_hub_that_says_nothing_is_left() {
    let (workbench, hub) = (Workbench::new(), good_hub(Fault::IsSilent));
    let error = workbench.install(&hub, &hub::entry()).0.expect_err("silence");
    assert!(error.to_string().contains("nothing has come for 2 s"), "{error}");
    assert!(hub.n_connections.load(Ordering::SeqCst) > 0);
}
