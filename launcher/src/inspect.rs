//! `launcher data inspect`: what data hold, before anything is trained on them.

use convoy_worker::{
    data,
    task::{self, TaskEntry},
};

use crate::{
    args::{InspectArgs, Places},
    cli::say,
    outcome::Failure,
    settings,
};

/// Prints what a data set holds.
///
/// # Errors
/// Data that cannot be read, or a task that they do not suit.
pub fn inspect(args: &InspectArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    let mut raw = settings::from_flags(args.into(), places)?;
    settings::suit_task(&mut raw)?;
    let config = raw.resolve(1)?;
    let data = data::open(&config, task::find(tasks, &config.task)?.wanted)?;
    let report = data::inspect(&*data, u32::MAX)?;
    if args.json {
        let text = serde_json::to_string_pretty(&report);
        return say(text.map_err(|problem| Failure::Failed(problem.to_string()))?);
    }
    say(report)
}
