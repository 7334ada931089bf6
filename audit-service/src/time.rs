//! Times as canonical JSON and CSV print them: `YYYY-MM-DDTHH:MM:SS.ffffffZ`, always with six digits.

use service_core::time_range::Stamp;
pub(crate) use service_core::time_range::rfc3339;

/// Appends a time. Recorded events lie well within the years that have four digits.
pub(crate) fn push_rfc3339(out: &mut String, us: i64) {
    match Stamp::new(us) {
        Some(stamp) => out.push_str(stamp.as_str()),
        None => out.push_str(&rfc3339(us)),
    }
}

/// The time that [`push_rfc3339`] wrote; `None` for any other text.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let of_day = (number(11, 13)? * 60 + number(14, 16)?) * 60 + number(17, 19)?;
    // Days since 1970-01-01, from years that begin in March (Hinnant, as where times are written).
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_era = year.rem_euclid(400);
    let days = year.div_euclid(400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day
        - 719_469;
    let us = (days * 86_400 + of_day) * 1_000_000 + number(20, 26)?;
    // What is between the numbers, and whether each is in its bounds: only what is written the same was that time.
    Stamp::new(us).is_some_and(|stamp| stamp.as_str() == text).then_some(us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for step in -30_000..100_000_i64 {
            let us = (step * 86_400 + step.rem_euclid(86_399)) * 1_000_000 + step.rem_euclid(999_983);
            assert_eq!(parse_rfc3339(&rfc3339(us)), Some(us));
        }
    }

    #[test]
    fn other_spellings_are_not_read() {
        for text in ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+00:00", "2026-01-01t00:00:00.000000Z", ""]
            .into_iter()
            .chain(["2026-02-30T00:00:00.000000Z", "2026-13-01T00:00:00.000000Z", "2026-01-01T24:00:00.000000Z"])
            .chain(["2026-00-01T00:00:00.000000Z", "+026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.+00000Z"])
        {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
