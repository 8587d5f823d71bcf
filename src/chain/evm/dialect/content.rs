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
}
