//! Rules of the repository that no compiler checks.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("SATEEN_CHECKOUT"))
}

/// Which of our crates each of our crates names in its `[dependencies]`.
#[test]
fn dependencies_point_one_way() {
    let allowed: [(&str, &[&str]); 13] = [
        ("crates/kernels", &[]),
        ("crates/gpu", &[]),
        ("crates/speculate", &[]),
        ("crates/model", &["sateen-gpu", "sateen-kernels", "sateen-speculate"]),
        ("crates/engine", &["sateen-model", "sateen-speculate"]),
        ("crates/clipboard", &[]),
        ("crates/documents", &[]),
        ("crates/history", &["sateen-engine"]),
        ("crates/portal", &[]),
        ("crates/settings", &["sateen-engine"]),
        (
            "crates/application",
            &["sateen-clipboard", "sateen-documents", "sateen-engine", "sateen-history", "sateen-settings"],
        ),
        ("crates/convert", &["sateen-model"]),
        ("crates/train", &["sateen-engine", "sateen-gpu", "sateen-model", "sateen-speculate"]),
    ];
    for (folder, expected) in allowed {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let dependencies = manifest.split_once("[dependencies]").expect("dependencies").1;
        let dependencies = dependencies.split("\n[").next().expect("a part");
        let ours: Vec<&str> = dependencies
            .lines()
            .filter_map(|line| line.split(['.', ' ', '=']).next())
            .filter(|name| name.starts_with("sateen-"))
            .collect();
        assert_eq!(ours, expected, "{folder}");
    }
}

fn tracked_files() -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files"]).current_dir(root()).output().expect("git");
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(|line| root().join(line)).collect()
}

/// What needs no window is not in the windows' shell.
#[test]
fn the_shell_is_thin() {
    let files = tracked_files();
    let shell = files.iter().filter(|path| path.starts_with(root().join("src-tauri/src")));
    let n_lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    let n_lines: usize = shell.map(n_lines).sum();
    assert!((1..=1500).contains(&n_lines), "src-tauri has {n_lines} lines");
}

/// Every crate but those of kernels has the compiler refuse `unsafe`, and nothing of it loosens a lint on that.
#[test]
fn unsafe_code_stands_where_it_is_allowed() {
    let is_root = |path: &&PathBuf| {
        let name = path.file_name().is_some_and(|name| name == "lib.rs" || name == "main.rs");
        name && path.parent().is_some_and(|folder| folder.ends_with("src"))
    };
    let files = tracked_files();
    let roots: Vec<&PathBuf> = files.iter().filter(is_root).collect();
    assert!(roots.len() >= 6, "{roots:?}");
    for path in roots {
        let text = std::fs::read_to_string(path).expect("it is there");
        let is_kernel = ["crates/kernels", "crates/gpu"].iter().any(|of| path.starts_with(root().join(of)));
        assert_eq!(text.contains("#![forbid(unsafe_code)]"), !is_kernel, "{}", path.display());
    }
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let loosened = ["allow(clippy::undocumented", "_unsafe_blocks)"].concat();
        assert!(!text.contains(&loosened), "{}", path.display());
    }
}

/// Files stay of a size that one can read.
#[test]
fn files_are_readable() {
    let is_source =
        |path: &&PathBuf| path.extension().is_some_and(|e| ["rs", "ts", "svelte"].iter().any(|x| e == *x));
    for path in tracked_files().iter().filter(is_source) {
        let n_lines = std::fs::read_to_string(path).unwrap_or_default().lines().count();
        assert!(n_lines <= 700, "{} has {n_lines} lines", path.display());
    }
    let n_lines =
        std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there").lines().count();
    assert!(n_lines <= 250, "ARCHITECTURE.md has {n_lines} lines");
}

/// A program built in one checkout is not taken for another's.
#[test]
fn files_are_named_by_a_checkout_that_cargo_watches() {
    let unwatched = ["env!(\"CARGO_MANIFEST", "_DIR\")"].concat();
    for path in tracked_files().iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(!text.contains(&unwatched), "{} wants SATEEN_CHECKOUT", path.display());
    }
}
