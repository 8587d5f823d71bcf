//! Days of the calendar.
//!
//! Never looks at a clock: days since the Unix epoch become a date, nothing else.

/// `2026-11-22` for a number of days since the Unix epoch (proleptic Gregorian calendar).
#[must_use]
pub fn date(days: u64) -> String {
    let mut left = days;
    let mut year = 1970_u64;
    // A cycle of 400 years has 146097 days.
    year = year.saturating_add((left / 146_097).saturating_mul(400));
    left %= 146_097;
    while left >= year_days(year) {
        left = left.saturating_sub(year_days(year));
        year = year.saturating_add(1);
    }
    let february = if year_days(year) == 366 { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1_u64;
    for length in months {
        if left < length {
            break;
        }
        left = left.saturating_sub(length);
        month = month.saturating_add(1);
    }
    format!("{year:04}-{month:02}-{:02}", left.saturating_add(1))
}

const fn year_days(year: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if is_leap { 366 } else { 365 }
}
