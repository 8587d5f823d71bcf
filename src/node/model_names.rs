//! Names of the models that a ledger's tokens were made with.
//!
//! The ledger holds digests only; the node writes down the names it served under, so that reports
//! can show them later and without loading weights. Never a source for anything but reports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::proof;
use crate::session::ModelCard;
use crate::units::Hash32;

/// Names by `modelSpec`, in text.
type Names = BTreeMap<String, String>;

/// Adds the served models to the names beside the ledger. Blocks on a small file. A failure costs
/// a name in a report, so it is logged and not returned.
pub fn remember(ledger: &Path, cards: &[ModelCard]) {
    let path = beside(ledger);
    let mut names = read(&path);
    let before = names.clone();
    for card in cards {
        let spec = proof::model_spec(card.weights_sha256, &card.quantisation, &card.architecture);
        names.insert(spec.to_string(), card.name.clone());
    }
    if names == before {
        return;
    }
    let written = serde_json::to_vec_pretty(&names)
        .map_err(std::io::Error::other)
        .and_then(|text| super::small_file::write(&path, &text));
    if let Err(error) = written {
        tracing::warn!(%error, "names of models not written down");
    }
}

/// The names beside a ledger. Blocks on a small file; none where it cannot be read.
#[must_use]
pub fn recall(ledger: &Path) -> BTreeMap<Hash32, String> {
    let named = read(&beside(ledger)).into_iter();
    named.filter_map(|(spec, name)| Some((Hash32::parse(&spec)?, name))).collect()
}

fn beside(ledger: &Path) -> PathBuf {
    ledger.with_file_name("models.json")
}

fn read(path: &Path) -> Names {
    let text = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: &str, byte: u8) -> ModelCard {
        ModelCard {
            name: name.into(),
            context_length: 1,
            weights_sha256: Hash32::new([byte; 32]),
            tokenizer_sha256: Hash32::new([byte; 32]),
            quantisation: "Q4_1".into(),
            architecture: "llama".into(),
            engine_spec: 0,
        }
    }

    #[test]
    fn names_of_models_served_earlier_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger.sqlite3");
        assert!(recall(&ledger).is_empty());
        remember(&ledger, &[card("old", 1)]);
        remember(&ledger, &[card("new", 2)]);
        let names: Vec<_> = recall(&ledger).into_values().collect();
        assert_eq!(names.len(), 2);
        assert!(names.contains(&"old".to_owned()) && names.contains(&"new".to_owned()));
    }
}
