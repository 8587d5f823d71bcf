//! The memory of the KV cache: one allocation, blocks of 16 tokens, half or single precision.
//!
//! For: holding the attention state of all sequences; it is an argument of the forward pass,
//! never part of a layer, so that sequences batch and blocks can move between them.
//! Must never: grow after it was made, or hand one block to two owners.
//! Relies on: the layout that `kernels/attention.rs` defines for a block and layer.

use super::Scope;
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::kernels::attention::Heads;
use crate::kernels::memory::Space;

/// Tokens to a block: also the lanes of a vector, so a key's lane doesn't depend on paging.
pub const BLOCK_TOKENS: usize = 16;

/// What keys and values are stored as. Another type is another engine: its bits differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvType {
    /// Half precision, rounded to nearest even, held to ±65504.
    #[default]
    F16,
    /// Single precision, as they are computed; twice the memory.
    F32,
}

impl KvType {
    fn bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
        }
    }
}

/// All blocks of all layers.
pub(crate) enum Memory {
    F16(Space<u16>),
    F32(Space<f32>),
}

/// A fixed pool of KV blocks.
pub struct KvPool {
    pub(crate) memory: Memory,
    pub(crate) heads: Heads,
    layers: usize,
    free: Vec<u32>,
    total: usize,
    /// Values that were beyond ±65504 and held to it, since the start.
    pub(crate) saturated: u64,
}

/// The blocks that hold one sequence, in order of position. Give it back to whom it is from,
/// with [`KvPool::release`] or `KvCache::end`; a dropped table is a leak of its blocks (never a
/// double use).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    pub(crate) blocks: Vec<u32>,
    /// So many of the first blocks belong to the tree of prefixes: they are only read.
    pub(crate) shared: usize,
    /// With whom prefixes are shared; `None`: nobody.
    pub(super) scope: Option<Scope>,
}

impl BlockTable {
    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }
}

impl KvPool {
    /// As many blocks in half precision as fit into `bytes`. The memory is touched when it is
    /// first used.
    pub fn new(config: &ModelConfig, bytes: u64) -> KvPool {
        KvPool::of_type(config, KvType::F16, bytes)
    }

    /// As many blocks of a type as fit into `bytes`.
    pub fn of_type(config: &ModelConfig, kv_type: KvType, bytes: u64) -> KvPool {
        let total = Self::blocks_in(config, kv_type, bytes);
        Self::with_blocks(config.heads(), config.layers, (kv_type, total))
    }

    /// As [`KvPool::of_type`], for sizes that an operator chose.
    ///
    /// # Errors
    /// [`LoadError::Options`] where not one block fits, or the system does not give the memory.
    pub fn try_of_type(
        config: &ModelConfig,
        kv_type: KvType,
        bytes: u64,
    ) -> Result<KvPool, LoadError> {
        let fail = |reason| LoadError::Options { option: "kv_memory_bytes", reason };
        let total = Self::blocks_in(config, kv_type, bytes);
        if total == 0 {
            let least = Self::block_bytes(config, kv_type);
            return Err(fail(format!("{bytes} bytes, one block takes {least}")));
        }
        let values = total.saturating_mul(config.layers * config.heads().block_values());
        let memory = match kv_type {
            KvType::F16 => Space::try_zeroed(values).map(Memory::F16),
            KvType::F32 => Space::try_zeroed(values).map(Memory::F32),
        };
        let memory =
            memory.ok_or_else(|| fail(format!("{bytes} bytes, more than the system gives")))?;
        Ok(Self::over(memory, (config.heads(), config.layers, total)))
    }

    fn blocks_in(config: &ModelConfig, kv_type: KvType, bytes: u64) -> usize {
        let total = (bytes / Self::block_bytes(config, kv_type)) as usize;
        total.min(u32::MAX as usize)
    }

    /// So many blocks for a model of these sizes.
    pub(crate) fn with_blocks(
        heads: Heads,
        layers: usize,
        (kv_type, total): (KvType, usize),
    ) -> KvPool {
        let values = total * layers * heads.block_values();
        let memory = match kv_type {
            KvType::F16 => Memory::F16(Space::zeroed(values)),
            KvType::F32 => Memory::F32(Space::zeroed(values)),
        };
        Self::over(memory, (heads, layers, total))
    }

    fn over(memory: Memory, (heads, layers, total): (Heads, usize, usize)) -> KvPool {
        KvPool {
            memory,
            heads,
            layers,
            // Lowest block first, so that a run is the same every time.
            free: (0..total as u32).rev().collect(),
            total,
            saturated: 0,
        }
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(config: &ModelConfig, kv_type: KvType) -> u64 {
        (config.layers * config.heads().block_values() * kv_type.bytes()) as u64
    }

    /// Blocks that `tokens` tokens take.
    pub fn blocks_for(tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS)
    }

    /// A table for `tokens` tokens, or `None` if too few blocks are free.
    pub fn allocate(&mut self, tokens: usize) -> Option<BlockTable> {
        let keep = self.free.len().checked_sub(Self::blocks_for(tokens))?;
        let mut blocks = self.free.split_off(keep);
        blocks.reverse();
        Some(BlockTable { blocks, ..BlockTable::default() })
    }

    /// Takes a table's own blocks back.
    pub fn release(&mut self, table: BlockTable) {
        self.free.extend(table.blocks.into_iter().skip(table.shared).rev());
    }

    /// A free block.
    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Takes back a block that nobody uses any more.
    pub(super) fn give(&mut self, block: u32) {
        self.free.push(block);
    }

    /// Copies all of a block, over all layers: a memory copy, however many tokens are wanted.
    pub(super) fn copy_block(&mut self, from: u32, to: u32) {
        let values = self.heads.block_values();
        for layer in 0..self.layers {
            let at = |block: u32| self.layer_at(layer) + block as usize * values;
            let (from, to) = (at(from), at(to));
            match &mut self.memory {
                Memory::F16(cells) => cells.copy_within(from..from + values, to),
                Memory::F32(cells) => cells.copy_within(from..from + values, to),
            }
        }
    }

    /// Blocks that nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    pub fn total_blocks(&self) -> usize {
        self.total
    }

    /// Index of the first value of a layer; its blocks follow one another from there, so that a
    /// sequence in neighbouring blocks is read almost in one run.
    pub(crate) fn layer_at(&self, layer: usize) -> usize {
        layer * self.total * self.heads.block_values()
    }
}
