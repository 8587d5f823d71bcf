//! Numbers, hashes and ids as a blob's bytes, and back.
//!
//! Never reads past the end and never makes room for more than what is there could fill.

use super::BlobError;
use crate::units::Hash32;

/// Bytes under construction.
#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn hash(&mut self, hash: Hash32) {
        self.bytes(hash.bytes());
    }

    /// Unsigned LEB128: seven bits a byte, low ones first.
    #[allow(clippy::cast_possible_truncation)]
    pub fn number(&mut self, number: u64) {
        let mut left = number;
        while left >= 0x80 {
            self.0.push(left as u8 | 0x80);
            left >>= 7;
        }
        self.0.push(left as u8);
    }

    pub fn count(&mut self, count: usize) {
        self.number(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// A negative zero as zero, as `decodeSpec` hashes it.
    pub fn float(&mut self, value: f32) {
        self.bytes(&(value + 0.0).to_bits().to_le_bytes());
    }

    /// Two bytes an id where `is_narrow`, else four, little-endian.
    #[allow(clippy::cast_possible_truncation)]
    pub fn ids(&mut self, ids: &[u32], is_narrow: bool) {
        for id in ids {
            if is_narrow {
                self.bytes(&(*id as u16).to_le_bytes())
            } else {
                self.bytes(&id.to_le_bytes())
            }
        }
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Bytes that are read from their start.
pub(super) struct Reader<'a> {
    left: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes, length: bytes.len() }
    }

    /// What is wrong here.
    pub fn wrong(&self, why: &'static str) -> BlobError {
        BlobError::Malformed(why, self.length.saturating_sub(self.left.len()))
    }

    pub fn take(&mut self, size: usize) -> Result<&'a [u8], BlobError> {
        let (taken, left) =
            self.left.split_at_checked(size).ok_or_else(|| self.wrong("its end"))?;
        self.left = left;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BlobError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.wrong("its end"))
    }

    pub fn byte(&mut self) -> Result<u8, BlobError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub fn hash(&mut self) -> Result<Hash32, BlobError> {
        Ok(Hash32::new(self.array()?))
    }

    /// A number in its shortest form: one content has one blob.
    pub fn number(&mut self) -> Result<u64, BlobError> {
        let mut number: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(self.wrong("a number of another form"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.wrong("a number of another form"))
    }

    pub fn small(&mut self) -> Result<u32, BlobError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| self.wrong("a number past 32 bits"))
    }

    /// A place in a table; whether the table has it, the caller asks the table.
    pub fn place(&mut self) -> Result<usize, BlobError> {
        Ok(usize::try_from(self.number()?).unwrap_or(usize::MAX))
    }

    /// How many things of at least `size` bytes follow: never more than there is room for.
    pub fn count(&mut self, size: usize) -> Result<usize, BlobError> {
        let number = self.number()?;
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        if count > self.left.len() / size {
            return Err(self.wrong("a count past its end"));
        }
        Ok(count)
    }

    pub fn float(&mut self) -> Result<f32, BlobError> {
        let value = f32::from_bits(u32::from_le_bytes(self.array()?));
        if value.is_finite() { Ok(value) } else { Err(self.wrong("a float that is no number")) }
    }

    pub fn ids(&mut self, count: usize, is_narrow: bool) -> Result<Vec<u32>, BlobError> {
        let size = if is_narrow { 2 } else { 4 };
        let bytes = self.take(count.saturating_mul(size))?;
        let mut ids = Vec::with_capacity(count);
        if is_narrow {
            let (pairs, _) = bytes.as_chunks::<2>();
            ids.extend(pairs.iter().map(|pair| u32::from(u16::from_le_bytes(*pair))));
        } else {
            let (fours, _) = bytes.as_chunks::<4>();
            ids.extend(fours.iter().map(|four| u32::from_le_bytes(*four)));
        }
        Ok(ids)
    }

    pub fn end(&self) -> Result<(), BlobError> {
        if self.left.is_empty() { Ok(()) } else { Err(self.wrong("more than a blob")) }
    }
}
