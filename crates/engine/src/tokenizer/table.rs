//! A vocabulary's texts, and ids by text and by pair.
//!
//! For: both BPE kinds; a vocabulary of 128,000 tokens and 280,000 merges is in memory within
//! tens of milliseconds, without a string of its own per entry.
//! Must never: grow after it was built, or by anything a client sends: the hash is a quick one,
//! with no defence against chosen keys.
//! Relies on: nothing.

/// Texts by id, one after another; at most 4 GB of them.
#[derive(Debug, Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    /// Where each text ends.
    ends: Vec<u32>,
}

impl Texts {
    /// Room for `count` texts of `bytes` in all.
    pub(super) fn with_room(count: usize, bytes: usize) -> Texts {
        Texts { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(count) }
    }

    /// Adds the text of the next id, which `write` appends to the bytes it is given.
    pub(super) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Adds the text of the next id.
    pub(super) fn push(&mut self, text: &[u8]) {
        self.push_with(|bytes| bytes.extend_from_slice(text));
    }

    /// The text of `id`, empty if there is no such id.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let at = id as usize;
        let Some(end) = self.ends.get(at) else { return &[] };
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..*end as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// An id, and bits of its text's hash that its place doesn't tell: most other texts are told
/// apart without a look at them.
type Slot = (u32, u32);

const EMPTY: u32 = u32::MAX;

/// Ids by text. The texts themselves stay where they are.
#[derive(Debug)]
pub(super) struct Ids {
    /// Ids where their text's hash leads, or just after; a power of two of them.
    slots: Vec<Slot>,
    /// Bytes of the longest text.
    longest: usize,
}

impl Ids {
    /// Room for `count` texts.
    pub(super) fn with_room(count: usize) -> Ids {
        Ids { slots: vec![(EMPTY, 0); slots_for(count)], longest: 0 }
    }

    /// Adds `id`; gives the id that has the same text already.
    pub(super) fn insert(&mut self, texts: &Texts, id: u32) -> Option<u32> {
        let text = texts.get(id);
        let (at, tag) = self.find(texts, text);
        let found = self.slots[at].0;
        if found != EMPTY {
            return Some(found);
        }
        self.slots[at] = (id, tag);
        self.longest = self.longest.max(text.len());
        None
    }

    /// The id of `text`.
    pub(super) fn get(&self, texts: &Texts, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        let (at, _) = self.find(texts, text);
        Some(self.slots[at].0).filter(|id| *id != EMPTY)
    }

    /// The slot of `text`, or the free one where it belongs, and its tag.
    fn find(&self, texts: &Texts, text: &[u8]) -> (usize, u32) {
        let hash = hash(text);
        let (mut at, tag) = (hash as usize & (self.slots.len() - 1), (hash >> 32) as u32);
        loop {
            let (id, other) = self.slots[at];
            if id == EMPTY || (other == tag && texts.get(id) == text) {
                return (at, tag);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

/// What two tokens side by side become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    /// Lower goes first.
    pub(super) rank: u32,
    /// The token that takes their place.
    pub(super) id: u32,
}

/// Merges by pair of ids.
#[derive(Debug)]
pub(super) struct Merges {
    slots: Vec<(u64, Merge)>,
}

/// No pair: it would take a vocabulary of 2^32 tokens.
const NO_PAIR: u64 = u64::MAX;

impl Merges {
    /// Room for `count` merges.
    pub(super) fn with_room(count: usize) -> Merges {
        Merges { slots: vec![(NO_PAIR, Merge { rank: 0, id: 0 }); slots_for(count)] }
    }

    /// Adds a merge; of two for one pair the later one holds.
    pub(super) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let at = self.find(pair(left, right));
        self.slots[at] = (pair(left, right), merge);
    }

    /// What `left` and `right` become.
    pub(super) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let (found, merge) = self.slots[self.find(pair(left, right))];
        (found != NO_PAIR).then_some(merge)
    }

    /// The slot of `pair`, or the free one where it belongs.
    fn find(&self, pair: u64) -> usize {
        let mut at = mix(pair) as usize & (self.slots.len() - 1);
        while self.slots[at].0 != pair && self.slots[at].0 != NO_PAIR {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// A power of two with at least a third of the slots free, so that every search ends soon.
fn slots_for(count: usize) -> usize {
    (count + count / 2 + 1).next_power_of_two()
}

/// Spreads `x` over all bits. Source: the finaliser of splitmix64 (Steele et al. 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn hash(text: &[u8]) -> u64 {
    let mut state = text.len() as u64;
    for chunk in text.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(word));
    }
    state
}
