//! The consistency modes: one policy each, and the one place that decides whether a worker may take parameters and go
//! on, and when something is committed.
//!
//! Pure: a policy knows counts, not who or where. `server` and the coordinator ask it and carry out what it says.

use std::fmt;

use crate::config::{LocalSteps, Mode, Quorum, Staleness};

mod asp;
mod bsp;
mod local;
mod quorum;
mod ssp;

pub use asp::Asp;
pub use bsp::Bsp;
pub use local::Local;
pub use quorum::Partial;
pub use ssp::Ssp;

/// What is known of a commit's slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// How many are in, on every server.
    pub arrived: u32,
    /// How many there could be.
    pub slices: u32,
}

/// Where a worker stands among the others, in pushes that were committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Its own.
    pub own: u64,
    /// The least of all workers that are alive and not done.
    pub slowest: u64,
}

/// A consistency mode.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Whether what has arrived is enough to commit.
    fn may_commit(&self, tally: Tally) -> bool;

    /// Whether a worker may take the newest parameters and begin another step.
    fn may_go_on(&self, pace: Pace) -> bool;

    /// What the learning rate of a gradient is multiplied by, so many commits after its parameters.
    fn rate_factor(&self, _staleness: u64) -> f64 {
        1.0
    }
}

/// The policy of a mode.
pub fn of(mode: Mode) -> Box<dyn Policy> {
    match mode {
        Mode::Sync(Quorum::All) => Box::new(Bsp),
        Mode::Sync(Quorum::Slices(needed)) => Box::new(Partial { needed }),
        Mode::Async(staleness) => Box::new(Asp { staleness }),
        Mode::Ssp(bound, staleness) => Box::new(Ssp { bound, asp: Asp { staleness } }),
        Mode::Local(LocalSteps { .. }) => Box::new(Local),
    }
}

/// The learning rate is divided by the staleness, if it is more than one (Zhang et al., "Staleness-aware async-SGD for
/// distributed deep learning", 2016).
fn by_staleness(settings: Staleness, staleness: u64) -> f64 {
    if settings.scales_rate { 1.0 / staleness.max(1) as f64 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::layers::Layers;

    fn policy(text: &str) -> Box<dyn Policy> {
        let text = format!("workers = 4\n{text}");
        of(Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap().mode)
    }

    const MODES: [&str; 6] = [
        "",
        "[consistency]\nquorum = 3",
        "mode = 'async'",
        "mode = 'ssp'\n[consistency]\nmax_staleness = 2",
        "mode = 'ssp'\n[consistency]\nmax_staleness = 0",
        "mode = 'local'",
    ];

    /// Golden: with 0 to 4 of four slices in, whether to commit; 0 to 4 steps ahead of the slowest, whether to go on.
    #[test]
    fn decisions() {
        let golden = [
            "commit ....c  go on g....",
            "commit ...cc  go on g....",
            "commit .cccc  go on ggggg",
            "commit .cccc  go on ggg..",
            "commit .cccc  go on g....",
            "commit ....c  go on g....",
        ];
        for (mode, expected) in MODES.into_iter().zip(golden) {
            let policy = policy(mode);
            let commits = (0..5).map(|arrived| policy.may_commit(Tally { arrived, slices: 4 }));
            let commits: String = commits.map(|yes| if yes { 'c' } else { '.' }).collect();
            let goes_on = (0..5).map(|ahead| policy.may_go_on(Pace { own: 7 + ahead, slowest: 7 }));
            let goes_on: String = goes_on.map(|yes| if yes { 'g' } else { '.' }).collect();
            assert_eq!(format!("commit {commits}  go on {goes_on}"), expected, "{mode}");
        }
    }

    #[test]
    fn staleness_lowers_the_rate_where_it_is_asked_to() {
        let scaled = policy("mode = 'async'\n[consistency]\nstaleness_lr = true");
        assert_eq!([0, 1, 2, 4].map(|staleness| scaled.rate_factor(staleness)), [1.0, 1.0, 0.5, 0.25]);
        assert_eq!(policy("mode = 'async'").rate_factor(9), 1.0);
    }

    proptest! {
        /// Whoever is slowest may always go on, so no policy can bring a run to a standstill; and who may not go on
        /// now may not when further ahead.
        #[test]
        fn the_slowest_goes_on(mode in 0..MODES.len(), own in 0u64..1000, behind in 0u64..1000) {
            let policy = policy(MODES[mode]);
            let goes_on = |own, slowest| policy.may_go_on(Pace { own, slowest });
            prop_assert!(goes_on(own, own));
            let slowest = own.saturating_sub(behind);
            if !goes_on(own, slowest) {
                prop_assert!(!goes_on(own + 1, slowest));
            }
        }
    }
}
