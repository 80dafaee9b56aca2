//! Real models and prompts, as `make models` fetches them.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod hub;
pub mod packages;

use std::io::Read;
use std::path::PathBuf;

use engine::{EngineConfig, InstalledModel, ModelLibrary};

pub fn installed(id: &str) -> InstalledModel {
    let library = ModelLibrary::of_user().expect("a data folder");
    library.find(id).unwrap_or_else(|error| panic!("{error}: run `make models` once"))
}

/// An engine that neither reads nor writes what was learnt in the user's folder.
pub fn config(id: &str) -> EngineConfig {
    EngineConfig { max_context: 1024, learned: None, ..EngineConfig::of(&installed(id)) }
}

/// The prompts of HumanEval, in order.
pub fn human_eval() -> Vec<String> {
    let path = match std::env::var_os("SATEEN_HUMAN_EVAL") {
        Some(path) => PathBuf::from(path),
        None => {
            let folders = directories::ProjectDirs::from("", "", "sateen").expect("a home folder");
            folders.cache_dir().join("HumanEval.jsonl.gz")
        }
    };
    let file = std::fs::File::open(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run `make models` once", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzipped text");
    let prompt = |line: &str| {
        let problem: serde_json::Value = serde_json::from_str(line).expect("JSON");
        problem["prompt"].as_str().expect("a prompt").to_owned()
    };
    text.lines().map(prompt).collect()
}
