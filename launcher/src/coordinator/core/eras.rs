//! Eras: where each begins, and how one ends because a server died. Checkpoints, which make that cheap.

use std::collections::{BTreeMap, BTreeSet};

use convoy_proto::{
    ids::{Era, Member, ServerId, Step, WorkerId},
    messages::{Phase, ShardReport, Since},
};

use super::{
    super::{
        engine::Engine,
        records::Totals,
        refusal::Refusal,
        saves::{SavedSet, Standing},
    },
    Cluster, Event,
    copies::Plan,
};

/// Where an era begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The directory of the checkpoint that servers take; without, a worker sets the initial parameters.
    pub restore: Option<String>,
    /// How many commits were made.
    pub commits: Step,
    /// What else the coordinator knew then.
    pub standing: Standing,
}

impl Default for Origin {
    /// The beginning of a run.
    fn default() -> Self {
        Origin { restore: None, commits: Step(0), standing: Standing::default() }
    }
}

/// What happened to a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum SaveEvent {
    /// All its parts are written.
    Written(SavedSet),
    /// A server could not write its part.
    Failed(Member, Step, String),
    /// A server was beyond the commit already; this one was open.
    TooLate(Step, Step),
}

impl Cluster {
    /// The era.
    pub fn era(&self) -> Era {
        self.era
    }

    /// Begins in an era from where another launcher left off, whose workers did so much.
    pub fn resumed(mut self, (era, origin): (Era, Origin), earlier: BTreeMap<u32, Totals>) -> Cluster {
        (self.era, self.earlier) = (era, earlier);
        self.take_up(origin);
        self
    }

    /// Whether the parameters are not whole: a new era has to begin.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Ends the era: whatever belongs to it changes nothing from now on.
    pub fn end_era(&mut self) {
        self.era = Era(self.era.0 + 1);
        self.changes += 1;
        self.phase = Phase::Gathering;
        (self.is_broken, self.initialiser) = (true, None);
        // In the next one, whoever is there is there from the beginning.
        for server in self.servers.iter_mut().flatten() {
            (server.since, server.is_filled) = (Since::Beginning, false);
        }
    }

    /// Begins the era that follows from `origin`, when all are there.
    pub fn roll_back(&mut self, origin: Origin) -> Option<Event> {
        self.take_up(origin);
        self.gather()
    }

    fn take_up(&mut self, origin: Origin) {
        self.engine = Engine::new(&self.config, &self.reference).in_place_of(&self.engine, &origin);
        for worker in self.workers.iter_mut().flatten() {
            worker.at = origin.commits;
            (worker.pushed, worker.finished) = (None, None);
            if worker.is_alive {
                self.engine.join(WorkerId(worker.member.rank));
            }
        }
        self.reviewed = Step(origin.commits.0.saturating_sub(1));
        (self.stop_at, self.is_broken) = (None, false);
        self.restored = BTreeSet::new();
        self.copying = Plan::default();
        self.tell_engine();
        self.origin = origin;
    }

    /// Goes on to set the parameters when all are there.
    pub fn gather(&mut self) -> Option<Event> {
        let has_workers = self.has_begun || self.workers.iter().all(Option::is_some);
        let is_complete = has_workers && self.has_servers();
        let is_ready = self.phase == Phase::Gathering && is_complete && self.alive() > 0 && !self.is_broken;
        if !is_ready {
            return None;
        }
        // Who it is stays so, whoever comes meanwhile.
        self.initialiser = Some(self.initialiser());
        self.advance(Phase::Initialising)
    }

    /// The worker that sets the initial parameters.
    pub(super) fn initialiser(&self) -> WorkerId {
        self.initialiser.unwrap_or_else(|| self.first_place())
    }

    fn first_place(&self) -> WorkerId {
        self.places().next().map_or(WorkerId(0), |(worker, _)| worker)
    }

    /// Takes in what a server reports of checkpoints; what belongs to an era that is over changes nothing.
    ///
    /// # Errors
    /// A caller that is not a current member.
    pub fn report_shard(&mut self, member: Member, era: Era, report: ShardReport) -> Result<Vec<Event>, Refusal> {
        self.server(member)?;
        if era != self.era {
            return Ok(Vec::new());
        }
        let is_late =
            self.servers[member.rank as usize].as_ref().is_some_and(|server| server.since != Since::Beginning);
        Ok(match report {
            ShardReport::Restored if is_late => self.copied(member),
            ShardReport::NotCopied { server, commit, open } => {
                self.copied_too_late(server, commit, open);
                Vec::new()
            }
            ShardReport::Restored => {
                self.restored.insert(member.rank);
                let is_complete =
                    self.restored.len() == self.servers.iter().flatten().count() && self.phase == Phase::Initialising;
                if is_complete { self.advance(Phase::Training).into_iter().collect() } else { Vec::new() }
            }
            ShardReport::NotRestored(problem) => {
                self.is_broken = true;
                vec![Event::NotRestored(member, problem)]
            }
            ShardReport::Saved(saved) => {
                let shard = self.layout().shard_of(ServerId(member.rank));
                let complete = self.engine.saves_mut().add(shard, saved);
                complete.map(|set| Event::Save(SaveEvent::Written(set))).into_iter().collect()
            }
            ShardReport::NotSaved { commit, open, problem } => {
                self.engine.saves_mut().give_up(commit);
                vec![Event::Save(match problem {
                    Some(problem) => SaveEvent::Failed(member, commit, problem),
                    None => SaveEvent::TooLate(commit, open),
                })]
            }
        })
    }

    /// Asks servers to keep a commit for a checkpoint, if they do not do so anyway.
    pub fn save_at(&mut self, commit: Step) {
        self.engine.save_at(commit);
    }

    /// Whether a checkpoint needs the parameters that a commit starts from.
    pub fn is_kept(&self, commit: Step) -> bool {
        self.engine.saves().is_kept(commit)
    }
}
