//! The sum over one block's part of the slice tree, in whatever order its nodes arrive.
//!
//! Invariants: no two partial sums overlap; two siblings never stand side by side (they are added at once). So the
//! bits of the result depend on the tree alone, and memory on how far apart the arrivals are. A part that has arrived
//! alone stays where it is, in a frame or in its worker's memory, until there is something to add it to.

use std::{borrow::Cow, collections::BTreeSet};

use bytes::Bytes;
use convoy_proto::{
    ids::SliceId,
    sum,
    tree::{Node, SliceTree},
};

/// Whether a contribution was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the sum.
    Fresh,
    /// It, or a sum over more slices that contains it, was there already.
    Present,
}

/// The sum over a node.
#[derive(Clone, Debug)]
enum Part {
    /// As it came: little-endian f32, of any alignment.
    Lent(Bytes),
    /// Formed here.
    Sum(Vec<f32>),
}

impl Part {
    fn add(self, other: Part) -> Part {
        Part::Sum(match (self, other) {
            (Part::Lent(left), Part::Lent(right)) => sum::of_payloads(&left, &right),
            (Part::Lent(payload), Part::Sum(mut values)) | (Part::Sum(mut values), Part::Lent(payload)) => {
                sum::add_payload(&mut values, &payload);
                values
            }
            (Part::Sum(mut left), Part::Sum(right)) => {
                sum::add(&mut left, &right);
                left
            }
        })
    }
}

/// Partial sums of one block in one step.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    partials: Vec<(Node, Part)>,
}

/// Whether no slice below `node` contributes.
fn is_absent(node: Node, absent: &BTreeSet<SliceId>) -> bool {
    absent.range(SliceId(node.first)..SliceId(node.first + node.len)).count() == node.len as usize
}

impl Accumulator {
    /// Adds the sum over `node`; `payload` is little-endian f32 of the block's length, `absent` are slices known to
    /// be empty.
    pub fn insert(&mut self, tree: SliceTree, node: Node, payload: &Bytes, absent: &BTreeSet<SliceId>) -> Inserted {
        if self.partials.iter().any(|(there, _)| there.covers(node)) {
            return Inserted::Present;
        }
        self.partials.retain(|(there, _)| !node.covers(*there));
        self.raise(tree, (node, Part::Lent(payload.clone())), absent);
        Inserted::Fresh
    }

    /// Merges what can be merged, now that `absent` slices are known to be empty.
    pub fn settle(&mut self, tree: SliceTree, absent: &BTreeSet<SliceId>) {
        for part in std::mem::take(&mut self.partials) {
            self.raise(tree, part, absent);
        }
    }

    /// Whether the sum over all present slices is formed.
    pub fn is_complete(&self, tree: SliceTree) -> bool {
        matches!(self.partials.as_slice(), [(node, _)] if *node == tree.root())
    }

