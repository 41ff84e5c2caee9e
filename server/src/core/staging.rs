//! Pushes that wait for the word that commits them: who has sent how much, and what became of the last ones.
//!
//! A push is staged when all its blocks are here. Only then is the coordinator told, and it chooses only what every
//! shard has staged; so a worker that dies in the middle leaves nothing behind but what is discarded.

use std::collections::BTreeMap;

use convoy_proto::{
    fates::{Fate, Fates},
    ids::Step,
    messages::{ClusterView, DealtSlice, PushHeader, PushId},
};

use super::refusal::Refusal;

#[derive(Clone, Debug)]
struct Entry {
    header: PushHeader,
    /// Cells that have all of it.
    cells: usize,
    is_reported: bool,
}

/// The pushes of one shard.
#[derive(Clone, Debug, Default)]
pub struct Staging {
    waiting: BTreeMap<PushId, Entry>,
    fates: Fates,
}

impl Staging {
    /// Takes note of a push; false if it is over already.
    ///
    /// # Errors
    /// A push of the same name with other slices; nothing is noted.
    pub fn begin(&mut self, header: &PushHeader) -> Result<bool, Refusal> {
        let id = header.id();
        if self.fate(id) != Fate::Open {
            return Ok(false);
        }
        let entry =
            self.waiting.entry(id).or_insert_with(|| Entry { header: header.clone(), cells: 0, is_reported: false });
        if (entry.header.slices.as_slice(), entry.header.step) != (header.slices.as_slice(), header.step) {
            return Err(Refusal::Contradiction(id));
        }
        Ok(true)
    }

    /// Another cell has all of a push.
    pub fn filled(&mut self, id: PushId) {
        if let Some(entry) = self.waiting.get_mut(&id) {
            entry.cells += 1;
        }
    }

    /// The header of a push that so many cells have, once.
    pub fn report(&mut self, id: PushId, cells: usize) -> Option<PushHeader> {
        let entry = self.waiting.get_mut(&id).filter(|entry| entry.cells >= cells && !entry.is_reported)?;
        entry.is_reported = true;
        Some(entry.header.clone())
    }

    /// Whose gradient a push is, where slices are dealt out.
    pub fn dealt(&self, id: PushId) -> Option<DealtSlice> {
        self.waiting.get(&id)?.header.dealt
    }

    /// What became of a push.
    pub fn fate(&self, id: PushId) -> Fate {
        self.fates.of(id)
    }

    /// A push is over.
    pub fn end(&mut self, id: PushId, fate: Fate) {
        self.waiting.remove(&id);
        self.fates.end(id, fate);
    }

    /// Every push to this step or an earlier one is over; the step's own verdict says with what.
    pub fn close(&mut self, step: Step) {
        self.waiting.retain(|_, entry| entry.header.step > step);
    }

    /// Drops what processes that are gone have sent in part, and names it. What was reported is the coordinator's to
    /// drop: it may have been chosen already.
    pub fn purge(&mut self, view: &ClusterView) -> Vec<PushId> {
        let is_current = |id: &PushId| view.incarnations.get(id.worker.index()) == Some(&id.incarnation);
        let gone = self.waiting.iter().filter(|(id, entry)| !is_current(id) && !entry.is_reported);
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        gone.iter().for_each(|id| self.end(*id, Fate::Dropped));
        gone
    }
}
