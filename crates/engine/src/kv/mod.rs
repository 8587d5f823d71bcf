//! The KV cache: blocks of memory, and what of it is kept for those who begin alike.
//!
//! For: giving sequences the blocks they need, with as many of their tokens as the cache knows
//! already in them. A block is in one place at a time: free, a table's own, or in the tree of
//! prefixes, where tables share it.
//! Must never: let a table write to a block that others may read; hand tokens of one scope to
//! another; lose a block.
//! Relies on: `pool.rs` for the memory, `prefix.rs` for the tree, and on equal ids at equal
//! positions giving equal bits (docs/spec/numerics.md), so that one copy serves all.
//!
//! ```text
//! begin ─▶ [shared │ shared │ copied │ own …]   a table: what the tree knows, then its own
//! keep  ─▶ own blocks that are full go to the tree, and are shared from then on
//! end   ─▶ so does the last part of a block; the tree keeps them until room is needed
//! ```

mod pool;
mod prefix;
#[cfg(test)]
mod tests;

pub(crate) use pool::Memory;
pub use pool::{BLOCK_TOKENS, BlockTable, KvPool, KvType};

use prefix::{Found, Inserted, Parent, PrefixTree};

/// Sequences share prefixes within a scope and never across: what is cached already is answered
/// sooner, so a prompt's time tells what others in its scope have sent.
pub type Scope = [u8; 32];

/// A pool of blocks, and the prefixes that are cached in it.
pub struct KvCache {
    /// The memory: what the forward pass is given.
    pub pool: KvPool,
    tree: PrefixTree,
    counts: CacheCounts,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Sequences that found a part of their tokens in the cache.
    pub hits: u64,
    /// Tokens that they found.
    pub hit_tokens: u64,
    /// Blocks that were taken from the tree for lack of free ones.
    pub evictions: u64,
}

/// How much of a sequence the cache has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Tokens from its beginning, at most all but one: the last one's logits are wanted.
    pub(crate) tokens: usize,
    /// Blocks of them that other tables use now: to share these takes no room.
    pub(crate) blocks_in_use: usize,
}

impl KvCache {
    /// A cache over the whole pool, of which nothing may be allocated yet.
    pub fn new(pool: KvPool) -> KvCache {
        KvCache { pool, tree: PrefixTree::default(), counts: CacheCounts::default() }
    }

    /// Blocks that a table could get: free ones and cached ones that nobody uses.
    pub fn available_blocks(&self) -> usize {
        self.pool.free_blocks() + self.tree.idle_blocks()
    }

    /// Blocks in the tree that nobody uses.
    pub fn idle_blocks(&self) -> usize {
        self.tree.idle_blocks()
    }

    /// What happened since the start.
    pub fn counts(&self) -> CacheCounts {
        self.counts
    }

    /// How much of `ids` the cache has for `scope`; nothing without a scope.
    pub(crate) fn known(&self, scope: Option<Scope>, ids: &[u32]) -> Known {
        let found = self.find(scope, ids);
        let in_use = found.full.iter().filter(|block| self.tree.is_used(**block));
        Known { tokens: found.tokens(), blocks_in_use: in_use.count() }
    }

    /// A table for `tokens` tokens that begin with `ids`, and how many of `ids` are in it
    /// already: at most all but one. `None` if too few blocks are available.
    ///
    /// Without a scope nothing is taken from others, or left to them later.
    pub fn begin(
        &mut self,
        scope: Option<Scope>,
        ids: &[u32],
        tokens: usize,
    ) -> Option<(BlockTable, usize)> {
        let Found { full, part } = self.find(scope, ids);
        // Held before anything is evicted for the rest of the table.
        self.tree.hold(&full);
        if let Some((source, _)) = part {
            self.tree.touch(source);
        }
        let mut cached = full.len() * BLOCK_TOKENS;
        let mut table = BlockTable { shared: full.len(), blocks: full, scope };
        if !self.grow(&mut table, tokens) {
            self.tree.let_go(&table.blocks);
            return None;
        }
        // The last block to be evicted, so it is gone only if there was no other.
        if let Some((source, count)) = part
            && self.tree.contains(source)
            && let Some(own) = table.blocks.get(table.shared)
        {
            self.pool.copy_block(source, *own);
            cached += count;
        }
        self.counts.hits += u64::from(cached > 0);
        self.counts.hit_tokens += cached as u64;
        Some((table, cached))
    }

    /// Makes room for `tokens` tokens in all; false, and nothing changed, if too few blocks are
    /// available.
    pub fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let wanted = KvPool::blocks_for(tokens).saturating_sub(table.blocks.len());
        if wanted > self.available_blocks() {
            return false;
        }
        for _ in 0..wanted {
            let block = self.pool.take().or_else(|| {
                self.counts.evictions += 1;
                self.tree.evict()
            });
            table.blocks.extend(block);
        }
        true
    }

    /// Leaves the full blocks of `ids`, which are the tokens that are computed, to the tree:
    /// from then on they are shared, and nobody writes to them.
    ///
    /// What is left can't be taken back: of tokens that were only guessed, call it after the
    /// wrong ones were cut off.
    pub fn keep(&mut self, table: &mut BlockTable, ids: &[u32]) {
        while (table.shared + 1) * BLOCK_TOKENS <= ids.len() {
            let part = &ids[table.shared * BLOCK_TOKENS..][..BLOCK_TOKENS];
            if !self.leave_next(table, part) {
                return;
            }
            self.tree.hold(&table.blocks[table.shared..=table.shared]);
            table.shared += 1;
        }
    }

    /// Takes a table back. What is in it of `ids`, the tokens that are computed, stays in the
    /// tree until room is needed.
    pub fn end(&mut self, mut table: BlockTable, ids: &[u32]) {
        self.keep(&mut table, ids);
        let tail = ids.get(table.shared * BLOCK_TOKENS..).unwrap_or_default();
        let is_left = !tail.is_empty() && self.leave_next(&mut table, tail);
        let own = table.blocks.split_off(table.shared + usize::from(is_left));
        own.into_iter().rev().for_each(|block| self.pool.give(block));
        self.tree.let_go(&table.blocks[..table.shared]);
    }

    /// Forgets every prefix that nobody uses.
    pub fn clear(&mut self) {
        while let Some(block) = self.tree.evict() {
            self.pool.give(block);
        }
    }

    /// Leaves the table's first own block, which holds `ids`, to the tree. Whatever the tree
    /// has in its place then stands in the table. False without a scope.
    fn leave_next(&mut self, table: &mut BlockTable, ids: &[u32]) -> bool {
        let at = table.shared;
        let (Some(scope), Some(own)) = (table.scope, table.blocks.get(at).copied()) else {
            return false;
        };
        let parent = match at.checked_sub(1) {
            None => Parent::Root(scope),
            Some(before) => Parent::Block(table.blocks[before]),
        };
        let not_needed = match self.tree.insert(parent, ids, own) {
            Inserted::Kept { replaced } => replaced,
            Inserted::Known(other) => {
                table.blocks[at] = other;
                Some(own)
            }
        };
        not_needed.into_iter().for_each(|block| self.pool.give(block));
        true
    }

    fn find(&self, scope: Option<Scope>, ids: &[u32]) -> Found {
        let wanted = &ids[..ids.len().saturating_sub(1)];
        scope.map_or_else(Found::default, |scope| self.tree.find(scope, wanted))
    }
}
