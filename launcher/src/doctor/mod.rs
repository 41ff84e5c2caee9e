//! `launcher doctor`: what this machine has for training, and what would stand in the way; or, with `--rank`, which place
//! this launcher has among others.

use serde::Serialize;
use serde_json::json;

use crate::{
    args::{DoctorArgs, Places},
    cli,
    outcome::Failure,
};

mod devices;
mod machine;
mod rank;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// A person may want to know.
    Note,
    /// In the way of training.
    Bad,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it, if anything.
    pub advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: State::Good, found: found.into(), advice: None }
    }

    fn note(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, state: State::Note, found: found.into(), advice: Some(advice.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, state: State::Bad, found: found.into(), advice: Some(advice.into()) }
    }

    fn line(&self) -> String {
        let mark = match self.state {
            State::Good => "ok  ",
            State::Note => "note",
            State::Bad => "BAD ",
        };
        let advice = self.advice.as_ref().map(|advice| format!("\n{:24}-> {advice}", "")).unwrap_or_default();
        format!("{mark}  {:<16}  {}{advice}\n", self.what, self.found)
    }
}

/// Looks at the machine, or at this launcher's place.
///
/// # Errors
/// Something is in the way of training; everything is printed nevertheless.
pub fn doctor(args: &DoctorArgs, places: &Places) -> Result<(), Failure> {
    if args.rank {
        return rank::doctor(args, places);
    }
    let mut findings = Vec::new();
    let mut tell = |finding: Finding| -> Result<(), Failure> {
        if !args.json {
            cli::print(finding.line())?;
        }
        findings.push(finding);
        Ok(())
    };
    machine::processor().into_iter().try_for_each(&mut tell)?;
    devices::look().into_iter().try_for_each(&mut tell)?;
    machine::limits().into_iter().try_for_each(&mut tell)?;
    machine::network().into_iter().try_for_each(&mut tell)?;
    machine::disk(std::path::Path::new(places.root())).into_iter().try_for_each(&mut tell)?;
    machine::clock().into_iter().try_for_each(&mut tell)?;
    if args.json {
        cli::say(json!(findings))?;
    }
    let bad: Vec<_> =
        findings.iter().filter(|finding| finding.state == State::Bad).map(|finding| finding.what).collect();
    match bad.as_slice() {
        [] => Ok(()),
        bad => Err(Failure::Environment(format!("in the way of training: {}", bad.join(", ")))),
    }
}
