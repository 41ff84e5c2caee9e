//! A shard: its cells, the open step's ledger, and the fences in front of them.
//!
//! Every method takes `&self` and may run on any thread. Each cell has its own lock, so blocks are summed and updated
//! in parallel; the ledger's lock is held for a few instructions only and never while floats are touched. The order
//! of locks is cell, then state. Whoever adds a block's last part, or the last header, also applies what has become
//! applicable: a cell looks for the verdict under its own lock, and the verdict is in place before the cells are
//! swept, so neither can miss the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use convoy_proto::{
    blocks::BlockMap,
    config::Config,
    ids::{BlockId, Member, Role, ShardId, SliceId, Step, WorkerId},
    manifest::{Manifest, TensorRole},
    messages::{Accumulated, Action, ClusterView, GradientBlock, ParameterBlock, PushHeader, Verdict},
    tree::{Node, SliceTree},
};
use rayon::prelude::*;

use super::{
    accumulator::Inserted,
    cell::{Cell, Lookup, Version},
    ledger::{Ledger, LedgerError},
    optimizer::{self, Optimizer},
    refusal::Refusal,
};

/// Permission to push blocks to a step, from [`Shard::open`].
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// The step.
    pub step: Step,
    /// The slices that were announced, by whether they carry weight.
    announced: BTreeMap<SliceId, bool>,
}

impl Push {
    fn allows(&self, node: Node) -> bool {
        let mut weighs = false;
        node.slices().all(|slice| self.announced.get(&slice).inspect(|w| weighs |= **w).is_some()) && weighs
    }
}

/// What a call changed, and what must be done about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Whether a version was formed or the step committed: whoever waits for one looks again.
    pub changed: bool,
    /// The shard's sums are complete and the verdict needs all shards: ask the coordinator for it.
    pub accumulated: Option<Accumulated>,
    /// Whether a block's contribution was new.
    pub fresh: bool,
}

#[derive(Debug)]
struct State {
    view: ClusterView,
    ledger: Ledger,
    last: Option<Verdict>,
    /// Trainable cells whose sum is complete, and that have carried out the verdict, in the open step.
    complete: usize,
    applied: usize,
    /// Whether the open step's norms went to the coordinator.
    reported: bool,
    uninitialised: usize,
}

/// One server's part of the parameter space.
pub struct Shard {
    id: ShardId,
    tree: SliceTree,
    cells: Vec<Mutex<Cell>>,
    first: u64,
    trainable: usize,
    optimizer: Box<dyn Optimizer>,
    learning_rate: f64,
    clip_norm: Option<f64>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("id", &self.id).field("cells", &self.cells.len()).finish_non_exhaustive()
    }
}

