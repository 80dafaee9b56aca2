//! The catalogue: which models can be installed, and where they come from.

use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::EngineError;

/// All models that can be installed by name. The first is the default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// The models.
    #[serde(rename = "model")]
    pub models: Vec<CatalogEntry>,
}

/// A model that can be installed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub struct CatalogEntry {
    /// Name in commands and settings.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// One line on what it is good for.
    pub about: String,
    /// Number of weights, in words.
    pub parameters: String,
    /// Quantization of the file.
    pub quantization: String,
    /// Weights that a row of a prompt goes through; how fast the model is follows from it.
    #[ts(type = "number")]
    pub row_weights: u64,
    /// Whether it can fill in, or only go on.
    pub can_infill: bool,
    /// Licence of the weights.
    pub licence: String,
    /// Size of the file.
    #[ts(type = "number")]
    pub size_bytes: u64,
    /// SHA-256 of the file, in hexadecimal. Without one, the file is checked against the hash that the hub announces.
    pub sha256: Option<String>,
    /// Where the file comes from.
    pub source: ModelSource,
}

/// Where a model file comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum ModelSource {
    /// Packages that carry the file, in the order in which their parts are joined.
    Packages(Vec<Part>),
    /// A file of the model hub.
    Hub(HubFile),
}

/// A file of the model hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub struct HubFile {
    /// Owner and name of the repository.
    pub repository: String,
    /// A commit, or a branch.
    pub revision: String,
    /// Its path in the repository.
    pub file: String,
}

/// A part of a model file inside a Python package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub struct Part {
    /// Name of the package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The file inside its wheel.
    pub file: String,
    /// Its size.
    #[ts(type = "number")]
    pub size_bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Catalog {
    /// The catalogue of this program.
    pub fn built_in() -> Self {
        Self::parse(include_str!("../../../models/catalog.toml"))
            .expect("invariant: the catalogue in the repository parses, by a test")
    }

    /// Reads a catalogue.
    ///
    /// # Errors
    /// [`EngineError::Catalog`].
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        Ok(toml::from_str(text)?)
    }

    /// The model that is installed when none is named.
    pub fn default_model(&self) -> &CatalogEntry {
        &self.models[0]
    }

    /// The model with this id.
    ///
    /// # Errors
    /// [`EngineError::NotInCatalog`].
    pub fn find(&self, id: &str) -> Result<&CatalogEntry, EngineError> {
        self.models.iter().find(|entry| entry.id == id).ok_or_else(|| EngineError::NotInCatalog {
            id: id.to_owned(),
            known: self.models.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_catalogue_is_sound() {
        let catalog = Catalog::built_in();
        assert_eq!(catalog.default_model().id, "qwen2.5-coder-0.5b");
        for entry in &catalog.models {
            assert!(crate::library::check_id(&entry.id).is_ok());
            assert!(entry.size_bytes > 0 && entry.row_weights > 0, "{}", entry.id);
            assert!(entry.sha256.as_ref().is_none_or(|sha256| sha256.len() == 64), "{}", entry.id);
            match &entry.source {
                ModelSource::Packages(parts) => {
                    assert!(!parts.is_empty() && entry.sha256.is_some(), "{}", entry.id);
                    assert_eq!(parts.iter().map(|part| part.size_bytes).sum::<u64>(), entry.size_bytes);
                    assert!(parts.iter().all(|part| part.sha256.len() == 64), "{}", entry.id);
                }
                ModelSource::Hub(HubFile { repository, revision, file }) => {
                    assert_eq!(repository.split('/').count(), 2, "{}", entry.id);
                    assert!(!revision.is_empty() && file.ends_with(".gguf"), "{}", entry.id);
                }
            }
        }
    }

    #[test]
    fn unknown_models_and_fields_are_refused() {
        let error = Catalog::built_in().find("gpt-5").expect_err("not in the catalogue").to_string();
        assert!(error.contains("qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, smollm2-135m"), "{error}");
        assert!(Catalog::parse("[[model]]\nid = \"x\"\nurl = \"y\"").is_err());
    }
}
