//! Which model this machine runs fast enough for someone who types.

use std::sync::Arc;

use model::gguf::TensorType;
use model::{Model, ModelConfig, RandomModelConfig, write_random_model};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::cost::PassTimer;
use crate::memory::{MemoryNeeded, available_memory};
use crate::prompt::NEAR_TOKENS;
use crate::{Catalog, CatalogEntry, EngineConfig, EngineError, InstalledModel, ModelLibrary};

/// Time to the first text behind a keystroke that people still feel as at once, in milliseconds.
pub const FIRST_TEXT_BUDGET_MS: f64 = 250.0;
/// Rows of the pass behind a keystroke in a line that was begun: what was typed, the marks, and the tokens right
/// behind the cursor.
const KEYSTROKE_ROWS: usize = NEAR_TOKENS + 8;
/// Rows before it: those of a long file.
const N_COMMITTED: usize = 1024;
/// Passes that are timed; the fastest counts, since whatever disturbed the others is not the model's.
const N_REPETITIONS: usize = 4;

/// How fast a model is on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct ModelPace {
    /// Name in commands and settings.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// From a keystroke in a line that was begun to the first text, in milliseconds; `None` when it was neither
    /// measured nor can be estimated.
    pub first_text_ms: Option<f64>,
    /// Whether that was measured on the model itself, or estimated from another.
    pub is_measured: bool,
    /// Whether it is installed.
    pub is_installed: bool,
    /// Whether it knows what stands behind the cursor.
    pub can_infill: bool,
    /// Whether there is memory for it.
    pub fits: bool,
    /// Weights that a row of a prompt goes through: the better of two models has more.
    #[ts(type = "number")]
    pub row_weights: u64,
}

/// The models, and which of them this machine should run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct Recommendation {
    /// The best model within `budget_ms`; where there is none, the fastest.
    pub best: Option<String>,
    /// Time to the first text that was allowed, in milliseconds.
    pub budget_ms: f64,
    /// All models that were looked at, those of the catalogue first.
    pub paces: Vec<ModelPace>,
}

/// Measures the installed models of `library`, estimates the others of `catalog`, and names the best whose first
/// text comes within `budget_ms`. Loads one model after the other: some seconds each.
///
/// # Errors
/// When the library cannot be read, or nothing can be measured.
pub fn recommend(
    library: &ModelLibrary,
    catalog: &Catalog,
    budget_ms: f64,
) -> Result<Recommendation, EngineError> {
    let installed = library.list()?.models;
    let mut paces = Vec::new();
    for model in &installed {
        paces.push(measured(model)?);
    }
    // What a weight costs: of the largest model that was measured, else of one that is made for it.
    let largest = paces.iter().filter(|pace| pace.is_measured).max_by_key(|pace| pace.row_weights);
    let ms_per_weight = match largest.and_then(|pace| Some(pace.first_text_ms? / pace.row_weights as f64)) {
        Some(ms) => ms,
        None => probe()?,
    };
    let is_missing = |entry: &&CatalogEntry| installed.iter().all(|model| model.id != entry.id);
    paces.extend(catalog.models.iter().filter(is_missing).map(|entry| estimated(entry, ms_per_weight)));
    let place = |id: &str| catalog.models.iter().position(|entry| entry.id == id).unwrap_or(usize::MAX);
    paces.sort_by(|a, b| place(&a.id).cmp(&place(&b.id)).then_with(|| a.id.cmp(&b.id)));
    Ok(Recommendation { best: best(&paces, budget_ms), budget_ms, paces })
}

/// Models that cannot fill in are worth less than any that can.
fn best(paces: &[ModelPace], budget_ms: f64) -> Option<String> {
    // Nobody who writes code is served by a model that cannot fill in, however quick, where another runs at all.
    let runs = |pace: &&ModelPace| pace.fits && pace.first_text_ms.is_some();
    let fills_in = paces.iter().filter(runs).any(|pace| pace.can_infill);
    let usable = || paces.iter().filter(runs).filter(|pace| pace.can_infill || !fills_in);
    let ms = |pace: &ModelPace| pace.first_text_ms.unwrap_or(f64::INFINITY);
    let quick = usable().filter(|pace| ms(pace) <= budget_ms);
    let quickest = || usable().min_by(|a, b| ms(a).total_cmp(&ms(b)));
    let best = quick.max_by_key(|pace| pace.row_weights);
    best.or_else(quickest).map(|pace| pace.id.clone())
}