/// A poisoned lock means a panic elsewhere; the data behind it are still consistent, for no panic can happen between
/// two writes that belong together.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    /// An empty shard of a run, as `view` describes its cluster.
    pub fn new(id: ShardId, config: &Config, manifest: &Manifest, view: ClusterView) -> Shard {
        let map = BlockMap::new(manifest, config.servers);
        let blocks = map.of_shard(id);
        let tree = SliceTree::new(config.slices);
        Shard {
            id,
            tree,
            cells: blocks.iter().map(|block| Mutex::new(Cell::new(*block))).collect(),
            first: blocks.first().map_or(0, |block| block.id.0),
            trainable: blocks.iter().filter(|block| block.role == TensorRole::Trainable).count(),
            optimizer: optimizer::from_settings(&config.optimizer),
            learning_rate: config.optimizer.lr,
            clip_norm: config.optimizer.clip_norm,
            state: Mutex::new(State {
                view,
                ledger: Ledger::new(tree, Step(0)),
                last: None,
                complete: 0,
                applied: 0,
                reported: false,
                uninitialised: blocks.len(),
            }),
        }
    }

    /// Which shard this is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// How many blocks it holds.
    pub fn blocks(&self) -> usize {
        self.cells.len()
    }

    /// The ids of the blocks that training changes, ascending.
    pub fn trainable_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.cells.iter().map(|cell| *lock(cell).block()).filter(|b| b.role == TensorRole::Trainable).map(|b| b.id)
    }

    /// The ids of all blocks, ascending.
    pub fn all_blocks(&self) -> impl Iterator<Item = BlockId> {
        (self.first..self.first + self.cells.len() as u64).map(BlockId)
    }

    /// Takes over a newer view of the cluster. What was accepted stays accepted.
    pub fn set_view(&self, view: ClusterView) {
        lock(&self.state).view = view;
    }

    /// The step that is open: all before it are committed on this shard.
    pub fn open_step(&self) -> Step {
        lock(&self.state).ledger.step()
    }

    /// Whether every block has parameters.
    pub fn is_initialised(&self) -> bool {
        lock(&self.state).uninitialised == 0
    }

    /// Sets blocks of the parameters of step 0.
    ///
    /// # Errors
    /// A caller that was not named, a block that is set already, of another shard, or of another length.
    pub fn initialise(&self, member: Member, blocks: &[ParameterBlock]) -> Result<Outcome, Refusal> {
        {
            let state = lock(&self.state);
            fence(&state.view, member)?;
            if WorkerId(member.rank) != state.view.initialiser || state.uninitialised == 0 {
                return Err(Refusal::Initialised(member));
            }
        }
        let mut changed = false;
        for block in blocks {
            let mut cell = lock(self.cell(block.block)?);
            check_length(&cell, block.payload.len())?;
            if cell.is_initialised() {
                return Err(Refusal::Initialised(member));
            }
            cell.initialise(&block.payload, self.optimizer.slots());
            let mut state = lock(&self.state);
            state.uninitialised -= 1;
            changed |= state.uninitialised == 0;
        }
        Ok(Outcome { changed, ..Outcome::default() })
    }

    /// Opens a push: notes its headers and, if they were the last ones missing, closes the step's decision.
    ///
    /// A push to the step that was committed last is allowed, so that a worker whose connection broke may ask again.
    ///
    /// # Errors
    /// A caller or step that is fenced off, a slice that is not the caller's, or a contradiction.
    pub fn open(&self, header: &PushHeader) -> Result<(Push, Outcome), Refusal> {
        let announced = header.slices.iter().map(|h| (h.slice, h.weight > 0.0)).collect();
        let push = Push { step: header.step, announced };
        let absent = {
            let mut state = lock(&self.state);
            if header.era != state.view.era {
                return Err(Refusal::Era { ours: state.view.era, theirs: header.era });
            }
            if state.uninitialised > 0 {
                return Err(Refusal::NotInitialised);
            }
            fence(&state.view, header.member)?;
            let open = state.ledger.step();
            if header.step.next() == open {
                return Ok((push, Outcome::default()));
            }
            if header.step != open {
                return Err(Refusal::Step { asked: header.step, open });
            }
            own(&state.view, header)?;
            state.ledger.record(&header.slices)?;
            let Some(proposal) = state.ledger.proposal(self.learning_rate) else {
                return Ok((push, Outcome::default()));
            };
            if self.clip_norm.is_none() || proposal.action == Action::SkipNonFinite {
                state.ledger.close(proposal);
            }
            state.ledger.absent().clone()
        };
        let step = push.step;
        Ok((push, self.sweep(step, &absent)))
    }

    /// Adds one block's part of a node's sum.
    ///
    /// # Errors
    /// A block, node or length that does not belong; the sum stays as it was.
    pub fn accept(&self, push: &Push, part: &GradientBlock) -> Result<Outcome, Refusal> {
        let mut cell = lock(self.cell(part.block)?);
        check_length(&cell, part.payload.len())?;
        if cell.block().role == TensorRole::Frozen {
            return Err(Refusal::Frozen(part.block));
        }
        if !self.tree.contains(part.node) || !push.allows(part.node) {
            return Err(Refusal::Node(part.node, self.tree.slices()));
        }
        if cell.step() != push.step {
            return Ok(Outcome::default());
        }
        let absent = lock(&self.state).ledger.absent().clone();
        let inserted = cell.accumulate(self.tree, part.node, &part.payload, &absent);
        let mut outcome = Outcome { fresh: inserted == Inserted::Fresh, ..Outcome::default() };
        self.count(&mut cell);
        outcome.changed = self.apply(&mut cell);
        drop(cell);
        outcome.accumulated = self.report();
        Ok(outcome)
    }

    /// Carries out the coordinator's verdict on the open step; one on an older step changes nothing.
    pub fn decide(&self, verdict: Verdict) -> Outcome {
        let step = verdict.step;
        let absent = {
            let mut state = lock(&self.state);
            if step != state.ledger.step() {
                return Outcome::default();
            }
            state.ledger.close(verdict);
            state.ledger.absent().clone()
        };
        self.sweep(step, &absent)
    }

    /// The verdict of a step that this shard has committed: of the last one only.
    pub fn committed(&self, step: Step) -> Option<Verdict> {
        lock(&self.state).last.clone().filter(|verdict| verdict.step == step)
    }

    /// The parameters of a block that `step` starts from.
    ///
    /// # Errors
    /// A block of another shard.
    pub fn version(&self, block: BlockId, step: Step) -> Result<Lookup, Refusal> {
        let cell = lock(self.cell(block)?);
        if cell.block().role == TensorRole::Frozen { Ok(cell.version(cell.step())) } else { Ok(cell.version(step)) }
    }

    fn cell(&self, block: BlockId) -> Result<&Mutex<Cell>, Refusal> {
        let at = block.0.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.cells.get(at)).ok_or(Refusal::UnknownBlock { block, shard: self.id })
    }

    /// Settles every cell that is still at `step`, now that all its headers are known, and applies the verdict where
    /// there is one. Others may have committed the step meanwhile: what is absent in it says nothing of the next.
    fn sweep(&self, step: Step, absent: &BTreeSet<SliceId>) -> Outcome {
        let changed = self
            .cells
            .par_iter()
            .map(|cell| {
                let mut cell = lock(cell);
                if cell.block().role == TensorRole::Frozen || cell.step() != step {
                    return false;
                }
                cell.settle(self.tree, absent);
                self.count(&mut cell);
                self.apply(&mut cell)
            })
            .reduce(|| false, |a, b| a | b);
        let advanced = self.advance(&mut lock(&self.state));
        Outcome { changed: changed | advanced, accumulated: self.report(), fresh: false }
    }

    /// Counts the cell when its sum is complete.
    fn count(&self, cell: &mut Cell) {
        if cell.found_complete(self.tree) {
            lock(&self.state).complete += 1;
        }
    }

    /// Applies the verdict to a cell if both are ready; the last cell to do so commits the step.
    fn apply(&self, cell: &mut Cell) -> bool {
        let Some(verdict) = lock(&self.state).ledger.verdict().cloned() else { return false };
        if verdict.step != cell.step() || !cell.apply(self.tree, &verdict, &*self.optimizer) {
            return false;
        }
        let mut state = lock(&self.state);
        state.applied += 1;
        self.advance(&mut state);
        true
    }

    fn advance(&self, state: &mut State) -> bool {
        if state.applied < self.trainable {
            return false;
        }
        let Some(verdict) = state.ledger.verdict().cloned() else { return false };
        state.ledger = Ledger::new(self.tree, verdict.step.next());
        state.last = Some(verdict);
        (state.complete, state.applied, state.reported) = (0, 0, false);
        true
    }

    /// The shard's part in the decision, once, when it has accumulated and the verdict is not its own to give.
    fn report(&self) -> Option<Accumulated> {
        self.clip_norm?;
        let (proposal, era) = {
            let mut state = lock(&self.state);
            if state.reported || state.ledger.verdict().is_some() || state.complete < self.trainable {
                return None;
            }
            let proposal = state.ledger.proposal(self.learning_rate)?;
            state.reported = true;
            (proposal, state.view.era)
        };
        let norm = |cell: &Mutex<Cell>| {
            let cell = lock(cell);
            let trainable = cell.block().role == TensorRole::Trainable;
            trainable.then(|| (cell.block().id, cell.sum_of_squares(self.tree)))
        };
        let norms = self.cells.par_iter().filter_map(norm).collect();
        Some(Accumulated { shard: self.id, era, proposal, norms })
    }
}

