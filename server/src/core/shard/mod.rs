//! A shard: its cells, the open step's ledger, and the fences in front of them.
//!
//! Every method takes `&self` and may run on any thread. Each cell has its own lock, so blocks are summed and updated
//! in parallel; the ledger's lock is held for a few instructions only and never while floats are touched. The order
//! of locks is cell, then state. Whoever adds a block's last part, or the last header, also applies what has become
//! applicable: a cell looks for the verdict under its own lock, and the verdict is in place before the cells are
//! swept, so neither can miss the other.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use convoy_proto::{
    blocks::{Block, BlockMap},
    clock::Clock,
    config::{Config, Mode, TensorSettings},
    fates::Fate,
    ids::{BlockId, Era, Generation, Member, ServerId, ShardId, SliceId, Step, WorkerId},
    layout::Layout,
    loss_scale::LossScale,
    manifest::{Manifest, TensorRole},
    messages::{Action, ClusterView, GradientBlock, ParameterBlock, PushHeader, Terms, Verdict},
    optimizer::Optimizer,
    schedule::{CommitRate, Horizon},
    shared::{Arena, Pass},
    tree::SliceTree,
};
use rayon::prelude::*;

mod chosen;
mod deciding;
mod push;
mod reading;
mod saving;

pub use push::{Outcome, Push};

use super::{
    accumulator::Inserted,
    cell::{Cell, Progress},
    credit::Credit,
    fences::{check_length, decoded, fence, known, outdated, own},
    kept::Used,
    open::{OpenStep, Sizes},
    refusal::Refusal,
    staging::Staging,
    versions::Rooms,
};

#[derive(Debug)]
struct State {
    view: ClusterView,
    open: OpenStep,
    credit: Credit,
    last: Option<Arc<Verdict>>,
    loss_scale: LossScale,
    uninitialised: usize,
    staging: Staging,
    /// What the coordinator chose for steps that are not open yet.
    chosen: BTreeMap<Step, Verdict>,
    /// Commits that the coordinator asked to keep for a checkpoint, the last that it asked for, and the last that was handed
    /// over.
    wanted: BTreeSet<Step>,
    asked: Option<Step>,
    saved: Option<Step>,
    /// Commits that are kept for another copy of the shard.
    copied: BTreeSet<Step>,
    /// From this step on, only who knows the membership of this version may push.
    gate: Option<(Step, Generation)>,
    /// The one that cells are being told to keep.
    keeping: Option<Step>,
    /// What commits used, to be handed over.
    used: Vec<Used>,
    /// Commits that are whole and are to be handed over, with the loss scale then.
    formed: VecDeque<(Step, LossScale)>,
}

impl State {
    /// The verdict on a step, if it is the last that was committed.
    fn verdict_on(&self, step: Step) -> Option<Verdict> {
        self.last.as_deref().filter(|verdict| verdict.step == step).cloned()
    }
}

/// One server's part of the parameter space.
pub struct Shard {
    server: ServerId,
    id: ShardId,
    era: Era,
    mode: Mode,
    tree: SliceTree,
    cells: Vec<Mutex<Cell>>,
    first: u64,
    sizes: Sizes,
    /// Where its parameters are, if others see them.
    arena: Option<Arc<Arena>>,
    optimizer: Optimizer,
    learning_rate: CommitRate,
    clock: Clock,
    /// Steps between checkpoints; 0 if they do not depend on steps.
    save_every: u64,
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
    /// A server's empty shard of a run of so many steps, as `view` describes its cluster.
    pub fn new(
        server: ServerId,
        config: &Config,
        (manifest, horizon): (&Manifest, Horizon),
        view: ClusterView,
    ) -> Shard {
        let (id, map) = (Layout::of(config).shard_of(server), BlockMap::new(manifest, config.servers));
        let blocks: Vec<Block> = map.of_shard(id).collect();
        // A slice that was dealt out is a commit of its own.
        let tree = SliceTree::new(if config.mode.is_dealt() { 1 } else { config.slices });
        let settings = |block: &Block| match config.mode {
            // The inner optimizers have heeded them.
            Mode::Local(_) => TensorSettings { lr_factor: 1.0, weight_decay: 0.0, frozen: false },
            _ => config.optimizer.for_tensor(&manifest.tensors()[block.tensor].name),
        };
        Shard {
            server,
            id,
            era: view.era,
            mode: config.mode,
            tree,
            cells: blocks.iter().map(|block| Mutex::new(Cell::new(*block, settings(block)))).collect(),
            first: blocks.first().map_or(0, |block| block.id.0),
            sizes: Sizes {
                trained: blocks.iter().filter(|block| block.role.is_trained()).count(),
                trainable: blocks.iter().filter(|block| block.role == TensorRole::Trainable).count(),
            },
            arena: None,
            optimizer: Optimizer::of_servers(config),
            learning_rate: CommitRate::new(config, horizon),
            clock: Clock::new(config, horizon.steps),
            save_every: config.checkpoint.every.steps(),
            state: Mutex::new(State {
                view,
                open: OpenStep::new(tree, Step(0)),
                credit: Credit::new(&blocks, config.workers),
                last: None,
                loss_scale: LossScale::new(config.loss_scale),
                uninitialised: blocks.len(),
                staging: Staging::default(),
                chosen: BTreeMap::new(),
                wanted: BTreeSet::new(),
                asked: None,
                saved: None,
                copied: BTreeSet::new(),
                gate: None,
                keeping: None,
                used: Vec::new(),
                formed: VecDeque::new(),
            }),
        }
    }

