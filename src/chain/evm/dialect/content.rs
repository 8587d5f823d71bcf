//! The content id that v4 and later announce beside a proof's first word.
//!
//! Never names a place where the proof might be found: the id *is* the proof's rest, so that the
//! chain alone gives every byte back. Relies on CIDv1 (multiformats: identity multihash of code 0,
//! raw codec 0x55, multibase `u` = base64url without padding) and on docs/spec/proof.md.

/// CID version 1, codec raw, multihash identity.
const HEAD: [u8; 3] = [0x01, 0x55, 0x00];

/// Multibase prefix of base64url without padding.
const BASE64_URL: char = 'u';

/// The digits of base64url (RFC 4648 section 5).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The id whose content is `bytes`. 113 bytes, the proof without its first word, give 157
/// characters.
pub(super) fn inline(bytes: &[u8]) -> String {
    let mut binary = HEAD.to_vec();
    binary.extend(varint(bytes.len()));
    binary.extend_from_slice(bytes);
    let mut text = String::from(BASE64_URL);
    for group in binary.chunks(3) {
        let byte = |nth: usize| u32::from(group.get(nth).copied().unwrap_or_default());
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        // A group of n bytes has n + 1 digits.
        for shift in [18, 12, 6, 0].into_iter().take(group.len().saturating_add(1)) {
            let digit = usize::try_from((bits >> shift) & 63).unwrap_or_default();
            text.push(char::from(DIGITS.get(digit).copied().unwrap_or_default()));
        }
    }
    text
}

/// The content of an id; `None` for any other id.
pub(super) fn read(id: &str) -> Option<Vec<u8>> {
    let text = id.strip_prefix(BASE64_URL)?;
    let mut binary = Vec::with_capacity(text.len());
    for group in text.as_bytes().chunks(4) {
        let mut bits: u32 = 0;
        for digit in group {
            let value = DIGITS.iter().position(|known| known == digit)?;
            bits = (bits << 6) | u32::try_from(value).ok()?;
        }
        // n digits hold n - 1 bytes, and bits that must be zero.
        let size = group.len().checked_sub(1)?;
        let spare = group.len().checked_mul(6)?.checked_sub(size.checked_mul(8)?)?;
        let bytes = (bits >> spare).to_be_bytes();
        binary.extend_from_slice(bytes.get(4_usize.checked_sub(size)?..)?);
    }
    let mut left = binary.strip_prefix(&HEAD)?;
    let (mut length, mut shift) = (0_usize, 0_u32);
    loop {
        let (byte, rest) = left.split_first()?;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        (left, shift) = (rest, shift.checked_add(7)?);
        if byte & 0x80 == 0 {
            break;
        }
    }
    // One content, one id: other lengths and stray bits are other texts.
    (left.len() == length && inline(left) == id).then(|| left.to_vec())
}

/// A length as unsigned LEB128.
fn varint(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        if length == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_holds_its_content_as_the_multiformats_tables_say() {
        // Made with Python's base64.urlsafe_b64encode and the tables of multiformats.
        let table: [(&[u8], &str); 4] = [
            (b"", "uAVUAAA"),
            (b"hello", "uAVUABWhlbGxv"),
            (&[0xfb, 0xff], "uAVUAAvv_"),
            (&[0xfb, 0xff, 0xfe, 0x3e], "uAVUABPv__j4"),
        ];
        for (content, id) in table {
            assert_eq!(inline(content), id);
        }
    }

    #[test]
    fn a_length_over_127_takes_two_bytes() {
        assert_eq!((varint(127), varint(128)), (vec![127], vec![0x80, 1]));
        assert_eq!(varint(223), vec![0xdf, 1]);
        // 5 + 128 bytes are 178 digits; the two bytes of the length start at the fifth digit.
        let id = inline(&[0; 128]);
        assert_eq!((id.len(), &id[..8]), (179, "uAVUAgAE"));
    }

    #[test]
    fn an_id_gives_its_content_back_and_nothing_else_is_one() {
        for size in [0, 1, 2, 3, 112, 113, 127, 128, 300] {
            let bytes: Vec<u8> = (0..size).map(|n| (n * 7 % 256) as u8).collect();
            let id = inline(&bytes);
            assert_eq!(read(&id), Some(bytes), "{size}");
            assert_eq!(read(&id[1..]), None);
            assert_eq!(read(&id[..id.len() - 1]), None, "{size}");
            assert_eq!(read(&format!("{id}A")), None, "{size}");
        }
        for other in ["", "u", "uAVUA", "zAVUAAA", "uAVUAAB", "uAVUAA ", "bafkqaaa"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
