//! Times as canonical JSON and CSV print them: `YYYY-MM-DDTHH:MM:SS.ffffffZ`, always with six digits.
//!
//! Written by hand: a general formatter costs more than all the rest of an entry's canonical form.

const SECOND_US: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;

/// Appends a time. Right for the years 0 to 9999; recorded events lie well within.
pub(crate) fn push_rfc3339(out: &mut String, us: i64) {
    let (seconds, fraction) = (us.div_euclid(SECOND_US), us.rem_euclid(SECOND_US));
    let (days, of_day) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    let (year, month, day) = civil(days);
    push_digits(out, year, 4);
    out.push('-');
    push_digits(out, month, 2);
    out.push('-');
    push_digits(out, day, 2);
    out.push('T');
    push_digits(out, of_day / 3_600, 2);
    out.push(':');
    push_digits(out, of_day / 60 % 60, 2);
    out.push(':');
    push_digits(out, of_day % 60, 2);
    out.push('.');
    push_digits(out, fraction, 6);
    out.push('Z');
}

/// A time as text.
pub(crate) fn rfc3339(us: i64) -> String {
    let mut out = String::with_capacity(27);
    push_rfc3339(&mut out, us);
    out
}

/// The time that [`push_rfc3339`] wrote; `None` for any other text.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros();
    (rfc3339(time) == text).then_some(time)
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March on.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn push_digits(out: &mut String, number: i64, digits: u32) {
    for digit in (0..digits).rev() {
        let value = number / 10_i64.pow(digit) % 10;
        // A decimal digit of a number that is not negative.
        out.push(char::from(b'0' + value.unsigned_abs() as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_chrono_writes_them() {
        let day = DAY_SECONDS * SECOND_US;
        for step in -30_000..100_000_i64 {
            let us = step * day + step.rem_euclid(86_399) * SECOND_US + step.rem_euclid(999_983);
            let time = chrono::DateTime::from_timestamp_micros(us).unwrap();
            assert_eq!(rfc3339(us), time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
            assert_eq!(parse_rfc3339(&rfc3339(us)), Some(us));
        }
    }

    #[test]
    fn other_spellings_are_not_read() {
        for text in ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+00:00", "2026-01-01t00:00:00.000000Z", ""] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
