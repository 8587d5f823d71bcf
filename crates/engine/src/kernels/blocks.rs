//! GGUF's weight formats: quantised blocks, read weight by weight, and plain floats.
//!
//! For: the one place that knows how a file lays its weights out.
//! Must never: round, or multiply: what the file keeps in two factors stays in two.
//! Relies on: ggml's block formats (GGUF specification; ggml `block_q4_0` … `block_q6_K`).

/// Weights that share a scale of a product's arithmetic, along k.
pub(crate) const BLOCK: usize = 32;

/// Weights of a K-format's super-block.
const SUPER: usize = 256;

/// GGUF formats that can be packed; value = d·q (+ m).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// q in −8..8, four bits.
    Q4_0,
    /// q in 0..16, four bits, with minimum.
    Q4_1,
    /// q in −16..16, five bits.
    Q5_0,
    /// q in 0..32, five bits, with minimum.
    Q5_1,
    /// q in −128..128.
    Q8_0,
    /// q in 0..16, four bits, with minimum; d and m are products of a half and six bits.
    Q4K,
    /// q in 0..32, five bits; else as `Q4K`.
    Q5K,
    /// q in −32..32, six bits; d is the product of a half and eight bits, and each 16 weights have
    /// one of their own.
    Q6K,
    /// IEEE half precision, not quantised.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl Format {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Format; 11] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::F16,
        Format::Bf16,
        Format::F32,
    ];

    /// Weights of one GGUF block; a row is a whole number of them. Floats have no blocks in the
    /// file; ours are of 32.
    pub(crate) fn block_weights(self) -> usize {
        match self {
            Format::Q4K | Format::Q5K | Format::Q6K => SUPER,
            _ => BLOCK,
        }
    }

    /// Whether weights are not quantised.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Format::F16 | Format::Bf16 | Format::F32)
    }

    /// Bytes of one GGUF block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
            Format::F16 | Format::Bf16 => 2 * BLOCK,
            Format::F32 => 4 * BLOCK,
        }
    }

    /// Whether a block has a minimum that is added to each weight.
    pub(crate) fn has_minimum(self) -> bool {
        matches!(self, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K)
    }

    /// Bits that a weight is packed to; 0 for floats.
    pub(crate) fn bits(self) -> usize {
        match self {
            Format::Q4_0 | Format::Q4_1 | Format::Q4K => 4,
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => 5,
            Format::Q6K => 6,
            Format::Q8_0 => 8,
            Format::F16 | Format::Bf16 | Format::F32 => 0,
        }
    }

    /// Blocks of 32 that share their halves; each then has two factors of its own where it is
    /// more than one.
    pub(crate) fn scale_blocks(self) -> usize {
        self.block_weights() / BLOCK
    }

    /// What is added to q in the packed form.
    pub(crate) fn zero(self) -> i32 {
        match self {
            Format::Q4_0 => 8,
            Format::Q5_0 => 16,
            Format::Q6K => 32,
            Format::Q8_0 => 128,
            _ => 0,
        }
    }
}

/// 32 weights along k, as the file has them: nothing is rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Block {
    /// q + zero.
    pub(crate) stored: [u8; BLOCK],
    /// Half precision bits of the scale, and of the minimum that is added to each weight.
    pub(crate) halves: [u16; 2],
    /// In K-formats the whole numbers that the halves are multiplied by: of scale and minimum,
    /// or signed ones of the scale in the first and second 16 weights.
    pub(crate) factors: [u8; 2],
}

/// The `nth` 32 weights of a GGUF block of a quantised format.
pub(crate) fn block(format: Format, raw: &[u8], nth: usize) -> Block {
    match format {
        Format::Q4K | Format::Q5K => minimum_k(format, raw, nth),
        Format::Q6K => halves_k(raw, nth),
        _ => plain(format, raw),
    }
}

fn half(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([raw[at], raw[at + 1]])
}

/// The formats of 32 weights: scale, (minimum,) (32 fifth bits,) weights.
fn plain(format: Format, raw: &[u8]) -> Block {
    let minimum = if format.has_minimum() { half(raw, 2) } else { 0 };
    let rest = &raw[if format.has_minimum() { 4 } else { 2 }..];
    let mut stored = [0; BLOCK];
    if format.bits() == 8 {
        for (stored, q) in stored.iter_mut().zip(rest) {
            *stored = q ^ 0x80;
        }
    } else {
        // Byte k holds the low four bits of weights k and k + 16.
        let (fifths, nibbles) = rest.split_at(if format.bits() == 5 { 4 } else { 0 });
        let (low, high) = stored.split_at_mut(BLOCK / 2);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
        if let [a, b, c, d] = *fifths {
            let bits = u32::from_le_bytes([a, b, c, d]);
            for (k, stored) in stored.iter_mut().enumerate() {
                *stored |= ((bits >> k & 1) << 4) as u8;
            }
        }
    }
    Block { stored, halves: [half(raw, 0), minimum], factors: [0; 2] }
}

/// Sign bit of half precision: minima of K-formats are subtracted.
const SIGN: u16 = 0x8000;

/// `Q4_K` and `Q5_K`: two halves, twelve bytes of six-bit factors, (32 bytes of fifth bits,) and
/// four bits a weight, 64 weights to 32 bytes.
fn minimum_k(format: Format, raw: &[u8], nth: usize) -> Block {
    let is_fifth = format == Format::Q5K;
    let quants = &raw[if is_fifth { 48 } else { 16 }..][nth / 2 * BLOCK..][..BLOCK];
    let mut stored = [0; BLOCK];
    for (stored, byte) in stored.iter_mut().zip(quants) {
        *stored = (byte >> (nth % 2 * 4)) & 15;
    }
    if is_fifth {
        for (stored, bits) in stored.iter_mut().zip(&raw[16..48]) {
            *stored |= (bits >> nth & 1) << 4;
        }
    }
    let halves = [half(raw, 0), half(raw, 2) ^ SIGN];
    Block { stored, halves, factors: six_bits(&raw[4..16], nth) }
}

/// Factor of scale and minimum of the `nth` of eight: the first four lie in the low six bits of
/// bytes 0–3 and 4–7; the others have their low four bits in bytes 8–11 and their high two above
/// those of the first.
fn six_bits(packed: &[u8], nth: usize) -> [u8; 2] {
    match nth.checked_sub(4) {
        None => [packed[nth] & 63, packed[nth + 4] & 63],
        Some(i) => {
            let (low, high) = (packed[i + 8] & 15, packed[i + 8] >> 4);
            [low | packed[i] >> 6 << 4, high | packed[i + 4] >> 6 << 4]
        }
    }
}

/// `Q6_K`: 128 bytes of low four bits, 64 of high two, 16 signed factors, one half. Of each 128
/// weights the byte at l holds weights l, l + 32, l + 64 and l + 96.
fn halves_k(raw: &[u8], nth: usize) -> Block {
    let (part, quarter) = (nth / 4, nth % 4);
    let low = &raw[64 * part + quarter % 2 * BLOCK..][..BLOCK];
    let high = &raw[128 + 32 * part..][..BLOCK];
    let mut stored = [0; BLOCK];
    for ((stored, low), high) in stored.iter_mut().zip(low).zip(high) {
        let nibble = (low >> (quarter / 2 * 4)) & 15;
        *stored = nibble | (high >> (2 * quarter) & 3) << 4;
    }
    let factors = [raw[192 + 2 * nth], raw[193 + 2 * nth]];
    Block { stored, halves: [half(raw, 208), 0], factors }
}
