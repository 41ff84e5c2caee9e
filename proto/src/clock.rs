//! How commits relate to steps.
//!
//! A [`Step`] counts commits: updates that the parameters have seen. People count steps of a whole batch. In synchronous
//! modes these are the same; asynchronously a step is as many commits as it has slices; with local steps a commit, which
//! is a round, makes many steps at once. Everything that people see, and every schedule, counts their steps.

use std::ops::Range;

use crate::{
    config::{Config, Mode},
    ids::Step,
};

/// The relation of commits and steps in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    steps: u64,
    commits_a_step: u64,
    steps_a_commit: u64,
}

impl Clock {
    /// The clock of a run of so many steps.
    pub fn new(config: &Config, steps: u64) -> Clock {
        let (commits_a_step, steps_a_commit) = match config.mode {
            Mode::Sync(_) => (1, 1),
            Mode::Async(_) | Mode::Ssp(..) => (config.slices.into(), 1),
            Mode::Local(local) => (1, local.steps.into()),
        };
        Clock { steps, commits_a_step, steps_a_commit }
    }

    /// The run's length in steps.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The run's length in commits.
    pub fn commits(&self) -> u64 {
        self.steps.saturating_mul(self.commits_a_step).div_ceil(self.steps_a_commit)
    }

    /// Commits in a step.
    pub fn commits_a_step(&self) -> u64 {
        self.commits_a_step
    }

    /// The steps that are whole after so many commits.
    pub fn steps_after(&self, commits: Step) -> u64 {
        (commits.0 / self.commits_a_step).saturating_mul(self.steps_a_commit).min(self.steps)
    }

    /// The steps that a commit makes, or is a part of.
    pub fn steps_of(&self, commit: Step) -> Range<u64> {
        let first = (commit.0 / self.commits_a_step).saturating_mul(self.steps_a_commit);
        first.min(self.steps)..first.saturating_add(self.steps_a_commit).min(self.steps)
    }

    /// Whether something that is done every so many steps is due after so many commits; 0 is never.
    pub fn is_due(&self, commits: Step, every: u64) -> bool {
        if every == 0 || commits.0 == 0 || !commits.0.is_multiple_of(self.commits_a_step) {
            return false;
        }
        let before = Step(commits.0 - self.commits_a_step);
        self.steps_after(commits) / every > self.steps_after(before) / every
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::layers::Layers;

    fn clock(text: &str, steps: u64) -> Clock {
        let config = Layers::new().toml("test", text).unwrap().raw().unwrap().resolve(1).unwrap();
        Clock::new(&config, steps)
    }

    /// Commits in all; the steps after each commit, a star where what comes every three steps is due.
    fn draw(text: &str, steps: u64) -> String {
        let clock = clock(text, steps);
        let after = |commit| {
            let star = if clock.is_due(Step(commit), 3) { "*" } else { "" };
            format!("{}{star}", clock.steps_after(Step(commit)))
        };
        let drawn: Vec<_> = (0..=clock.commits()).map(after).collect();
        format!("{}: {}", clock.commits(), drawn.join(" "))
    }

    #[test]
    fn clocks() {
        let golden = [
            ("", 7, "7: 0 1 2 3* 4 5 6* 7"),
            ("workers = 2\nmode = 'async'", 4, "8: 0 0 1 1 2 2 3* 3 4"),
            ("workers = 3\nmode = 'ssp'", 3, "9: 0 0 0 1 1 1 2 2 2 3*"),
            ("mode = 'local'\n[consistency]\nlocal_steps = 2", 7, "4: 0 2 4* 6* 7"),
            ("mode = 'local'\n[consistency]\nlocal_steps = 10", 7, "1: 0 7*"),
        ];
        for (text, steps, drawn) in golden {
            assert_eq!(draw(text, steps), drawn, "{text}");
        }
    }

    #[test]
    fn a_commit_makes_its_steps() {
        let local = clock("mode = 'local'\n[consistency]\nlocal_steps = 4", 10);
        let rounds: Vec<_> = (0..3).map(|round| local.steps_of(Step(round))).collect();
        assert_eq!(rounds, [0..4, 4..8, 8..10]);
        let dealt = clock("workers = 2\nmode = 'async'", 10);
        assert_eq!((dealt.steps_of(Step(4)), dealt.steps_of(Step(5))), (2..3, 2..3));
    }
}
