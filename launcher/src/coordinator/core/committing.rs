//! What servers and workers ask while it trains: verdicts, what becomes of pushes, slices to compute.

use convoy_proto::{
    ids::{Member, WorkerId},
    messages::{Accumulated, Staged, Verdict},
};

use super::{
    super::{dealer::Deal, refusal::Refusal},
    Cluster,
};

impl Cluster {
    /// Adds a server's part of a decision; gives the verdict once all are there.
    ///
    /// # Errors
    /// A caller that is not a current member, or a part that does not belong.
    pub fn decide(&mut self, member: Member, part: Accumulated) -> Result<Option<Verdict>, Refusal> {
        self.server(member)?;
        self.check_era(part.era)?;
        Ok(self.engine.decide(part)?)
    }

    /// Takes note that a server has staged a push, and commits what may be committed.
    ///
    /// # Errors
    /// A caller that is not a current member, or a push that does not belong.
    pub fn stage(&mut self, member: Member, staged: Staged) -> Result<Vec<Verdict>, Refusal> {
        self.server(member)?;
        self.check_era(staged.era)?;
        let verdicts = self.engine.stage(staged)?;
        self.plan_copies();
        Ok(verdicts)
    }

    /// What a worker is to do that has heard of slices up to number `after`.
    ///
    /// # Errors
    /// A caller that is not a current member, or a run in which nothing is dealt out.
    pub fn deal(&mut self, member: Member, after: u64) -> Result<Deal, Refusal> {
        self.worker(member)?;
        if !self.config.mode.is_dealt() {
            return Err(Refusal::OutOfPlace { member, what: "that it has nothing to do" });
        }
        let worker = WorkerId(member.rank);
        let owned = self.owned_by(worker);
        Ok(self.engine.deal((worker, after), &owned))
    }
}
