//! From commits to the steps that people see: in order, each once, whoever reports them first.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::Step,
    messages::{Action, Verdict},
};

/// The commits so far.
#[derive(Clone, Debug)]
pub struct History {
    commits_a_step: u64,
    /// The first commit that was not seen, and those after it that were.
    next: Step,
    ahead: BTreeMap<Step, Verdict>,
    /// The commits of the step in progress, and how many there were before those.
    open: Vec<Verdict>,
    before: u64,
}

impl History {
    /// No commit yet.
    pub fn new(commits_a_step: u64) -> History {
        History { commits_a_step, next: Step(0), ahead: BTreeMap::new(), open: Vec::new(), before: 0 }
    }

    /// How many commits were seen without a gap.
    pub fn commits(&self) -> Step {
        self.next
    }

    /// Goes on after so many commits, be it in the middle of a step.
    pub fn resume(&mut self, commits: Step) {
        (self.next, self.before) = (commits, commits.0 % self.commits_a_step);
    }

    /// Takes in a commit that may be known; gives the steps that are whole now, as one verdict each.
    pub fn add(&mut self, verdict: Verdict) -> Vec<Verdict> {
        if verdict.step >= self.next {
            self.ahead.entry(verdict.step).or_insert(verdict);
        }
        self.drain()
    }

    /// Counts the commits before this one as seen: who could have told of them is dead. Only where a commit is a step.
    pub fn skip_to(&mut self, commit: Step) -> Vec<Verdict> {
        self.next = self.next.max(commit);
        self.ahead.retain(|step, _| *step >= commit);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Verdict> {
        let mut whole = Vec::new();
        while let Some(verdict) = self.ahead.remove(&self.next) {
            self.next = self.next.next();
            self.open.push(verdict);
            if self.open.len() as u64 + self.before == self.commits_a_step {
                self.before = 0;
                whole.extend(join(std::mem::take(&mut self.open)));
            }
        }
        whole
    }
}

/// Several commits as one: sums of weights and losses, the last one's rate, the largest staleness.
fn join(commits: Vec<Verdict>) -> Option<Verdict> {
    let is_applied = commits.iter().any(|commit| commit.action == Action::Apply);
    commits.into_iter().reduce(|sum, next| Verdict {
        weight: sum.weight + next.weight,
        loss_sum: sum.loss_sum + next.loss_sum,
        staleness: sum.staleness.max(next.staleness),
        action: if is_applied { Action::Apply } else { Action::SkipNonFinite },
        ..next
    })
}

#[cfg(test)]
mod tests {
    use convoy_proto::{
        ids::SliceId,
        messages::{SliceHeader, Terms},
        tree::SliceTree,
    };

    use super::*;

    fn verdict(step: u64, loss_sum: f64) -> Verdict {
        let header = SliceHeader { slice: SliceId(0), weight: 2.0, loss_sum, finite: true };
        let terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };
        Verdict { staleness: step, ..Verdict::from_headers(Step(step), SliceTree::new(1), &[header], terms) }
    }

    #[test]
    fn steps_come_in_order_and_once() {
        let mut history = History::new(1);
        assert_eq!(history.add(verdict(1, 1.0)), []);
        assert_eq!(history.add(verdict(0, 1.0)).len(), 2);
        assert_eq!(history.add(verdict(1, 1.0)), []);
        assert_eq!(history.commits(), Step(2));
        assert_eq!(history.add(verdict(4, 1.0)), []);
        assert_eq!(history.skip_to(Step(3)), [], "one is missing still");
        assert_eq!((history.skip_to(Step(4)).len(), history.commits()), (1, Step(5)));
        assert_eq!(history.skip_to(Step(2)), []);
    }

    #[test]
    fn several_commits_make_a_step() {
        let mut history = History::new(2);
        assert_eq!(history.add(verdict(0, 1.0)), []);
        let step = history.add(verdict(1, 3.0)).pop().unwrap();
        assert_eq!((step.step, step.weight, step.loss(), step.staleness), (Step(1), 4.0, 1.0, 1));
    }
}
