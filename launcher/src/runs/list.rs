//! `launcher list`: the runs below a root.

use serde_json::json;

use super::record::Record;
use crate::{
    args::{ListArgs, Places},
    cli,
    outcome::Failure,
    table::{object, table},
};

/// Prints a line for each run, the newest last.
///
/// # Errors
/// There is no such root.
pub fn list(args: ListArgs, places: &Places) -> Result<(), Failure> {
    let root = places.root();
    let runs = Record::all(root);
    let rows = runs.iter().map(Record::row);
    if args.json {
        return cli::say(json!(rows.map(object).collect::<Vec<_>>()));
    }
    if runs.is_empty() {
        return Err(Failure::Usage(format!("there are no runs in {root} (see --run-dir)")));
    }
    cli::print(table(&rows.collect::<Vec<_>>()))
}