    /// The complete sum.
    pub fn sum(&self, tree: SliceTree) -> Option<Cow<'_, [f32]>> {
        self.is_complete(tree).then(|| match &self.partials[0].1 {
            Part::Sum(values) => Cow::Borrowed(values.as_slice()),
            Part::Lent(payload) => Cow::Owned(sum::divided_payload(payload, 1.0)),
        })
    }

    /// Takes the complete sum divided by `weight`, leaving nothing.
    pub fn take_mean(&mut self, tree: SliceTree, weight: f32) -> Option<Vec<f32>> {
        if !self.is_complete(tree) {
            return None;
        }
        Some(match self.partials.pop()?.1 {
            Part::Sum(mut values) => {
                sum::divide(&mut values, weight);
                values
            }
            Part::Lent(payload) => sum::divided_payload(&payload, weight),
        })
    }

    /// Copies what is still where it came from.
    pub fn own(&mut self) {
        for (_, part) in &mut self.partials {
            if let Part::Lent(payload) = part {
                *payload = Bytes::copy_from_slice(payload);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.partials.clear();
    }

    /// Adds a part to what stands beside it, and the sum to what stands beside that, as far up as it goes.
    fn raise(&mut self, tree: SliceTree, (mut node, mut part): (Node, Part), absent: &BTreeSet<SliceId>) {
        while let Some(parent) = tree.parent(node) {
            let sibling = sibling(parent, node);
            if let Some(at) = self.partials.iter().position(|(there, _)| *there == sibling) {
                part = part.add(self.partials.swap_remove(at).1);
            } else if !is_absent(sibling, absent) {
                break;
            }
            node = parent;
        }
        self.partials.push((node, part));
    }
}

fn sibling(parent: Node, node: Node) -> Node {
    match parent.children() {
        Some((left, right)) if left == node => right,
        Some((left, _)) => left,
        None => node,
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::tree::fold;
    use proptest::{prelude::*, sample::subsequence};

    use super::*;

    const LEN: usize = 3;

    fn leaf(slice: SliceId) -> Vec<f32> {
        (0..LEN).map(|i| ((slice.0 as f32 + 1.3) * (i as f32 + 0.7)).sin() * 10f32.powi(slice.0 as i32 % 5)).collect()
    }

    fn reference(node: Node, absent: &BTreeSet<SliceId>) -> Option<Vec<f32>> {
        let mut present = |s: SliceId| (!absent.contains(&s)).then(|| leaf(s));
        fold(node, &mut present, &mut |mut left: Vec<f32>, right: Vec<f32>| {
            sum::add(&mut left, &right);
            left
        })
    }

    fn payload(values: &[f32]) -> Bytes {
        Bytes::copy_from_slice(sum::payload_of(values))
    }

    fn all_nodes(node: Node) -> Vec<Node> {
        let below = node.children().map(|(l, r)| [all_nodes(l), all_nodes(r)].concat());
        std::iter::once(node).chain(below.unwrap_or_default()).collect()
    }

    fn insert(acc: &mut Accumulator, tree: SliceTree, node: Node, absent: &BTreeSet<SliceId>) -> Option<Inserted> {
        let values = reference(node, absent)?;
        Some(acc.insert(tree, node, &payload(&values), absent))
    }

    #[test]
    fn an_ancestor_replaces_and_a_descendant_is_dropped() {
        let tree = SliceTree::new(4);
        let none = BTreeSet::new();
        let (left, root) = (Node { first: 0, len: 2 }, tree.root());
        let mut acc = Accumulator::default();
        assert_eq!(insert(&mut acc, tree, Node::leaf(SliceId(0)), &none), Some(Inserted::Fresh));
        assert_eq!(insert(&mut acc, tree, left, &none), Some(Inserted::Fresh));
        assert_eq!(insert(&mut acc, tree, Node::leaf(SliceId(1)), &none), Some(Inserted::Present));
        assert!(!acc.is_complete(tree));
        assert_eq!(insert(&mut acc, tree, root, &none), Some(Inserted::Fresh));
        assert_eq!(acc.take_mean(tree, 1.0), reference(root, &none));
        assert!(!acc.is_complete(tree));
    }

    #[test]
    fn an_absence_that_is_learnt_late_completes_the_sum() {
        let tree = SliceTree::new(3);
        let mut acc = Accumulator::default();
        let (none, absent) = (BTreeSet::new(), BTreeSet::from([SliceId(1), SliceId(2)]));
        let values = leaf(SliceId(0));
        acc.insert(tree, Node::leaf(SliceId(0)), &payload(&values), &none);
        assert!(!acc.is_complete(tree));
        acc.settle(tree, &absent);
        assert_eq!(acc.take_mean(tree, 1.0), Some(values));
    }

    proptest! {
        /// The sum's bits do not depend on the order of arrival, on who added what, or on when absences are learnt.
        #[test]
        fn order_does_not_matter(
            (slices, absent, nodes) in (1u32..12).prop_flat_map(|slices| {
                let all: Vec<u32> = (0..slices).collect();
                let nodes = all_nodes(SliceTree::new(slices).root());
                let shuffled = Just(nodes).prop_shuffle();
                (Just(slices), subsequence(all, 0..slices as usize), shuffled)
            }),
            early: bool,
        ) {
            let tree = SliceTree::new(slices);
            let absent: BTreeSet<_> = absent.into_iter().map(SliceId).collect();
            let known = if early { absent.clone() } else { BTreeSet::new() };
            let mut acc = Accumulator::default();
            for node in nodes {
                let Some(values) = reference(node, &absent) else { continue };
                acc.insert(tree, node, &payload(&values), &known);
                acc.settle(tree, &known);
            }
            acc.settle(tree, &absent);
            prop_assert_eq!(acc.take_mean(tree, 1.0), reference(tree.root(), &absent));
        }
    }
}
