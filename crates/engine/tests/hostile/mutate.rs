//! Seeded damage to a file.

use crate::gguf_file::Mark;

/// SplitMix64 (Steele, Lea, Flood 2014): a seed gives the same damage on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 to `end`, which is not reached.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// As many seeds as the test asks for, or as many as `TALLY_TEST_HOSTILE_SEEDS` says: a longer
/// search by hand.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("TALLY_TEST_HOSTILE_SEEDS").ok();
    0..asked.and_then(|count| count.parse().ok()).unwrap_or(count)
}

/// Does one to three kinds of damage to the first `header` bytes; says what was done.
pub fn damage(bytes: &mut Vec<u8>, header: usize, marks: &[Mark], random: &mut Random) -> String {
    let mut done = String::new();
    for _ in 0..=random.below(3) {
        let header = header.min(bytes.len());
        let at = random.below(header);
        match random.below(6) {
            0 => {
                let bit = random.below(8);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << bit;
                }
                done += &format!("bit {bit} of byte {at}; ");
            }
            1 => {
                let length = random.below(bytes.len());
                bytes.truncate(length);
                done += &format!("cut to {length}; ");
            }
            2 | 3 => {
                let mark = marks.get(random.below(marks.len())).copied();
                let Mark { at, bytes: width } = mark.unwrap_or(Mark { at, bytes: 8 });
                let value = extreme(bytes.len() as u64, random);
                if let Some(field) = bytes.get_mut(at..at + width) {
                    field.copy_from_slice(&value.to_le_bytes()[..width]);
                }
                done += &format!("{value} at {at}; ");
            }
            4 => {
                let count = random.below(24);
                let (from, end) = (random.below(header), (at + count).min(bytes.len()));
                let end_from = (from + end.saturating_sub(at)).min(bytes.len());
                let piece = bytes[from..end_from].to_vec();
                bytes.splice(at.min(end)..end, piece);
                done += &format!("{from}..{end_from} over {at}; ");
            }
            _ => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
                done += &format!("without {at}..{end}; ");
            }
        }
    }
    done
}

/// Puts something else in the place of a number of a text; says what.
pub fn renumber(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let others = [
        "0",
        "1",
        "-1",
        "2",
        "31",
        "33",
        "0.5",
        "1e300",
        "868",
        "869",
        "897",
        "65536",
        "16777217",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "null",
        "true",
        "\"7\"",
        "[]",
        "{}",
    ];
    let at = random.below(bytes.len());
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = bytes[at..].iter().position(is_digit).map(|found| at + found) else {
        return String::new();
    };
    let end = start + bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
    let other = others[random.below(others.len())];
    bytes.splice(start..end, other.bytes());
    format!("{other} at {start}; ")
}

/// A number that breaks what trusts it.
fn extreme(length: u64, random: &mut Random) -> u64 {
    let values = [
        0,
        1,
        2,
        5,
        9,
        31,
        33,
        length - 1,
        length,
        length + 1,
        1 << 24,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        1 << 40,
        1 << 61,
        1 << 62,
        1 << 63,
        u64::MAX - 31,
        u64::MAX,
    ];
    values[random.below(values.len())]
}
