//! Parts of one block that wait for the word that commits them: of pushes that are chosen, or dropped, as a whole.

use std::collections::BTreeSet;

use bytes::Bytes;
use convoy_proto::{
    ids::{SliceId, Step},
    messages::{GradientBlock, PushId, Verdict},
    tree::Node,
};

/// A part of a push.
#[derive(Debug)]
struct Part {
    push: PushId,
    /// The step that it can only be a part of, if there is one.
    step: Option<Step>,
    node: Node,
    /// The slices that weigh in its sum.
    weighs: Vec<SliceId>,
    payload: Bytes,
}

/// Parts of pushes.
#[derive(Debug, Default)]
pub struct Waiting(Vec<Part>);

impl Waiting {
    /// Keeps a part of a push, whose slices that have weight are `present`, of a step, if it can be of one only. True if the
    /// push is now all here.
    pub fn add(&mut self, (push, step): (PushId, Option<Step>), present: &[SliceId], part: &GradientBlock) -> bool {
        let had_all = self.has_all(push, present);
        if !self.0.iter().any(|there| there.push == push && there.node.covers(part.node)) {
            let weighs = present.iter().copied().filter(|slice| part.node.covers(Node::leaf(*slice))).collect();
            self.0.push(Part { push, step, node: part.node, weighs, payload: part.payload.clone() });
        }
        !had_all && self.has_all(push, present)
    }

    fn has_all(&self, push: PushId, present: &[SliceId]) -> bool {
        let covers = |slice| self.0.iter().any(|part| part.push == push && part.node.covers(Node::leaf(slice)));
        present.iter().all(|slice| covers(*slice))
    }

    /// Copies what is still where it came from.
    pub fn own(&mut self) {
        self.0.iter_mut().for_each(|part| part.payload = Bytes::copy_from_slice(&part.payload));
    }

    /// Forgets a push.
    pub fn discard(&mut self, push: PushId) {
        self.0.retain(|part| part.push != push);
    }

    /// Takes out what the coordinator chose, given that all other slices are `absent`.
    pub fn take(&mut self, chosen: &Verdict, absent: &BTreeSet<SliceId>) -> impl Iterator<Item = (Node, Bytes)> {
        let is_in = |part: &mut Part| match chosen.push {
            Some(push) => part.push == push,
            None => part.step == Some(chosen.step) && part.weighs.iter().all(|slice| !absent.contains(slice)),
        };
        let taken: Vec<Part> = self.0.extract_if(.., is_in).collect();
        taken.into_iter().map(|part| (part.node, part.payload))
    }

    /// Forgets what can only be a part of steps before the one that is open.
    pub fn close(&mut self, open: Step) {
        self.0.retain(|part| part.step.is_none_or(|step| step >= open));
    }
}
