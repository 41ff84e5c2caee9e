//! What can be asked of a shard; nothing here changes it.

use convoy_proto::{
    clock::Clock,
    ids::{BlockId, Era, ShardId, Step},
    messages::{Verdict, Weights},
};

use super::{
    super::{refusal::Refusal, versions::Lookup},
    Push, Shard, lock,
};

impl Shard {
    /// Whether a push may go on with a block, or waits for others. What is staged is kept whole anyway.
    pub fn admits(&self, push: &Push, block: BlockId) -> bool {
        let Some(at) = self.index(block).filter(|_| !push.is_over && !self.mode.is_chosen()) else { return true };
        let state = lock(&self.state);
        state.open.ledger.step() != push.step || state.credit.admits(at)
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The era that it belongs to.
    pub fn era(&self) -> Era {
        self.era
    }

    /// How its commits relate to steps.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// How many blocks it holds.
    pub fn blocks(&self) -> usize {
        self.cells.len()
    }

    /// The ids of the blocks that training changes, ascending.
    pub fn trained_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.cells.iter().map(|cell| *lock(cell).block()).filter(|block| block.role.is_trained()).map(|block| block.id)
    }

    /// The ids of all blocks, ascending.
    pub fn all_blocks(&self) -> impl Iterator<Item = BlockId> {
        (self.first..self.first + self.cells.len() as u64).map(BlockId)
    }

    /// The step that is open: all before it are committed on this shard.
    pub fn open_step(&self) -> Step {
        lock(&self.state).open.ledger.step()
    }

    /// Whether every block has parameters.
    pub fn is_initialised(&self) -> bool {
        lock(&self.state).uninitialised == 0
    }

    /// Whether slices are dealt out, so that each push is a commit of its own.
    pub fn is_dealt(&self) -> bool {
        self.mode.is_dealt()
    }

    /// The verdict of a step that is closed; `Some(None)` if it is closed and the verdict is gone.
    pub fn closed(&self, step: Step) -> Option<Option<Verdict>> {
        let state = lock(&self.state);
        (step < state.open.ledger.step()).then(|| state.verdict_on(step))
    }

    /// The verdict of a step that this shard has committed: of the last one only.
    pub fn committed(&self, step: Step) -> Option<Verdict> {
        lock(&self.state).verdict_on(step)
    }

    /// The parameters of a block that `step` starts from.
    ///
    /// # Errors
    /// A block of another shard.
    pub fn version(&self, block: BlockId, step: Step, weights: Weights) -> Result<Lookup, Refusal> {
        let cell = lock(self.cell(block)?);
        let step = if cell.block().role.is_trained() { step } else { cell.step() };
        Ok(cell.version(step, weights))
    }
}
