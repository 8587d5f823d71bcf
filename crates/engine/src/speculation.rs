//! Drafts by prompt lookup: what followed the last few ids before may follow them again.
//!
//! For: texts that repeat themselves or their prompt (copies, edits, code, quotations): several
//! tokens for one pass over the weights.
//! Must never: decide a token. A draft is fed beside the current token, every position is drawn
//! from its own logits as ever, and only what equals the draft stays: the text and its bits are
//! the same with and without. Nor look at anything but ids.
//! Relies on: noise that belongs to a position (`sampler.rs`), rows that don't depend on what is
//! computed beside them (`model.rs`).

/// Tokens of a draft, at most: with the current one they are eight rows, one group of the
/// kernels.
pub(crate) const DRAFT_MAX: usize = 7;

/// Ids that must have come before in the same order, longest first. Of equally long matches the
/// latest is taken: texts drift.
const MATCH_LENGTHS: [usize; 2] = [3, 2];

/// A row more costs a fifth of a decode step of one row where it was measured (eight rows take
/// 9.4 ms of a core against 4.0 ms; 135 M weights in Q4_1, AVX-512 VNNI), and more on narrower
/// registers: the k-th token of a draft is worth its row where it is accepted at least this
/// often, which is acceptance to the power of k.
const ROW_COST: f32 = 0.35;

/// Weight of the newest observation in the average: some four tokens decide.
const NEWEST: f32 = 0.25;

/// One sequence's drafts and how good they are.
#[derive(Debug, Clone)]
pub(crate) struct Speculation {
    /// How often a proposed id was the drawn one, lately. Proposals that weren't fed count too:
    /// looking costs nothing, so a text that begins to repeat itself is noticed without a wrong
    /// row.
    acceptance: f32,
    /// What is expected from the next drawn id on, as far as it came true.
    expected: Vec<u32>,
    /// How much of it has come true.
    come_true: usize,
}

impl Default for Speculation {
    /// One token at first: good for it, and not much lost.
    fn default() -> Self {
        Speculation { acceptance: 0.4, expected: Vec::new(), come_true: 0 }
    }
}

impl Speculation {
    /// Looks up what may follow `ids`; gives as much of it as is worth feeding, at most `room`
    /// ids, none of which is in `ends`.
    pub(crate) fn draft(&mut self, ids: &[u32], room: usize, ends: &[u32]) -> &[u32] {
        self.come_true = 0;
        propose(ids, &mut self.expected);
        // An end needs no row of its own: it is drawn from the row before it.
        let open = self.expected.iter().take_while(|id| !ends.contains(id)).count();
        &self.expected[..open.min(room).min(self.worth())]
    }

    /// Notes what was drawn next.
    pub(crate) fn observe(&mut self, drawn: u32) {
        let Some(expected) = self.expected.get(self.come_true) else { return };
        let is_hit = *expected == drawn;
        let seen = if is_hit { 1.0 } else { 0.0 };
        self.acceptance += (seen - self.acceptance) * NEWEST;
        match is_hit {
            true => self.come_true += 1,
            false => self.expected.clear(),
        }
    }

    /// Tokens that are worth their rows.
    fn worth(&self) -> usize {
        let mut chance = 1.0;
        let worth = (0..DRAFT_MAX).take_while(|_| {
            chance *= self.acceptance;
            chance >= ROW_COST
        });
        worth.count()
    }
}

