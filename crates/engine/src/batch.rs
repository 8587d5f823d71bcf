//! What a forward pass is asked for and what it gives.
//!
//! For: callers of a model and the networks behind it, ours and candle's.
//! Must never: hold anything: these are views for the length of one call.
//! Relies on: `kv` for the tables, `kernels::attention` for what a row's place is.

use crate::kernels::attention::RowPlace;
use crate::kv::BlockTable;

/// Which rows of a segment the output head is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: a prefill chunk with more to come.
    None,
    /// The last row: what the next token is sampled from.
    Last,
    /// So many of the last rows, at least one: what the next token and the ones that are expected
    /// after it are sampled from.
    Tail(usize),
    /// Every row, for tests and measurements.
    All,
}

impl Logits {
    /// How many of a segment's `tokens` rows are wanted: the last ones.
    pub(crate) fn rows(self, tokens: usize) -> usize {
        match self {
            Logits::None => 0,
            Logits::Last => tokens.min(1),
            Logits::Tail(rows) => rows.min(tokens),
            Logits::All => tokens,
        }
    }
}

/// Consecutive tokens of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Ids of the tokens, at least one.
    pub tokens: &'a [u32],
    /// Position of the first of them; all before it are in the cache.
    pub start: usize,
    /// The sequence's cache blocks, enough for `start + tokens.len()`.
    pub table: &'a BlockTable,
    /// Rows that logits are wanted for.
    pub logits: Logits,
}

/// Rows that are computed together: prefill chunks and decode rows of several sequences. The
/// result of a row doesn't depend on what else is in the batch.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// One segment for each sequence at most.
    pub segments: Vec<Segment<'a>>,
}

/// What a step gives for the wanted rows, in the order of the batch; the caller's until the next.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// `[wanted rows][vocab]`.
    pub logits: &'a mut [f32],
    /// The normed hidden states that the logits are made of, `[wanted rows][width]`; none where
    /// the model is not canonical.
    pub states: &'a [f32],
}

impl<'a> Batch<'a> {
    /// Ids of all rows, in order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> + Clone + '_ {
        self.segments.iter().flat_map(|segment| segment.tokens).copied()
    }

    /// Position and sequence of all rows, in order.
    pub(crate) fn places(&self) -> Vec<RowPlace> {
        let mut places = Vec::new();
        for (sequence, segment) in self.segments.iter().enumerate() {
            let positions = segment.start..segment.start + segment.tokens.len();
            places.extend(positions.map(|position| RowPlace { position, sequence }));
        }
        places
    }

    /// Cache blocks of each sequence.
    pub(crate) fn tables(&self) -> Vec<&'a [u32]> {
        self.segments.iter().map(|segment| &segment.table.blocks[..]).collect()
    }

    /// Moves the rows of `x`, `[rows, width]`, that logits are wanted for to its front and drops
    /// the others: the head is the largest matrix.
    pub(crate) fn keep_wanted_rows(&self, width: usize, x: &mut Vec<f32>) {
        let (mut first, mut kept) = (0, 0);
        for segment in &self.segments {
            let end = first + segment.tokens.len();
            let count = segment.logits.rows(segment.tokens.len());
            x.copy_within((end - count) * width..end * width, kept * width);
            (first, kept) = (end, kept + count);
        }
        x.truncate(kept * width);
    }
}
