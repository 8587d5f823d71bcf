//! How ggml stores a tensor's numbers: names and sizes of its types.
//!
//! For: knowing how many bytes a tensor takes, of types with kernels here and of the others.
//! Must never: guess the size of a type that it doesn't know.
//! Relies on: ggml's numbering (GGUF specification, `ggml_type`; gguf-py `GGML_QUANT_SIZES`).

use crate::kernels::blocks::Format;

/// A ggml type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    /// As ggml writes it, such as `Q4_1`.
    pub(super) name: &'static str,
    /// Weights of a block; rows are whole blocks.
    pub(super) block_weights: u64,
    /// Bytes of a block.
    pub(super) block_bytes: u64,
    /// The form in which kernels take it, where there are such.
    pub(super) format: Option<Format>,
}

impl Stored {
    /// The type with this number; `None` for numbers that were never given or were taken back.
    pub(super) fn numbered(number: u32) -> Option<Stored> {
        let (name, block_weights, block_bytes) = match number {
            0 => ("F32", 1, 4),
            1 => ("F16", 1, 2),
            2 => ("Q4_0", 32, 18),
            3 => ("Q4_1", 32, 20),
            6 => ("Q5_0", 32, 22),
            7 => ("Q5_1", 32, 24),
            8 => ("Q8_0", 32, 34),
            9 => ("Q8_1", 32, 36),
            10 => ("Q2_K", 256, 84),
            11 => ("Q3_K", 256, 110),
            12 => ("Q4_K", 256, 144),
            13 => ("Q5_K", 256, 176),
            14 => ("Q6_K", 256, 210),
            15 => ("Q8_K", 256, 292),
            16 => ("IQ2_XXS", 256, 66),
            17 => ("IQ2_XS", 256, 74),
            18 => ("IQ3_XXS", 256, 98),
            19 => ("IQ1_S", 256, 50),
            20 => ("IQ4_NL", 32, 18),
            21 => ("IQ3_S", 256, 110),
            22 => ("IQ2_S", 256, 82),
            23 => ("IQ4_XS", 256, 136),
            24 => ("I8", 1, 1),
            25 => ("I16", 1, 2),
            26 => ("I32", 1, 4),
            27 => ("I64", 1, 8),
            28 => ("F64", 1, 8),
            29 => ("IQ1_M", 256, 56),
            30 => ("BF16", 1, 2),
            34 => ("TQ1_0", 256, 54),
            35 => ("TQ2_0", 256, 66),
            39 => ("MXFP4", 32, 17),
            40 => ("NVFP4", 64, 36),
            41 => ("Q1_0", 128, 18),
            42 => ("Q2_0", 64, 18),
            _ => return None,
        };
        Some(Stored { name, block_weights, block_bytes, format: format(number) })
    }

    /// The type that safetensors calls by this name.
    pub(super) fn named(name: &str) -> Option<Stored> {
        let (name, block_bytes) = match name {
            "F32" => return Stored::numbered(0),
            "F16" => return Stored::numbered(1),
            "BF16" => return Stored::numbered(30),
            "BOOL" => ("BOOL", 1),
            "U8" => ("U8", 1),
            "I8" => ("I8", 1),
            "F8_E5M2" => ("F8_E5M2", 1),
            "F8_E4M3" => ("F8_E4M3", 1),
            "F8_E8M0" => ("F8_E8M0", 1),
            "I16" => ("I16", 2),
            "U16" => ("U16", 2),
            "I32" => ("I32", 4),
            "U32" => ("U32", 4),
            "I64" => ("I64", 8),
            "U64" => ("U64", 8),
            "F64" => ("F64", 8),
            "C64" => ("C64", 8),
            _ => return None,
        };
        Some(Stored { name, block_weights: 1, block_bytes, format: None })
    }

    /// Bytes of `rows` rows of `cols` numbers; `None` if a row is no whole number of blocks or
    /// the product leaves 64 bits.
    pub(super) fn bytes(self, cols: u64, rows: u64) -> Option<u64> {
        if !cols.is_multiple_of(self.block_weights) {
            return None;
        }
        (cols / self.block_weights).checked_mul(rows)?.checked_mul(self.block_bytes)
    }
}

fn format(number: u32) -> Option<Format> {
    match number {
        0 => Some(Format::F32),
        1 => Some(Format::F16),
        2 => Some(Format::Q4_0),
        3 => Some(Format::Q4_1),
        6 => Some(Format::Q5_0),
        7 => Some(Format::Q5_1),
        8 => Some(Format::Q8_0),
        12 => Some(Format::Q4K),
        13 => Some(Format::Q5K),
        14 => Some(Format::Q6K),
        30 => Some(Format::Bf16),
        _ => None,
    }
}

/// Plain floats as f32; `None` for quantised types.
pub(super) fn floats(stored: Stored, raw: &[u8]) -> Option<Vec<f32>> {
    let halves = |to: fn(u16) -> f32| {
        let pairs = raw.as_chunks::<2>().0.iter();
        pairs.map(|pair| to(u16::from_le_bytes(*pair))).collect()
    };
    match stored.format? {
        Format::F32 => {
            let words = raw.as_chunks::<4>().0.iter();
            Some(words.map(|word| f32::from_le_bytes(*word)).collect())
        }
        Format::F16 => Some(halves(|bits| half::f16::from_bits(bits).to_f32_const())),
        Format::Bf16 => Some(halves(|bits| half::bf16::from_bits(bits).to_f32_const())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_agree_with_the_kernels_blocks() {
        for stored in (0..64).filter_map(Stored::numbered) {
            let Some(format) = stored.format else { continue };
            let weights = format.block_weights() as u64;
            let bytes = stored.bytes(weights, 1);
            assert_eq!(bytes, Some(format.block_bytes() as u64), "{}", stored.name);
        }
    }

    #[test]
    fn half_blocks_and_overflow_have_no_size() {
        let q4_1 = Stored::numbered(3).unwrap();
        assert_eq!(q4_1.bytes(64, 3), Some(120));
        assert_eq!(q4_1.bytes(63, 3), None);
        assert_eq!(q4_1.bytes(1 << 40, 1 << 40), None);
    }

    #[test]
    fn floats_are_read_exactly() {
        let read = |name, raw: &[u8]| floats(Stored::named(name).unwrap(), raw).unwrap();
        assert_eq!(read("F32", &1.25f32.to_le_bytes()), [1.25]);
        assert_eq!(read("F16", &half::f16::from_f32(-0.5).to_le_bytes()), [-0.5]);
        assert_eq!(read("BF16", &half::bf16::from_f32(3.0).to_le_bytes()), [3.0]);
        assert_eq!(floats(Stored::numbered(3).unwrap(), &[0; 20]), None);
    }
}
