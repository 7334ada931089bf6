//! Times as text, by hand: an export has two in every row, an entry's canonical form too, and a general formatter costs
//! more than all the rest of them.

use chrono::DateTime;

const SECOND_US: i64 = 1_000_000;
const DAY_SECONDS: i64 = 86_400;
/// 0000-01-01 and 10000-01-01: years between them have four digits.
const FOUR_DIGITS_US: std::ops::Range<i64> = -62_167_219_200 * SECOND_US..253_402_300_800 * SECOND_US;

/// A time of the years 0 to 9999: `YYYY-MM-DDTHH:MM:SS.ffffffZ`, always with six digits.
#[derive(Debug, Clone, Copy)]
pub struct Stamp([u8; 27]);

impl Stamp {
    /// Of microseconds since the epoch; nothing for years of more than four digits.
    pub fn new(us: i64) -> Option<Self> {
        if !FOUR_DIGITS_US.contains(&us) {
            return None;
        }
        let (seconds, fraction) = (us.div_euclid(SECOND_US), us.rem_euclid(SECOND_US));
        let (days, of_day) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        let (year, month, day) = civil(days);
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], of_day / 3_600);
        digits(&mut text[14..16], of_day / 60 % 60);
        digits(&mut text[17..19], of_day % 60);
        digits(&mut text[20..26], fraction);
        Some(Self(text))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // Only digits and signs were written.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Microseconds as text.
pub fn rfc3339(us: i64) -> String {
    match (Stamp::new(us), DateTime::from_timestamp_micros(us)) {
        (Some(stamp), _) => stamp.as_str().to_owned(),
        (None, Some(time)) => time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        (None, None) => format!("{us} microseconds"),
    }
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

/// Writes the last digits of a number that is not negative.
fn digits(into: &mut [u8], number: i64) {
    let mut number = number.unsigned_abs();
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_chrono_writes_them() {
        let day = DAY_SECONDS * SECOND_US;
        let ends = [FOUR_DIGITS_US.start - 1, FOUR_DIGITS_US.start, FOUR_DIGITS_US.end - 1, FOUR_DIGITS_US.end];
        let days = (-30_000..100_000_i64)
            .map(|step| step * day + step.rem_euclid(86_399) * SECOND_US + step.rem_euclid(999_983));
        for us in ends.into_iter().chain(days) {
            let time = DateTime::from_timestamp_micros(us).expect("a time");
            assert_eq!(rfc3339(us), time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
        }
        assert_eq!(rfc3339(i64::MAX), "9223372036854775807 microseconds");
    }
}
