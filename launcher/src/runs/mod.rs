//! Runs as they are on disk: listed, shown, compared, and what their processes said.
//!
//! No process is asked: what a run leaves behind is enough, also of one whose launcher was killed.

mod compare;
mod curves;
mod list;
mod logs;
pub mod record;
mod show;

pub use compare::compare;
pub use list::list;
pub use logs::logs;
pub use show::show;
