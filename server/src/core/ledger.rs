//! The ledger of the open step: which slices have announced what, and the verdict once it is known.

use std::{collections::BTreeSet, sync::Arc};

use convoy_proto::{
    ids::{SliceId, Step},
    messages::{Action, SliceHeader, Terms, Verdict},
    tree::SliceTree,
};

/// A header that contradicts the ledger.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum LedgerError {
    /// There is no such slice.
    #[error("slice {0} is none of the run's {1}")]
    UnknownSlice(SliceId, u32),
    /// A header says one thing of a slice.
    #[error("slice {0} comes twice")]
    Twice(SliceId),
    /// A slice is a pure function of the run: it cannot weigh this and that.
    #[error("slice {slice} weighs {now}, but weighed {before} when it was announced first")]
    Contradiction {
        /// The slice.
        slice: SliceId,
        /// Its first weight.
        before: f64,
        /// Its weight now.
        now: f64,
    },
}

/// The headers and the verdict of the open step.
#[derive(Clone, Debug)]
pub struct Ledger {
    tree: SliceTree,
    step: Step,
    headers: Vec<Option<SliceHeader>>,
    absent: Arc<BTreeSet<SliceId>>,
    /// What the coordinator chose, where it does.
    chosen: Option<Verdict>,
    verdict: Option<Arc<Verdict>>,
}

impl Ledger {
    /// An empty ledger for `step`.
    pub fn new(tree: SliceTree, step: Step) -> Ledger {
        let headers = vec![None; tree.slices() as usize];
        Ledger { tree, step, headers, absent: Arc::default(), chosen: None, verdict: None }
    }

    /// The step that is open.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The slices known to be empty.
    pub fn absent(&self) -> &Arc<BTreeSet<SliceId>> {
        &self.absent
    }

    /// The final verdict, once there is one.
    pub fn verdict(&self) -> Option<&Arc<Verdict>> {
        self.verdict.as_ref()
    }

    /// Notes headers; those that are there already must say the same weight.
    ///
    /// # Errors
    /// An unknown slice or a contradiction; then nothing is noted.
    pub fn record(&mut self, headers: &[SliceHeader]) -> Result<(), LedgerError> {
        let mut seen = BTreeSet::new();
        for header in headers {
            if !seen.insert(header.slice) {
                return Err(LedgerError::Twice(header.slice));
            }
            let noted = self.headers.get(header.slice.index());
            match noted.ok_or(LedgerError::UnknownSlice(header.slice, self.tree.slices()))? {
                Some(before) if before.weight != header.weight => {
                    return Err(LedgerError::Contradiction {
                        slice: header.slice,
                        before: before.weight,
                        now: header.weight,
                    });
                }
                _ => {}
            }
        }
        for header in headers {
            self.headers[header.slice.index()].get_or_insert(*header);
            if header.weight == 0.0 {
                Arc::make_mut(&mut self.absent).insert(header.slice);
            }
        }
        Ok(())
    }

    /// Takes over what the coordinator chose to commit: slices that are not in it are absent.
    pub fn choose(&mut self, chosen: Verdict) {
        let mut absent: BTreeSet<_> = self.tree.root().slices().collect();
        absent.retain(|slice| chosen.slices.binary_search(slice).is_err());
        (self.absent, self.chosen) = (Arc::new(absent), Some(chosen));
    }

    /// Whether the coordinator has chosen what to commit.
    pub fn is_chosen(&self) -> bool {
        self.chosen.is_some()
    }

    /// What the headers decide, once all are there, or what the coordinator chose.
    pub fn proposal(&self, terms: Terms) -> Option<Verdict> {
        if let Some(chosen) = &self.chosen {
            return Some(chosen.clone());
        }
        let headers: Option<Vec<_>> = self.headers.iter().copied().collect();
        Some(Verdict::from_headers(self.step, self.tree, &headers?, terms))
    }

    /// Sets the verdict. It stays, but for one that says more: the factors of tensors, or that the step is skipped.
    pub fn close(&mut self, verdict: Verdict) {
        let says_more = |old: &Arc<Verdict>| old.trust.is_empty() && old.action == Action::Apply;
        if self.verdict.as_ref().is_none_or(says_more) {
            self.verdict = Some(Arc::new(verdict));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };

    fn header(slice: u32, weight: f64) -> SliceHeader {
        SliceHeader { slice: SliceId(slice), weight, loss_sum: 1.0, finite: true }
    }

    fn is_present(ledger: &Ledger, slice: SliceId) -> bool {
        ledger.headers[slice.index()].is_some_and(|header| header.weight > 0.0)
    }

    #[test]
    fn proposes_when_all_slices_are_announced() {
        let mut ledger = Ledger::new(SliceTree::new(2), Step(3));
        ledger.record(&[header(1, 0.0)]).unwrap();
        assert_eq!((ledger.proposal(TERMS), is_present(&ledger, SliceId(1))), (None, false));
        ledger.record(&[header(1, 0.0), header(0, 2.0)]).unwrap();
        let verdict = ledger.proposal(TERMS).unwrap();
        assert_eq!((verdict.step, verdict.weight, verdict.slices), (Step(3), 2.0, vec![SliceId(0)]));
    }

    #[test]
    fn an_error_notes_nothing() {
        let mut ledger = Ledger::new(SliceTree::new(2), Step(0));
        assert_eq!(ledger.record(&[header(0, 1.0), header(2, 1.0)]), Err(LedgerError::UnknownSlice(SliceId(2), 2)));
        assert!(!is_present(&ledger, SliceId(0)));
        let twice = ledger.record(&[header(0, 1.0), header(0, 0.0)]);
        assert_eq!(twice, Err(LedgerError::Twice(SliceId(0))));
        ledger.record(&[header(0, 1.0)]).unwrap();
        let contradiction = LedgerError::Contradiction { slice: SliceId(0), before: 1.0, now: 2.0 };
        assert_eq!(ledger.record(&[header(1, 1.0), header(0, 2.0)]), Err(contradiction));
        assert!(!is_present(&ledger, SliceId(1)));
    }
}
