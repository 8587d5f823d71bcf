//! Random choices that follow from a seed alone.

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Lots(u64);

impl Lots {
    /// Choices of their own for each `what` and `number` under one seed.
    pub fn of(seed: u64, what: &str, number: u64) -> Self {
        let text = format!("{seed} {what} {number}");
        let digest = tally::proof::keccak256(text.as_bytes());
        let mut word = [0; 8];
        word.copy_from_slice(&digest.bytes()[..8]);
        Self(u64::from_le_bytes(word))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// From 0 up to, not with, `end`, which is not 0. The bias is below 2^-40 for what is asked.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From `low` to `high`, both included.
    pub fn within(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// Whether something of this chance, in percent, happens.
    pub fn is(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub fn of_these<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    pub fn hash(&mut self) -> tally::units::Hash32 {
        let mut bytes = [0; 32];
        bytes.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_le_bytes()));
        tally::units::Hash32::new(bytes)
    }
}
