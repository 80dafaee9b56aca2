//! The SAT adapters that ship inside the program, found by the weights they were trained for.

use model::{AdapterSource, SatAdapter};

const BUILT_IN: [&[u8]; 2] = [
    include_bytes!("../../../models/sat-qwen2.5-coder-0.5b.safetensors"),
    include_bytes!("../../../models/sat-smollm2-135m.safetensors"),
];

/// The adapter for the weight file with this SHA-256.
pub(crate) fn built_in_for(sha256: &str) -> Option<AdapterSource> {
    let fits = |bytes: &&&[u8]| SatAdapter::base_of(bytes).as_deref() == Some(sha256);
    BUILT_IN.iter().find(fits).map(|bytes| AdapterSource::BuiltIn(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;

    #[test]
    fn the_catalogue_models_with_adapters_are_found() {
        let catalog = Catalog::built_in();
        let has_adapter = |id: &str| {
            let entry = catalog.find(id).expect("in the catalogue");
            entry.sha256.as_deref().and_then(built_in_for).is_some()
        };
        assert!(has_adapter("qwen2.5-coder-0.5b"));
        assert!(has_adapter("smollm2-135m"));
        assert!(!has_adapter("qwen2.5-coder-1.5b"));
        assert!(built_in_for("").is_none());
    }
}
