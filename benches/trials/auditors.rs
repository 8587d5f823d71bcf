//! Models as auditors load them, each once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tally::node::verify::{Model, load_models};
use tally_engine::KvType;

use crate::record::Record;

/// Loaded models by file and precision of their cache.
#[derive(Default)]
pub struct Auditors(HashMap<(PathBuf, bool), Vec<Model>>);

impl Auditors {
    /// The model of a record, loaded as `tally verify` does.
    pub fn of(&mut self, path: &Path, record: &Record) -> &mut [Model] {
        let key = (path.to_owned(), record.kv_type == KvType::F32);
        let load = || load_models(&[path.to_owned()], &record.blob).unwrap();
        self.0.entry(key).or_insert_with(load)
    }
}
