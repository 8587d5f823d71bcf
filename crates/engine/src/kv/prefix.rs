//! The tree of cached prefixes: which block holds which tokens after which others.
//!
//! For: finding the longest cached beginning of a sequence; saying which block to give up when
//! room is needed. An edge is the ids of one block, up to 16; a path from a root is a prefix,
//! from position 0. Only full blocks have others after them.
//! Must never: touch the memory of a block, or give up one that somebody uses.
//! Relies on: callers who hold a path from its beginning, so that whoever holds a block holds
//! all before it, and what nobody holds can be given up from its ends.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{BLOCK_TOKENS, Scope};

/// Blocks by the ids in them. In their order, so that the ones that begin most like given ids
/// are their neighbours.
type Children = BTreeMap<Box<[u32]>, u32>;

/// What a block comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parent {
    /// Nothing: it holds the first tokens of sequences of this scope.
    Root(Scope),
    /// A full block.
    Block(u32),
}

struct Node {
    parent: Parent,
    ids: Box<[u32]>,
    children: Children,
    /// Tables that hold the block.
    users: usize,
    /// When it was last let go or copied, in the tree's own time.
    used_at: u64,
}

/// The longest cached beginning of some ids.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Blocks whose tokens are all wanted, in order.
    pub(super) full: Vec<u32>,
    /// A block that begins with the next so many tokens.
    pub(super) part: Option<(u32, usize)>,
}

impl Found {
    pub(super) fn tokens(&self) -> usize {
        self.full.len() * BLOCK_TOKENS + self.part.map_or(0, |(_, count)| count)
    }
}

/// What became of a block that was given to the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It is the tree's. `replaced` held a beginning of it, and is the caller's now.
    Kept { replaced: Option<u32> },
    /// This block holds the same tokens, or more; the given one stays the caller's.
    Known(u32),
}

/// All prefixes of all scopes.
#[derive(Default)]
pub(super) struct PrefixTree {
    roots: BTreeMap<Scope, Children>,
    nodes: BTreeMap<u32, Node>,
    /// Blocks that nobody uses and that nothing comes after: least recently used first.
    idle_leaves: BTreeSet<(u64, u32)>,
    idle: usize,
    time: u64,
}

impl PrefixTree {
    /// Blocks that nobody uses. All of them can be evicted, the last ones of a path first.
    pub(super) fn idle_blocks(&self) -> usize {
        self.idle
    }

    pub(super) fn contains(&self, block: u32) -> bool {
        self.nodes.contains_key(&block)
    }

    pub(super) fn is_used(&self, block: u32) -> bool {
        self.nodes.get(&block).is_some_and(|node| node.users > 0)
    }

    /// The longest beginning of `ids` that is cached for `scope`.
    pub(super) fn find(&self, scope: Scope, ids: &[u32]) -> Found {
        let mut found = Found::default();
        let mut children = self.roots.get(&scope);
        for wanted in ids.chunks(BLOCK_TOKENS) {
            let Some((block, count)) = children.and_then(|here| closest(here, wanted)) else {
                break;
            };
            if count < BLOCK_TOKENS {
                found.part = Some((block, count)).filter(|_| count > 0);
                break;
            }
            found.full.push(block);
            children = self.nodes.get(&block).map(|node| &node.children);
        }
        found
    }

    /// Counts one more user of each block.
    pub(super) fn hold(&mut self, blocks: &[u32]) {
        for block in blocks {
            let Some(node) = self.nodes.get_mut(block) else { continue };
            if node.users == 0 {
                self.idle -= 1;
                self.idle_leaves.remove(&(node.used_at, *block));
            }
            node.users += 1;
        }
    }

    /// Counts one user less of each block; they are the most recently used now.
    pub(super) fn let_go(&mut self, blocks: &[u32]) {
        self.time += 1;
        for block in blocks {
            let Some(node) = self.nodes.get_mut(block) else { continue };
            node.users = node.users.saturating_sub(1);
            node.used_at = self.time;
            if node.users == 0 {
                self.idle += 1;
                self.note_idle_leaf(*block);
            }
        }
    }

    /// Makes an idle block the most recently used one.
    pub(super) fn touch(&mut self, block: u32) {
        self.hold(&[block]);
        self.let_go(&[block]);
    }

    /// Adds `block`, which holds `ids` after `parent`, as one that nobody uses yet. The parent
    /// must be held by the caller.
    pub(super) fn insert(&mut self, parent: Parent, ids: &[u32], block: u32) -> Inserted {
        let near = self.children(parent).and_then(|here| closest(here, ids));
        let mut replaced = None;
        if let Some((other, count)) = near {
            if count == ids.len() {
                return Inserted::Known(other);
            }
            // A part of a block of which there is more now.
            if self.nodes.get(&other).is_some_and(|node| node.ids.len() == count) {
                self.remove(other);
                replaced = Some(other);
            }
        }
        let siblings = match parent {
            Parent::Root(scope) => Some(self.roots.entry(scope).or_default()),
            Parent::Block(before) => self.nodes.get_mut(&before).map(|node| &mut node.children),
        };
        if let Some(siblings) = siblings {
            siblings.insert(ids.into(), block);
        }
        let (ids, children) = (ids.into(), Children::new());
        let node = Node { parent, ids, children, users: 0, used_at: self.time };
        self.nodes.insert(block, node);
        self.idle += 1;
        self.note_idle_leaf(block);
        Inserted::Kept { replaced }
    }

    /// Takes the least recently used block that nobody uses and that nothing comes after.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, block) = *self.idle_leaves.first()?;
        self.remove(block);
        Some(block)
    }

    fn children(&self, parent: Parent) -> Option<&Children> {
        match parent {
            Parent::Root(scope) => self.roots.get(&scope),
            Parent::Block(before) => self.nodes.get(&before).map(|node| &node.children),
        }
    }

    /// Removes an idle leaf.
    fn remove(&mut self, block: u32) {
        let Some(node) = self.nodes.remove(&block) else { return };
        self.idle -= 1;
        self.idle_leaves.remove(&(node.used_at, block));
        match node.parent {
            Parent::Root(scope) => {
                if let Some(siblings) = self.roots.get_mut(&scope) {
                    siblings.remove(&node.ids);
                    if siblings.is_empty() {
                        self.roots.remove(&scope);
                    }
                }
            }
            Parent::Block(before) => {
                if let Some(parent) = self.nodes.get_mut(&before) {
                    parent.children.remove(&node.ids);
                }
                self.note_idle_leaf(before);
            }
        }
    }

    fn note_idle_leaf(&mut self, block: u32) {
        if let Some(node) = self.nodes.get(&block)
            && node.users == 0
            && node.children.is_empty()
        {
            self.idle_leaves.insert((node.used_at, block));
        }
    }
}

/// The block that begins most like `ids`, and for how many of them.
fn closest(children: &Children, ids: &[u32]) -> Option<(u32, usize)> {
    let up_to = (Bound::Unbounded, Bound::Included(ids));
    let beyond = (Bound::Excluded(ids), Bound::Unbounded);
    let before = children.range::<[u32], _>(up_to).next_back();
    let after = children.range::<[u32], _>(beyond).next();
    let alike = |other: &[u32]| other.iter().zip(ids).take_while(|(a, b)| a == b).count();
    let near = before.into_iter().chain(after).map(|(other, block)| (*block, alike(other)));
    near.max_by_key(|(_, count)| *count)
}
