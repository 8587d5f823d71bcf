//! Tokens from rows of logits, one at a time or ahead of the sequence that takes them.
//!
//! For: a sequence's next token; rows of one sequence that several threads draw from at once.
//! Must never: draw in two ways: whoever draws, it is [`draw`].
//! Relies on: noise that belongs to a position (`sampler.rs`), so that a row can be drawn from
//! before those above it, given the ids that they are expected to give.

use crate::sampler::{Drawn, NotFinite, Sampler};

/// The logit that an id gets which may not be drawn: finite, so that penalties leave it finite,
/// and so low that no noise lifts it (docs/spec/numerics.md, rule 6).
const NEVER: f32 = -1e30;

/// What the next token is taken from.
pub(crate) enum Row<'a> {
    /// Logits that nobody has drawn from; they are changed.
    Logits(&'a mut [f32]),
    /// What a [`Drawer`] has drawn.
    Drawn(Result<Drawn, NotFinite>),
}

/// Draws from the rows of a step, one after the other, before the sequence takes them: so that
/// several threads may.
pub(crate) struct Drawer<'t> {
    sampler: Sampler,
    never: &'t [u32],
    position: u32,
}

impl<'t> Drawer<'t> {
    /// One that draws the token at `position` first, and none of `never`; `sampler` has noted
    /// all before it.
    pub(crate) fn new(sampler: Sampler, never: &'t [u32], position: u32) -> Drawer<'t> {
        Drawer { sampler, never, position }
    }

    /// Draws from the next row, whose logits it changes. Of no use once a token was drawn that
    /// wasn't expected.
    pub(crate) fn draw(&mut self, logits: &mut [f32]) -> Result<Drawn, NotFinite> {
        let drawn = draw(&mut self.sampler, (logits, self.never), self.position);
        self.position += 1;
        drawn
    }
}

/// Draws a token, but none of `never`.
pub(crate) fn draw(
    sampler: &mut Sampler,
    (logits, never): (&mut [f32], &[u32]),
    position: u32,
) -> Result<Drawn, NotFinite> {
    for id in never {
        logits.get_mut(*id as usize).into_iter().for_each(|logit| *logit = NEVER);
    }
    sampler.sample(logits, position)
}
