//! The checksum of a stored row: SQLite's pages have none, so a flipped bit in an amount would
//! pass for an amount.
//!
//! Never protects against a forger: it finds damage, not intent. CRC-32 as in zlib and Ethernet
//! (reflected polynomial 0xEDB88320), so that any tool can recompute it.

/// The checksum of a row's fields, taken one after the other.
pub(super) struct Checksum(u32);

impl Checksum {
    /// Of nothing yet.
    pub const fn new() -> Self {
        Self(u32::MAX)
    }

    /// Takes bytes whose length the row's other fields tell, or that come last.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        // Eight bytes a step, each through its own table: a start reads hundreds of megabytes.
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            let [a, b, c, d] = self.0.to_le_bytes();
            let [e, f, g, h, i, j, k, l] = *eight;
            let bytes = [a ^ e, b ^ f, c ^ g, d ^ h, i, j, k, l];
            let steps = bytes.iter().zip(TABLES.iter().rev());
            self.0 = steps.fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
        }
        for byte in rest {
            let [low, ..] = self.0.to_le_bytes();
            self.0 = TABLES[0][usize::from(low ^ byte)] ^ (self.0 >> 8);
        }
        self
    }

    /// Takes a number, little-endian.
    pub fn number(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// Takes a text after its length, so that no two splits of one text look alike.
    pub fn text(self, text: &str) -> Self {
        self.number(u64::try_from(text.len()).unwrap_or(u64::MAX)).bytes(text.as_bytes())
    }

    /// The checksum.
    pub const fn finish(self) -> u32 {
        !self.0
    }
}

/// What a byte does to the checksum, with 0 … 7 zero bytes after it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[zeros - 1][byte];
            tables[zeros][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_crc_everyone_knows() {
        // The check value of CRC-32/ISO-HDLC in the catalogue of CRC algorithms.
        assert_eq!(Checksum::new().bytes(b"123456789").finish(), 0xcbf4_3926);
        assert_eq!(Checksum::new().finish(), 0);
    }

    #[test]
    fn eight_bytes_at_once_are_the_same_as_one_by_one() {
        let bytes: Vec<u8> = (0..100).map(|n: u8| n.wrapping_mul(37)).collect();
        for end in 0..bytes.len() {
            let whole = Checksum::new().bytes(&bytes[..end]).finish();
            let one_by_one =
                bytes[..end].iter().fold(Checksum::new(), |sum, byte| sum.bytes(&[*byte]));
            assert_eq!(whole, one_by_one.finish(), "{end}");
        }
    }
}
