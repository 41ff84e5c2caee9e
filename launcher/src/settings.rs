//! From the command line, the environment and a file to one configuration. The only place that reads the environment.

use std::ffi::OsString;

use convoy_proto::{
    access,
    config::{Backend, RawConfig, layers::Layers},
};
use convoy_worker::data::{self, Source};

use crate::{
    args::{Pairs, Places, TrainArgs},
    outcome::Failure,
    rendezvous::{asked::VARIABLES, claims::Variables},
};

/// Gathers all layers.
///
/// # Errors
/// A file that cannot be read, or anything in a layer that does not fit.
pub fn gather(args: &TrainArgs, places: &Places) -> Result<RawConfig, Failure> {
    if let Some(conflict) = args.consistency.conflict() {
        return Err(Failure::Usage(conflict));
    }
    let mut layers = Layers::new();
    for path in &args.config {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|problem| Failure::Usage(format!("cannot read --config {origin}: {problem}")))?;
        layers = layers.toml(&origin, &text)?;
    }
    let mut variables = variables();
    // They say what machine this is, not what the run is.
    VARIABLES.iter().for_each(|name| drop(variables.remove(*name)));
    layers = layers.environment(variables)?;
    layers = layers.texts("--set", &assignments(&args.set)?)?;
    Ok(layers.texts("command line", &with_places(args.into(), places))?.raw()?)
}

/// The environment, as far as it is text.
pub fn variables() -> Variables {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// Whether a token, or a secret, comes from the environment.
pub fn has_token() -> bool {
    std::env::var_os(access::VARIABLE).is_some()
}

/// What the terminal calls itself.
pub fn terminal() -> Option<String> {
    std::env::var("TERM").ok()
}

/// A run's configuration, with what a command says changed.
///
/// # Errors
/// Anything that does not fit.
pub fn changed(run: &RawConfig, flags: Pairs) -> Result<RawConfig, Failure> {
    let text = toml::to_string(run).map_err(|problem| Failure::Usage(problem.to_string()))?;
    Ok(Layers::new().toml("the run", &text)?.texts("command line", &flags)?.raw()?)
}

/// What a command says that is no training: neither file nor environment count.
///
/// # Errors
/// Anything in it that does not fit.
pub fn from_flags(flags: Pairs, places: &Places) -> Result<RawConfig, Failure> {
    Ok(Layers::new().texts("command line", &with_places(flags, places))?.raw()?)
}

/// Fills in the task that suits the data where none is named, and gives the data's source.
///
/// # Errors
/// Data of a kind that there is not.
pub fn suit_task(raw: &mut RawConfig) -> Result<&'static Source, Failure> {
    let (source, _) = data::source(raw.data.as_deref().unwrap_or("digits"))?;
    raw.task.get_or_insert_with(|| source.task.into());
    Ok(source)
}

/// The backend that a word names, or the usual one without a word.
///
/// # Errors
/// A word that names none.
pub fn backend_or(word: Option<&String>, usual: Backend) -> Result<Backend, Failure> {
    match word {
        Some(word) => Ok(RawConfig { backend: Some(word.clone()), ..RawConfig::default() }.backend()?),
        None => Ok(usual),
    }
}

fn with_places(mut flags: Pairs, places: &Places) -> Pairs {
    flags.extend(places.run_dir.iter().map(|dir| ("run_dir".to_string(), dir.clone())));
    flags.extend(places.name.iter().map(|name| ("name".to_string(), name.clone())));
    flags
}

fn assignments(set: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_string(), value.trim().to_string())),
        None => Err(Failure::Usage(format!("--set {text}: must be KEY=VALUE, such as optimizer.lr=0.01"))),
    };
    set.iter().map(split).collect()
}