fn check_length(cell: &Cell, got: usize) -> Result<(), Refusal> {
    let want = cell.block().bytes();
    if want == got { Ok(()) } else { Err(Refusal::Length { block: cell.block().id, want, got }) }
}

/// Lets in a worker's current incarnation only.
fn fence(view: &ClusterView, member: Member) -> Result<(), Refusal> {
    match view.incarnations.get(member.rank as usize) {
        Some(current) if member.role == Role::Worker && *current == member.incarnation => Ok(()),
        Some(current) if member.role == Role::Worker => Err(Refusal::Fenced { member, current: *current }),
        _ => Err(Refusal::Stranger(member)),
    }
}

fn own(view: &ClusterView, header: &PushHeader) -> Result<(), Refusal> {
    for slice in header.slices.iter().map(|header| header.slice) {
        match view.owners.get(slice.index()) {
            Some(owner) if owner.0 == header.member.rank => {}
            Some(owner) => return Err(Refusal::NotOwner { slice, owner: *owner, member: header.member }),
            None => return Err(LedgerError::UnknownSlice(slice, view.owners.len() as u32).into()),
        }
    }
    Ok(())
}

/// A shared version, as the payload of a block: no copy is made.
pub fn payload(version: Version) -> bytes::Bytes {
    struct Shared(Version);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            convoy_proto::sum::payload_of(&self.0)
        }
    }
    bytes::Bytes::from_owner(Shared(version))
}

/// For readers of a push-pull: blocks and their parameters as a message's part.
pub fn parameter_block(block: BlockId, version: Version) -> ParameterBlock {
    ParameterBlock { block, payload: payload(version) }
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