    /// The same, its parameters in an arena of its blocks, where others see them.
    pub fn sharing(self, arena: &Arc<Arena>) -> Shard {
        for (at, cell) in self.cells.iter().enumerate() {
            lock(cell).share(Rooms::of(arena.clone(), at));
        }
        Shard { arena: Some(arena.clone()), ..self }
    }

    /// What others need to see its parameters.
    pub fn pass(&self) -> Option<Pass> {
        self.arena.as_ref().map(|arena| arena.pass())
    }

    /// Takes over a newer view of the cluster. What was accepted stays accepted; what processes that are gone have sent
    /// in part is discarded.
    pub fn set_view(&self, view: ClusterView) {
        let gone = {
            let mut state = lock(&self.state);
            // A shard belongs to one era: of a later one it only knows that its own is over.
            state.view = view;
            let State { view, staging, .. } = &mut *state;
            staging.purge(view)
        };
        gone.into_iter().for_each(|push| self.discard(push));
    }

    /// Sets blocks of the parameters of step 0.
    ///
    /// # Errors
    /// A caller that was not named, a block that is set already, of another shard, or of another length.
    pub fn initialise(&self, member: Member, blocks: &[ParameterBlock]) -> Result<Outcome, Refusal> {
        {
            let state = lock(&self.state);
            fence(&state.view, member)?;
            // A shard without blocks is given none.
            let is_done = state.uninitialised == 0 && !blocks.is_empty();
            if WorkerId(member.rank) != state.view.initialiser || is_done {
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
            cell.initialise(&block.payload, &self.optimizer);
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
        let mut push = Push { step: header.step, id: header.id(), announced, is_over: false };
        if self.mode.is_chosen() {
            return self.open_staged(header, push);
        }
        let absent = {
            let mut state = lock(&self.state);
            let open = admit(&state, header)?;
            if header.step.next() == open {
                push.is_over = true;
                return Ok((push, Outcome::default()));
            }
            if header.step < open {
                // A worker without a slice: nobody waited for it.
                return Err(Refusal::Missed { asked: header.step, open });
            }
            if header.step != open {
                return Err(Refusal::Step { asked: header.step, open });
            }
            own(&state.view, header)?;
            let terms = self.terms(&state);
            if terms.loss_scale != header.loss_scale {
                return Err(Refusal::LossScale { ours: terms.loss_scale, theirs: header.loss_scale });
            }
            state.open.ledger.record(&header.slices)?;
            let Some(proposal) = state.open.ledger.proposal(terms) else {
                return Ok((push, Outcome::default()));
            };
            if self.optimizer.clip_norm.is_none() || proposal.action == Action::SkipNonFinite {
                state.open.ledger.close(proposal);
            }
            state.open.ledger.absent().clone()
        };
        let step = push.step;
        Ok((push, self.sweep(step, &absent)))
    }

    /// What the open step's headers do not say.
    fn terms(&self, state: &State) -> Terms {
        Terms { learning_rate: self.learning_rate.of(state.open.ledger.step()), loss_scale: state.loss_scale.get() }
    }

    /// Adds one block's part of a node's sum.
    ///
    /// # Errors
    /// A block, node or length that does not belong; the sum stays as it was.
    pub fn accept(&self, push: &Push, part: &GradientBlock) -> Result<Outcome, Refusal> {
        let mut cell = lock(self.cell(part.block)?);
        let decoded = decoded(&cell, part)?;
        let part = decoded.as_ref().unwrap_or(part);
        check_length(&cell, part.payload.len())?;
        if cell.block().role == TensorRole::Frozen {
            return Err(Refusal::Frozen(part.block));
        }
        if !self.tree.contains(part.node) || !push.allows(part.node) {
            return Err(Refusal::Node(part.node, self.tree.slices()));
        }
        if push.is_over {
            return Ok(Outcome::default());
        }
        if self.mode.is_chosen() {
            return Ok(self.stage(push, cell, part));
        }
        if cell.step() != push.step {
            return Ok(Outcome::default());
        }
        let absent = lock(&self.state).open.ledger.absent().clone();
        let inserted = cell.accumulate(self.tree, part.node, &part.payload, &absent);
        let mut outcome = Outcome { fresh: inserted == Inserted::Fresh, ..Outcome::default() };
        outcome.changed = self.count(&mut cell);
        outcome.changed |= self.apply(&mut cell);
        drop(cell);
        outcome.accumulated = self.report();
        Ok(self.hand_over(outcome))
    }

    fn index(&self, block: BlockId) -> Option<usize> {
        block.0.checked_sub(self.first).and_then(|at| usize::try_from(at).ok())
    }

    fn cell(&self, block: BlockId) -> Result<&Mutex<Cell>, Refusal> {
        let cell = self.index(block).and_then(|at| self.cells.get(at));
        cell.ok_or(Refusal::UnknownBlock { block, shard: self.id })
    }

    /// Settles every cell that is still at `step`, now that all its headers are known, and applies the verdict where
    /// there is one. Others may have committed the step meanwhile: what is absent in it says nothing of the next.
    fn sweep(&self, step: Step, absent: &BTreeSet<SliceId>) -> Outcome {
        self.sweep_with(step, |cell| cell.settle(self.tree, absent))
    }

    fn sweep_with(&self, step: Step, settle: impl Fn(&mut Cell) + Sync) -> Outcome {
        let changed = self
            .cells
            .par_iter()
            .map(|cell| {
                let mut cell = lock(cell);
                if !cell.block().role.is_trained() || cell.step() != step {
                    return false;
                }
                settle(&mut cell);
                let rises = self.count(&mut cell);
                self.apply(&mut cell) | rises
            })
            .reduce(|| false, |a, b| a | b);
        let advanced = self.advance(&mut lock(&self.state));
        self.hand_over(Outcome { changed: changed | advanced, accumulated: self.report(), ..Outcome::default() })
    }

    /// Counts the cell when its sum is complete; whether pushes may go further for it.
    fn count(&self, cell: &mut Cell) -> bool {
        if !cell.found_complete(self.tree) {
            return false;
        }
        let mut state = lock(&self.state);
        state.open.completed();
        self.index(cell.block().id).is_some_and(|at| state.credit.complete(at))
    }

    /// Applies the verdict to a cell if both are ready; the last cell to do so commits the step.
    fn apply(&self, cell: &mut Cell) -> bool {
        let (verdict, is_kept) = {
            let state = lock(&self.state);
            let Some(verdict) = state.open.ledger.verdict().cloned() else { return false };
            let is_kept = self.is_kept(&state, verdict.step.next());
            (verdict, is_kept)
        };
        if verdict.step != cell.step() {
            return false;
        }
        let progress = cell.apply(self.tree, (&verdict, is_kept), &self.optimizer);
        let mut state = lock(&self.state);
        state.open.progressed(progress);
        self.advance(&mut state);
        progress == Progress::Applied
    }

    fn advance(&self, state: &mut State) -> bool {
        let Some(verdict) = state.open.ended(self.sizes, &self.optimizer).cloned() else { return false };
        state.open = OpenStep::new(self.tree, verdict.step.next());
        state.credit.restart();
        state.loss_scale.follow(verdict.action);
        if self.is_kept(state, verdict.step.next()) {
            state.formed.push_back((verdict.step.next(), state.loss_scale));
        }
        self.account(state, &verdict);
        match verdict.push {
            Some(push) => state.staging.end(push, Fate::Decided(Verdict::clone(&verdict))),
            None => state.staging.close(verdict.step),
        }
        state.last = Some(verdict);
        true
    }
}

/// Lets in what belongs to the present; gives the step that is open.
fn admit(state: &State, header: &PushHeader) -> Result<Step, Refusal> {
    if header.era != state.view.era {
        return Err(Refusal::Era { ours: state.view.era, theirs: header.era });
    }
    if state.uninitialised > 0 {
        return Err(Refusal::NotInitialised);
    }
    known(&state.view, header)?;
    fence(&state.view, header.member)?;
    if state.gate.is_some_and(|(step, generation)| header.step >= step && header.generation < generation) {
        // Another server takes part in that step, and has to be pushed to.
        return Err(outdated(&state.view, header));
    }
    Ok(state.open.ledger.step())
}

#[cfg(test)]
mod tests;
