//! The slice tree: one fixed binary tree over a step's slices, which fixes the order of every sum.
//!
//! Floating-point addition is not associative, so a sum's value depends on its order. Here the order is part of the
//! contract: a node over `n > 1` slices splits at the largest power of two below `n`, and its sum is
//! `left + right`. An empty slice is absent (it is not `+0`), and the sum of a node with one absent child is the
//! other child's. Whoever adds, wherever, in whatever order parts arrive, the bits are the same.

use std::{collections::BTreeSet, fmt};

use crate::ids::SliceId;

/// A node: the slices `first .. first + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Its first slice.
    pub first: u32,
    /// How many slices it covers, at least one.
    pub len: u32,
}

impl Node {
    /// The leaf of one slice.
    pub fn leaf(slice: SliceId) -> Node {
        Node { first: slice.0, len: 1 }
    }

    /// The slices below this node, ascending.
    pub fn slices(self) -> impl Iterator<Item = SliceId> {
        (self.first..self.first + self.len).map(SliceId)
    }

    /// Whether `other` is this node or lies below it, given that both are nodes of one tree.
    pub fn covers(self, other: Node) -> bool {
        self.first <= other.first && other.first + other.len <= self.first + self.len
    }

    /// The two children of an inner node.
    pub fn children(self) -> Option<(Node, Node)> {
        if self.len < 2 {
            return None;
        }
        let left = 1 << (self.len - 1).ilog2();
        Some((Node { first: self.first, len: left }, Node { first: self.first + left, len: self.len - left }))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.first + self.len)
    }
}

/// The tree over a run's slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceTree {
    slices: u32,
}

impl SliceTree {
    /// The tree over `slices` slices; 0 is taken as 1.
    pub fn new(slices: u32) -> SliceTree {
        SliceTree { slices: slices.max(1) }
    }

    /// How many slices, which are the leaves, there are.
    pub fn slices(self) -> u32 {
        self.slices
    }

    /// The node over all slices.
    pub fn root(self) -> Node {
        Node { first: 0, len: self.slices }
    }

    /// Whether `node` is one of this tree's.
    pub fn contains(self, node: Node) -> bool {
        node == self.root() || self.parent(node).is_some()
    }

    /// The parent of `node`; `None` for the root and for what is not a node of this tree.
    pub fn parent(self, node: Node) -> Option<Node> {
        let mut at = self.root();
        while let Some((left, right)) = at.children() {
            if left == node || right == node {
                return Some(at);
            }
            at = if node.first < right.first { left } else { right };
        }
        None
    }

    /// The fewest nodes that together cover exactly `owned`, in order of their first slice.
    pub fn cover(self, owned: &BTreeSet<SliceId>) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut open = vec![self.root()];
        while let Some(node) = open.pop() {
            let inside = owned.range(SliceId(node.first)..SliceId(node.first + node.len)).count();
            if inside == node.len as usize {
                nodes.push(node);
            } else if let (Some((left, right)), true) = (node.children(), inside > 0) {
                open.push(right);
                open.push(left);
            }
        }
        nodes
    }
}

/// Adds up what `leaf` gives for each slice below `node`, in tree order; absent slices give `None`.
pub fn fold<T>(node: Node, leaf: &mut impl FnMut(SliceId) -> Option<T>, add: &mut impl FnMut(T, T) -> T) -> Option<T> {
    match node.children() {
        None => leaf(SliceId(node.first)),
        Some((left, right)) => match (fold(left, leaf, add), fold(right, leaf, add)) {
            (Some(left), Some(right)) => Some(add(left, right)),
            (left, right) => left.or(right),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(node: Node) -> String {
        match node.children() {
            None => node.first.to_string(),
            Some((left, right)) => format!("({} {})", draw(left), draw(right)),
        }
    }

    /// Golden cases: a change here changes every sum that Convoy ever made.
    #[test]
    fn shapes() {
        let golden = [
            (1, "0"),
            (2, "(0 1)"),
            (3, "((0 1) 2)"),
            (4, "((0 1) (2 3))"),
            (5, "(((0 1) (2 3)) 4)"),
            (6, "(((0 1) (2 3)) (4 5))"),
            (7, "(((0 1) (2 3)) ((4 5) 6))"),
            (8, "(((0 1) (2 3)) ((4 5) (6 7)))"),
        ];
        for (slices, shape) in golden {
            assert_eq!(draw(SliceTree::new(slices).root()), shape);
        }
    }

    #[test]
    fn nodes_and_strangers() {
        let tree = SliceTree::new(6);
        assert!(tree.contains(Node { first: 4, len: 2 }));
        assert_eq!(tree.parent(Node { first: 4, len: 2 }), Some(tree.root()));
        assert!(!tree.contains(Node { first: 1, len: 2 }));
        assert!(!tree.contains(Node { first: 4, len: 3 }));
        assert!(!tree.contains(Node { first: 7, len: 1 }));
        assert!(!tree.contains(Node { first: 0, len: 0 }));
    }

    #[test]
    fn an_absent_slice_is_not_a_zero() {
        let mut add = |left: String, right: String| format!("({left}+{right})");
        let sum = fold(SliceTree::new(5).root(), &mut |s| (s.0 != 1).then(|| s.to_string()), &mut add);
        assert_eq!(sum.as_deref(), Some("((0+(2+3))+4)"));
        assert_eq!(fold(SliceTree::new(3).root(), &mut |_| None::<String>, &mut add), None);
    }

    proptest! {
        #[test]
        fn a_cover_is_exact_and_made_of_nodes(slices in 1u32..40, bits: u64) {
            let tree = SliceTree::new(slices);
            let owned: BTreeSet<_> = (0..slices).filter(|s| bits >> s & 1 == 1).map(SliceId).collect();
            let cover = tree.cover(&owned);
            prop_assert!(cover.iter().all(|node| tree.contains(*node)));
            prop_assert_eq!(cover.iter().flat_map(|n| n.slices()).collect::<Vec<_>>(), owned.iter().copied().collect::<Vec<_>>());
        }
    }
}