fn measured(model: &InstalledModel) -> Result<ModelPace, EngineError> {
    let config = EngineConfig::of(model);
    let needed = MemoryNeeded::of(&config)?;
    let fits = available_memory().is_none_or(|available| needed.total_bytes <= available);
    let mut pace = ModelPace {
        id: model.id.clone(),
        name: model.name.clone(),
        first_text_ms: None,
        is_measured: false,
        is_installed: true,
        can_infill: model.can_infill,
        fits,
        row_weights: 0,
    };
    if fits {
        let loaded = Arc::new(Model::load(&ModelConfig {
            max_context: 2 * N_COMMITTED,
            ..ModelConfig::new(&model.path)
        })?);
        pace.row_weights = loaded.n_products_per_prompt_row() as u64;
        pace.first_text_ms = Some(first_text_ms(&loaded)?);
        pace.is_measured = true;
    }
    Ok(pace)
}

fn estimated(entry: &CatalogEntry, ms_per_weight: f64) -> ModelPace {
    let needed = MemoryNeeded::of_file(entry.size_bytes);
    ModelPace {
        id: entry.id.clone(),
        name: entry.name.clone(),
        first_text_ms: Some(ms_per_weight * entry.row_weights as f64),
        is_measured: false,
        is_installed: false,
        can_infill: entry.can_infill,
        fits: available_memory().is_none_or(|available| needed.total_bytes <= available),
        row_weights: entry.row_weights,
    }
}

/// Milliseconds of the pass behind a keystroke.
fn first_text_ms(model: &Arc<Model>) -> Result<f64, EngineError> {
    let mut timer = PassTimer::behind(model, N_COMMITTED)?;
    let mut fastest = f64::INFINITY;
    for _ in 0..N_REPETITIONS {
        fastest = fastest.min(timer.prompt(KEYSTROKE_ROWS)?);
    }
    Ok(fastest)
}

/// Milliseconds of a keystroke for each weight of a model of the usual type, by a small one of random weights: what
/// a pass costs does not depend on what they say.
fn probe() -> Result<f64, EngineError> {
    let folder = tempfile::tempdir().map_err(EngineError::io(std::env::temp_dir()))?;
    let path = folder.path().join("probe.gguf");
    let shape = RandomModelConfig {
        n_layers: 4,
        hidden: 1024,
        n_heads: 16,
        n_kv_heads: 4,
        feed_forward: 4096,
        vocabulary: 1024,
        context_length: 2 * N_COMMITTED,
        ..RandomModelConfig::llama_7b(TensorType::Q4_K)
    };
    write_random_model(&shape, &path)?;
    let model = Arc::new(Model::load(&ModelConfig::new(&path))?);
    Ok(first_text_ms(&model)? / model.n_products_per_prompt_row() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(id: &str, first_text_ms: f64, row_weights: u64) -> ModelPace {
        ModelPace {
            id: id.to_owned(),
            name: id.to_owned(),
            first_text_ms: Some(first_text_ms),
            is_measured: true,
            is_installed: true,
            can_infill: true,
            fits: true,
            row_weights,
        }
    }

    #[test]
    fn the_best_is_the_largest_that_is_quick_enough() {
        let small = pace("small", 70.0, 360);
        let large = pace("large", 200.0, 1300);
        let huge = pace("huge", 900.0, 7000);
        let plain = ModelPace { can_infill: false, ..pace("plain", 20.0, 2000) };
        let paces = [small.clone(), large.clone(), huge.clone(), plain];
        assert_eq!(best(&paces, 250.0).as_deref(), Some("large"));
        assert_eq!(best(&paces, 100.0).as_deref(), Some("small"));
        assert_eq!(best(&paces, 10.0).as_deref(), Some("small"), "nothing is quick enough");
        assert_eq!(best(&paces, 30.0).as_deref(), Some("small"), "only one that cannot fill in is");
        assert_eq!(best(&paces[3..], 30.0).as_deref(), Some("plain"), "there is no other");
        let full = [small, ModelPace { fits: false, ..large }, huge];
        assert_eq!(best(&full, 250.0).as_deref(), Some("small"), "no memory for it");
        assert_eq!(best(&[], 250.0), None);
    }

    #[test]
    fn a_machine_without_models_is_measured_all_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = ModelLibrary::new(folder.path());
        let catalog = Catalog::built_in();
        let recommendation = recommend(&library, &catalog, FIRST_TEXT_BUDGET_MS).expect("measures");
        let ids: Vec<&str> = recommendation.paces.iter().map(|pace| pace.id.as_str()).collect();
        assert_eq!(ids, catalog.models.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>());
        assert!(recommendation.paces.iter().all(|pace| pace.first_text_ms.is_some_and(|ms| ms > 0.0)));
        assert!(recommendation.best.is_some_and(|best| catalog.find(&best).is_ok()));
    }
}
