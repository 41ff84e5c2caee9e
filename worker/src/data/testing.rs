//! What tests of data sets share: opening by spec, as a run does.

use std::sync::Arc;

use convoy_proto::config::layers::Layers;

use super::{DataError, Dataset, Wanted, open};

/// Opens a spec for a kind of samples, with more configuration and a seed.
pub fn open_as(spec: &str, settings: &str, seed: u64, wanted: Wanted) -> Result<Arc<dyn Dataset>, DataError> {
    let text = format!("data = {spec:?}\nseed = {seed}\nrun_dir = '/tmp/convoy-data-tests'\n{settings}");
    let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
    open(&config, wanted)
}

/// Opens a spec for a task with classes, or text.
pub fn open_seeded(spec: &str, settings: &str, seed: u64) -> Result<Arc<dyn Dataset>, DataError> {
    open_as(spec, settings, seed, Wanted::Classes)
}

/// Opens a spec that is good.
pub fn open_spec(spec: &str, settings: &str) -> Arc<dyn Dataset> {
    open_seeded(spec, settings, 0).unwrap()
}

/// What a spec that is bad is told.
pub fn refusal(spec: &str, settings: &str) -> String {
    open_seeded(spec, settings, 0).err().expect("the data are refused").to_string()
}
