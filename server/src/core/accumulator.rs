//! The sum over one block's part of the slice tree, in whatever order its nodes arrive.
//!
//! Invariants: no two partial sums overlap; two siblings never stand side by side (they are added at once). So the
//! bits of the result depend on the tree alone, and memory on how far apart the arrivals are.

use std::collections::BTreeSet;

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

/// Partial sums of one block in one step.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    partials: Vec<(Node, Vec<f32>)>,
}

/// Whether no slice below `node` contributes.
fn is_absent(node: Node, absent: &BTreeSet<SliceId>) -> bool {
    absent.range(SliceId(node.first)..SliceId(node.first + node.len)).count() == node.len as usize
}

impl Accumulator {
    /// Adds the sum over `node`; `payload` is little-endian f32 of the block's length, `absent` are slices known to
    /// be empty.
    pub fn insert(&mut self, tree: SliceTree, node: Node, payload: &[u8], absent: &BTreeSet<SliceId>) -> Inserted {
        if self.partials.iter().any(|(there, _)| there.covers(node)) {
            return Inserted::Present;
        }
        self.partials.retain(|(there, _)| !node.covers(*there));
        match self.take_sibling(tree, node) {
            Some((parent, mut values)) => {
                sum::add_payload(&mut values, payload);
                self.partials.push((parent, values));
            }
            None => {
                let mut values = vec![0.0; payload.len() / 4];
                sum::read_payload(&mut values, payload);
                self.partials.push((node, values));
            }
        }
        self.settle(tree, absent);
        Inserted::Fresh
    }

    /// Merges what can be merged, now that `absent` slices are known to be empty.
    pub fn settle(&mut self, tree: SliceTree, absent: &BTreeSet<SliceId>) {
        for (node, mut values) in std::mem::take(&mut self.partials) {
            let raised = self.raise(tree, node, &mut values, absent);
            self.partials.push((raised, values));
        }
    }

    /// Whether the sum over all present slices is formed.
    pub fn is_complete(&self, tree: SliceTree) -> bool {
        matches!(self.partials.as_slice(), [(node, _)] if *node == tree.root())
    }

    /// The complete sum.
    pub fn sum(&self, tree: SliceTree) -> Option<&[f32]> {
        self.is_complete(tree).then(|| self.partials[0].1.as_slice())
    }

    /// Takes the complete sum, leaving nothing.
    pub fn take(&mut self, tree: SliceTree) -> Option<Vec<f32>> {
        if self.is_complete(tree) { self.partials.pop().map(|(_, values)| values) } else { None }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.partials.clear();
    }

    fn raise(&mut self, tree: SliceTree, mut node: Node, values: &mut [f32], absent: &BTreeSet<SliceId>) -> Node {
        while let Some(parent) = tree.parent(node) {
            let sibling = sibling(parent, node);
            if let Some(at) = self.partials.iter().position(|(there, _)| *there == sibling) {
                let (_, other) = self.partials.swap_remove(at);
                sum::add(values, &other);
            } else if !is_absent(sibling, absent) {
                break;
            }
            node = parent;
        }
        node
    }

    fn take_sibling(&mut self, tree: SliceTree, node: Node) -> Option<(Node, Vec<f32>)> {
        let parent = tree.parent(node)?;
        let sibling = sibling(parent, node);
        let at = self.partials.iter().position(|(there, _)| *there == sibling)?;
        Some((parent, self.partials.swap_remove(at).1))
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

    fn all_nodes(node: Node) -> Vec<Node> {
        let below = node.children().map(|(l, r)| [all_nodes(l), all_nodes(r)].concat());
        std::iter::once(node).chain(below.unwrap_or_default()).collect()
    }

    fn insert(acc: &mut Accumulator, tree: SliceTree, node: Node, absent: &BTreeSet<SliceId>) -> Option<Inserted> {
        let values = reference(node, absent)?;
        Some(acc.insert(tree, node, sum::payload_of(&values), absent))
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
        assert_eq!(acc.take(tree), reference(root, &none));
        assert!(!acc.is_complete(tree));
    }

    #[test]
    fn an_absence_that_is_learnt_late_completes_the_sum() {
        let tree = SliceTree::new(3);
        let mut acc = Accumulator::default();
        let (none, absent) = (BTreeSet::new(), BTreeSet::from([SliceId(1), SliceId(2)]));
        let values = leaf(SliceId(0));
        acc.insert(tree, Node::leaf(SliceId(0)), sum::payload_of(&values), &none);
        assert!(!acc.is_complete(tree));
        acc.settle(tree, &absent);
        assert_eq!(acc.take(tree), Some(values));
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
                acc.insert(tree, node, sum::payload_of(&values), &known);
                acc.settle(tree, &known);
            }
            acc.settle(tree, &absent);
            prop_assert_eq!(acc.take(tree), reference(tree.root(), &absent));
        }
    }
}
