//! The sum tree over chunks: counts add up by construction.
//!
//! Never reorders leaves. An odd one out is promoted to the next level as it is.

use super::preimage::Preimage;
use crate::units::Hash32;

const TAG_NODE: u8 = 0x02;

/// A leaf or an inner node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub hash: Hash32,
    /// Tokens in the leaves below.
    pub tokens: u32,
}

impl Node {
    fn over(left: Self, right: Self) -> Option<Self> {
        let tokens = left.tokens.checked_add(right.tokens)?;
        let hash = Preimage::tagged(TAG_NODE)
            .hash(left.hash)
            .u32(left.tokens)
            .hash(right.hash)
            .u32(right.tokens)
            .finish();
        Some(Self { hash, tokens })
    }
}

/// The top of the tree over `leaves`; `None` for no leaves or more than 2^32 - 1 tokens.
pub(super) fn top(leaves: &[Node]) -> Option<Node> {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => Node::over(*left, *right),
                [odd] => Some(*odd),
                _ => None,
            })
            .collect::<Option<Vec<Node>>>()?;
    }
    level.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(mark: u8, tokens: u32) -> Node {
        Node { hash: Hash32::new([mark; 32]), tokens }
    }

    #[test]
    fn an_odd_leaf_is_promoted_and_counts_add_up() {
        let (a, b, c) = (leaf(1, 32), leaf(2, 5), leaf(3, 1));
        assert_eq!(top(&[]), None);
        assert_eq!(top(&[a]), Some(a));
        let ab = Node::over(a, b).unwrap();
        assert_eq!(top(&[a, b]), Some(ab));
        assert_eq!(top(&[a, b, c]), Node::over(ab, c));
        assert_eq!(top(&[a, b, c]).unwrap().tokens, 38);
        assert_ne!(top(&[b, a, c]), top(&[a, b, c]));
    }

    #[test]
    fn a_sum_past_the_width_of_a_count_has_no_top() {
        assert_eq!(top(&[leaf(1, u32::MAX), leaf(2, 1)]), None);
    }
}
