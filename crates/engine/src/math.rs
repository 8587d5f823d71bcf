//! Elementary functions in f64, our own, for what is computed rarely: rotary angles and sampling.
//!
//! For: the same bits on every machine; libm's differ between versions.
//! Must never: be changed without raising the engine spec version.
//! Relies on: +, −, ·, / of IEEE f64 only. Errors are a few units in the last place.

use std::f64::consts::{FRAC_PI_2, LN_2};

/// Natural logarithm of a positive normal number.
///
/// x = m·2^e with m in [√½, √2); ln m = 2·atanh(s), s = (m−1)/(m+1), |s| ≤ 0.172: thirteen terms
/// of the odd series leave less than 10⁻²⁰.
pub(crate) fn ln(x: f64) -> f64 {
    let mut exponent = ((x.to_bits() >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((x.to_bits() & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for k in (1..13).rev() {
        sum = (sum + 1.0 / (2 * k + 1) as f64) * square;
    }
    exponent as f64 * LN_2 + (2.0 * s + 2.0 * s * sum)
}

/// e^x for |x| ≤ 700; 0 below −700.
///
/// x = n·ln 2 + r, |r| ≤ 0.347; Taylor to r¹⁴.
pub(crate) fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    // ln 2 in two parts, the first with its low 32 bits zero, so that n·hi is exact.
    const HI: f64 = f64::from_bits(0x3fe6_2e42_0000_0000);
    const LO: f64 = LN_2 - HI;
    let n = round(x / LN_2);
    let r = (x - n * HI) - n * LO;
    let mut sum = 1.0;
    for k in (1..=14).rev() {
        sum = 1.0 + sum * r / k as f64;
    }
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// Sine and cosine of an angle of 0 ≤ x ≤ 10⁶ radians; absolute error under 10⁻¹⁰.
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    // π/2 in two parts, the first with its low 32 bits zero: n·hi is exact for n < 2³².
    const HI: f64 = f64::from_bits(FRAC_PI_2.to_bits() & !0xffff_ffff);
    const LO: f64 = FRAC_PI_2 - HI;
    let n = round(x / FRAC_PI_2);
    let r = (x - n * HI) - n * LO;
    let square = r * r;
    let (mut sin, mut cos) = (1.0, 1.0);
    for k in (1..=9).rev() {
        let k = k as f64;
        sin = 1.0 - sin * square / ((2.0 * k) * (2.0 * k + 1.0));
        cos = 1.0 - cos * square / ((2.0 * k - 1.0) * (2.0 * k));
    }
    let sin = sin * r;
    match n as u64 % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// Nearest integer, ties to even, for |x| < 2⁵¹.
fn round(x: f64) -> f64 {
    const BIAS: f64 = 6_755_399_441_055_744.0; // 1.5·2⁵²
    (x + BIAS) - BIAS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_functions_agree_with_the_standard_library() {
        for i in 1..20_000 {
            let x = f64::from(i) * 0.37;
            assert!((ln(x) - x.ln()).abs() <= 4e-15 * x.ln().abs().max(1.0), "ln {x}");
            let e = -f64::from(i) * 0.01;
            assert!((exp(e) - e.exp()).abs() <= 1e-14 * e.exp(), "exp {e}");
            let (sin, cos) = sin_cos(x * 17.0);
            assert!((sin - (x * 17.0).sin()).abs() < 1e-10, "sin {x}");
            assert!((cos - (x * 17.0).cos()).abs() < 1e-10, "cos {x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
        assert!((ln(1.0 / 4_294_967_296.0) + 22.180709777918249).abs() < 1e-14);
    }
}
