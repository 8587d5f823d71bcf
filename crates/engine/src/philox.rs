//! Counter-based random numbers: Philox4x32-10.
//!
//! For: noise that anybody can compute again for one token without computing any other.
//! Must never: hold a state: the same key and counter give the same numbers.
//! Relies on: nothing. Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as
//! 1, 2, 3" (SC 2011).

/// Ten rounds of Philox on four 32-bit words.
#[inline]
pub(crate) fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let ((high0, low0), (high1, low1)) = multiply(c[0], c[2]);
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0];
        k = next_key(k);
    }
    c
}

/// A round's two products of 64 bits, as (high, low) words.
#[inline(always)]
pub(crate) fn multiply(c0: u32, c2: u32) -> ((u32, u32), (u32, u32)) {
    let halves = |product: u64| ((product >> 32) as u32, product as u32);
    (halves(0xd251_1f53 * u64::from(c0)), halves(0xcd9e_8d57 * u64::from(c2)))
}

/// The next round's key. Its steps are the golden ratio and √3 − 1, as 32-bit fractions.
#[inline(always)]
pub(crate) fn next_key(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)]
}

#[cfg(test)]
mod tests {
    use super::philox4x32_10;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Random123's kat_vectors, philox4x32 10.
        let max = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([max; 4], [max; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }
}