/// What followed the last occurrence of the last ids, up to [`DRAFT_MAX`]; nothing where there
/// was none. A repetition that reaches the end goes on as it began.
fn propose(ids: &[u32], into: &mut Vec<u32>) {
    into.clear();
    let matched = MATCH_LENGTHS.into_iter().find_map(|length| {
        let last = &ids[ids.len().checked_sub(length)?..];
        // An occurrence may overlap the last ids themselves, as in a run of one id.
        let before = &ids[..ids.len() - 1];
        before.windows(length).rposition(|window| window == last).map(|at| at + length)
    });
    let Some(start) = matched else { return };
    let period = ids.len() - start;
    into.extend((0..DRAFT_MAX).map(|i| ids[start + i % period]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proposed(ids: &[u32]) -> Vec<u32> {
        let mut proposal = Vec::new();
        propose(ids, &mut proposal);
        proposal
    }

    #[test]
    fn what_followed_the_last_ids_before_is_proposed() {
        #[rustfmt::skip]
        let table: [(&[u32], &[u32]); 9] = [
            // Too short, or never there before.
            (&[], &[]),
            (&[1, 1], &[]),
            (&[1, 2, 3, 4, 5], &[]),
            // Three ids, then two.
            (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], &[4, 5, 6, 7, 8, 9, 1]),
            (&[2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], &[4, 5, 6, 7, 8, 9, 1]),
            // Three ids before two ids that came later; of equally long ones the latest.
            (&[1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], &[4, 9, 2, 3, 5, 1, 2]),
            (&[2, 3, 4, 0, 2, 3, 5, 2, 3], &[5, 2, 3, 5, 2, 3, 5]),
            // Repetitions go on: of one id, and of several.
            (&[7, 7, 7], &[7, 7, 7, 7, 7, 7, 7]),
            (&[0, 1, 2, 0, 1, 2], &[0, 1, 2, 0, 1, 2, 0]),
        ];
        for (ids, expected) in table {
            assert_eq!(proposed(ids), expected, "{ids:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_proposal_is_what_an_earlier_occurrence_went_on_with(
            ids in prop::collection::vec(0..4u32, 0..60),
        ) {
            let proposal = proposed(&ids);
            let occurs = |n: usize| {
                ids.len() > n && ids[..ids.len() - 1].windows(n).any(|w| w == &ids[ids.len() - n..])
            };
            prop_assert_eq!(!proposal.is_empty(), occurs(2));
            if !proposal.is_empty() {
                let n = if occurs(3) { 3 } else { 2 };
                // With the ids before it the beginning stands in the text as it was.
                let whole: Vec<u32> = ids.iter().chain(&proposal).copied().collect();
                let end = &whole[ids.len() - n..=ids.len()];
                prop_assert!(ids.windows(n + 1).any(|w| w == end));
            }
        }

        #[test]
        fn a_draft_is_a_beginning_of_the_proposal_within_room_and_before_an_end(
            ids in prop::collection::vec(0..4u32, 0..60),
            drawn in prop::collection::vec(0..4u32, 0..20),
            room in 0..10usize,
            ends in prop::collection::vec(0..4u32, 0..2),
        ) {
            let mut speculation = Speculation::default();
            let mut text = ids.clone();
            for id in drawn {
                let draft = speculation.draft(&text, room, &ends).to_vec();
                prop_assert!(draft.len() <= room.min(DRAFT_MAX));
                prop_assert!(proposed(&text).starts_with(&draft));
                prop_assert!(draft.iter().all(|id| !ends.contains(id)));
                speculation.observe(id);
                text.push(id);
            }
            prop_assert!((0.0..=1.0).contains(&speculation.acceptance));
        }
    }

    /// Feeds `text` token by token; gives rows fed beyond the plain ones, and steps.
    fn run(speculation: &mut Speculation, prompt: &[u32], text: &[u32]) -> (usize, usize) {
        let mut ids = prompt.to_vec();
        let (mut wasted, mut steps) = (0, 0);
        let mut left = text;
        while !left.is_empty() {
            let draft = speculation.draft(&ids, left.len() - 1, &[]).to_vec();
            let hits = draft.iter().zip(left).take_while(|(a, b)| a == b).count();
            let (taken, rest) = left.split_at(hits + 1);
            taken.iter().for_each(|id| speculation.observe(*id));
            ids.extend(taken);
            left = rest;
            wasted += draft.len() - hits;
            steps += 1;
        }
        (wasted, steps)
    }

    #[test]
    fn a_copied_text_takes_few_steps() {
        let text: Vec<u32> = (100..400).collect();
        let prompt: Vec<u32> = text.iter().copied().chain([1, 2, 3]).collect();
        let (wasted, steps) = run(&mut Speculation::default(), &prompt, &text);
        // Eight at a time but for the first few.
        assert!(steps < 300 / 8 + 10, "{steps}");
        assert!(wasted < 8, "{wasted}");
    }

    #[test]
    fn a_text_that_never_keeps_its_promise_costs_almost_no_rows() {
        // Of twelve ids every pair has come before, and goes on at random.
        let random = |i: u32| crate::philox::philox4x32_10([i, 0, 0, 0], [7, 7])[0] % 12;
        let (prompt, text): (Vec<u32>, Vec<u32>) =
            ((0..3000).map(random).collect(), (3000..5000).map(random).collect());
        let (wasted, steps) = run(&mut Speculation::default(), &prompt, &text);
        assert!(steps > 1800, "{steps}");
        // One wasted row in twenty tokens costs less than two hundredths of the time.
        assert!(wasted < text.len() / 20, "{wasted}");
    }

    #[test]
    fn a_text_that_begins_to_repeat_itself_is_noticed_without_drafts() {
        let mut speculation = Speculation { acceptance: 0.0, ..Speculation::default() };
        let period: Vec<u32> = (10..30).collect();
        let text: Vec<u32> = period.iter().cycle().take(200).copied().collect();
        let (wasted, steps) = run(&mut speculation, &[], &text);
        assert!(wasted <= 2 && steps < 70, "{wasted} {steps}");
    }
}
