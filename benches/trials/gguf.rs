//! Cheaper copies of a GGUF file: the same tensors, other weights.
//!
//! Reads as much of the format (GGUF specification, version 3) as finding four-bit blocks takes.

/// `Q4_1`: a scale, an offset, and 32 weights of four bits.
const Q4_1: u32 = 3;
const BLOCK_BYTES: usize = 20;
const BLOCK_WEIGHTS: usize = 32;
/// Bytes of scale and offset.
const SCALES: usize = 4;

/// What is done to the file's four-bit weights.
#[derive(Debug, Clone, Copy)]
pub enum Cheaper {
    /// Three bits each.
    ThreeBits,
    /// Those of every `n`-th tensor stand in another order: another model of the same shape.
    Shuffled(usize),
}

/// A copy of the file with other weights.
pub fn cheaper(file: &[u8], how: Cheaper) -> Vec<u8> {
    let mut copy = file.to_vec();
    let tensors = four_bit_tensors(file);
    assert!(!tensors.is_empty(), "the model file has no {Q4_1:?} tensors");
    for (number, (start, weights)) in tensors.into_iter().enumerate() {
        let end = start + weights / BLOCK_WEIGHTS * BLOCK_BYTES;
        for block in copy[start..end].chunks_mut(BLOCK_BYTES) {
            match how {
                Cheaper::ThreeBits => block[SCALES..].iter_mut().for_each(|two| *two &= 0xee),
                Cheaper::Shuffled(each) if number % each == 0 => block[SCALES..].rotate_left(3),
                Cheaper::Shuffled(_) => {}
            }
        }
    }
    copy
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn number(&mut self, bytes: usize) -> usize {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&self.file[self.at..self.at + bytes]);
        self.at += bytes;
        u64::from_le_bytes(word) as usize
    }

    fn text(&mut self) -> String {
        let length = self.number(8);
        self.at += length;
        String::from_utf8_lossy(&self.file[self.at - length..self.at]).into_owned()
    }

    /// Passes over a value of this type.
    fn skip(&mut self, kind: usize) {
        match kind {
            0 | 1 | 7 => self.at += 1,
            2 | 3 => self.at += 2,
            4..=6 => self.at += 4,
            10..=12 => self.at += 8,
            8 => drop(self.text()),
            9 => {
                let (kind, count) = (self.number(4), self.number(8));
                (0..count).for_each(|_| self.skip(kind));
            }
            other => panic!("GGUF value of type {other}"),
        }
    }
}

/// Start and number of weights of each four-bit tensor.
fn four_bit_tensors(file: &[u8]) -> Vec<(usize, usize)> {
    let mut reader = Reader { file, at: 8 };
    let (tensors, values) = (reader.number(8), reader.number(8));
    let mut alignment = 32;
    for _ in 0..values {
        let (key, kind) = (reader.text(), reader.number(4));
        if key == "general.alignment" {
            alignment = reader.number(4);
        } else {
            reader.skip(kind);
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        let (_name, dimensions) = (reader.text(), reader.number(4));
        let weights: usize = (0..dimensions).map(|_| reader.number(8)).product();
        let (kind, offset) = (reader.number(4), reader.number(8));
        if kind == Q4_1 as usize {
            found.push((offset, weights));
        }
    }
    let data = reader.at.next_multiple_of(alignment);
    found.into_iter().map(|(offset, weights)| (data + offset, weights)).collect()
}
