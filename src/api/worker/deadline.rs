//! `X-Request-Deadline`: the moment after which nobody wants an answer any more.
//!
//! Never guesses: an RFC 3339 moment (`2026-11-22T14:00:05.250Z`, offsets allowed) or Unix
//! milliseconds in digits, and anything else is refused by its name; so are digits that can only be
//! meant as seconds, since the job would be late already. Pure.

use axum::http::HeaderMap;

use super::error::WireError;
use crate::units::Millis;

const HEADER: &str = "x-request-deadline";

/// Unix milliseconds of 1973. As seconds they are the year 5138: no number is meant as either.
const MILLIS_MIN: u64 = 100_000_000_000;

/// The deadline of a request, Unix milliseconds; `None` where it has none.
///
/// # Errors
/// [`WireError::Header`] for a value in no known form.
pub(super) fn of(headers: &HeaderMap) -> Result<Option<Millis>, WireError> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    parse(text).map(|millis| Some(Millis::new(millis))).ok_or_else(|| {
        let wanted = "an RFC 3339 moment or Unix time in milliseconds, not seconds";
        WireError::Header(format!("X-Request-Deadline must be {wanted}"))
    })
}

fn parse(text: &str) -> Option<u64> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|millis| *millis >= MILLIS_MIN);
    }
    rfc3339(text)
}

/// Unix milliseconds of an RFC 3339 moment, fractions cut; `None` before 1970.
fn rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let is_day = (1..=12).contains(&month) && (1..=month_days(year, month)).contains(&day);
    // 60 is a leap second, which Unix time counts as the next minute's first.
    if !is_day || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (millis, zone) = fraction(rest)?;
    let seconds = days_before(year, month, day)
        .checked_mul(86_400)?
        .checked_add(hour.checked_mul(3600)?.checked_add(minute * 60)?.checked_add(second)?)?
        .checked_sub(offset_seconds(zone)?)?;
    u64::try_from(seconds.checked_mul(1000)?.checked_add(millis)?).ok()
}

/// Three numbers of these widths, divided by `mark`.
fn numbers(text: &str, mark: char, widths: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(mark);
    let mut found = [0; 3];
    for (to, width) in found.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width)?;
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        *to = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then_some(found)
}

/// Milliseconds of `.250` and what stands behind it.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(digits) = text.strip_prefix('.') else { return Some((0, text)) };
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, rest) = digits.split_at_checked(count)?;
    let padded: String = digits.chars().chain("000".chars()).take(3).collect();
    (count > 0).then_some((padded.parse().ok()?, rest))
}

/// Seconds east of Greenwich.
fn offset_seconds(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match zone.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    // Seconds stand in for a third number.
    let [hours, minutes, _] = numbers(&format!("{rest}:00"), ':', [2, 2, 2])?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a day, negative before it (proleptic Gregorian calendar).
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let past = year - 1;
    let years = past * 365 + past / 4 - past / 100 + past / 400;
    let months: i64 = (1..month).map(|month| month_days(year, month)).sum();
    // Days from the year 1 to 1970, by the same count.
    years + months + day - 1 - 719_162
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_milliseconds_are_read_and_nothing_else() {
        // Expected values: `date -u -d … +%s%3N`.
        let table = [
            ("1790000000123", Some(1_790_000_000_123)),
            ("100000000000", Some(100_000_000_000)),
            ("99999999999", None),
            ("1790000000", None),
            ("0", None),
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2025-10-01T17:30:00Z", Some(1_759_339_800_000)),
            ("2024-02-29t23:59:59.25z", Some(1_709_251_199_250)),
            ("2025-10-01T19:30:00+02:00", Some(1_759_339_800_000)),
            ("2025-10-01T17:30:00.123456789-00:30", Some(1_759_341_600_123)),
            ("2016-12-31T23:59:60Z", Some(1_483_228_800_000)),
            ("1969-12-31T23:59:59Z", None),
            ("2025-02-29T00:00:00Z", None),
            ("2025-13-01T00:00:00Z", None),
            ("2025-10-01T24:00:00Z", None),
            ("2025-10-01T17:30:00", None),
            ("2025-10-01", None),
            ("2025-10-01T17:30:00.Z", None),
            ("2025-10-01T+7:30:00Z", None),
            ("30s", None),
            ("-5", None),
            ("1e3", None),
            ("99999999999999999999", None),
            ("", None),
            ("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}T", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
