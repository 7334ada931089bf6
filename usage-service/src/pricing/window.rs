//! When a price is in force: from a day on, within hours of each day, or both. All in UTC.

use std::fmt;

use chrono::{NaiveDate, NaiveTime};

const DAY_US: i64 = 86_400_000_000;

/// The times at which a price is in force; without any field, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// The first day, from its midnight on.
    pub effective_from: Option<NaiveDate>,
    pub daily: Option<Daily>,
}

/// Hours of the day, the end excluded. An end before the start is on the next day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Daily {
    from_us: i64,
    until_us: i64,
}

impl Window {
    pub(super) fn parse(
        effective_from: Option<&str>,
        daily_from: Option<&str>,
        daily_until: Option<&str>,
    ) -> Result<Self, String> {
        let effective_from = effective_from.map(parse_day).transpose()?;
        let daily = match (daily_from, daily_until) {
            (None, None) => None,
            (Some(from), Some(until)) => {
                Some(Daily { from_us: parse_time_of_day(from)?, until_us: parse_time_of_day(until)? })
            }
            _ => return Err("daily_from and daily_until belong together".to_owned()),
        };
        if daily.is_some_and(|d| d.from_us == d.until_us) {
            return Err("daily_from equals daily_until, which is never".to_owned());
        }
        Ok(Self { effective_from, daily })
    }

    pub(super) fn contains(&self, at_us: i64) -> bool {
        self.effective_from.is_none_or(|day| at_us >= midnight_us(day))
            && self.daily.is_none_or(|daily| daily.contains(at_us.rem_euclid(DAY_US)))
    }
}

impl Daily {
    fn contains(self, of_day_us: i64) -> bool {
        if self.until_us < self.from_us {
            of_day_us >= self.from_us || of_day_us < self.until_us
        } else {
            self.from_us <= of_day_us && of_day_us < self.until_us
        }
    }
}

/// ` from 2026-10-14 daily 00:30:00-16:30:00`, each with a space before it; empty for always.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(day) = self.effective_from {
            write!(f, " from {day}")?;
        }
        if let Some(daily) = self.daily {
            write!(f, " daily {daily}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Daily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |us: i64| {
            let s = us / 1_000_000;
            format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
        };
        write!(f, "{}-{}", clock(self.from_us), clock(self.until_us))
    }
}

fn midnight_us(day: NaiveDate) -> i64 {
    day.and_time(NaiveTime::MIN).and_utc().timestamp_micros()
}

fn parse_day(text: &str) -> Result<NaiveDate, String> {
    NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .map_err(|_| format!("effective_from {text:?} is not a date such as \"2026-10-14\""))
}

/// Microseconds since UTC midnight of `HH:MM`, `HH:MM:SS`, either followed by `Z`, `+HH:MM` or `-HH:MM`.
fn parse_time_of_day(text: &str) -> Result<i64, String> {
    let refuse = || format!("time {text:?} is not a time of day such as \"16:30\" or \"16:30:00+08:00\"");
    let sign_at = text.find(['+', '-', 'Z']).unwrap_or(text.len());
    let (clock, zone) = text.split_at(sign_at);
    let seconds = |clock: &str, formats: &[&str]| {
        let parsed = formats.iter().find_map(|f| NaiveTime::parse_from_str(clock, f).ok());
        parsed.map(|time| time.signed_duration_since(NaiveTime::MIN).num_seconds())
    };
    let local = seconds(clock, &["%H:%M:%S", "%H:%M"]).ok_or_else(refuse)?;
    let offset = match zone.split_at_checked(1) {
        None | Some(("Z", "")) => 0,
        Some(("+", offset)) => seconds(offset, &["%H:%M"]).ok_or_else(refuse)?,
        Some(("-", offset)) => -seconds(offset, &["%H:%M"]).ok_or_else(refuse)?,
        Some(_) => return Err(refuse()),
    };
    Ok((local - offset).rem_euclid(86_400) * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros()
    }

    #[test]
    fn a_day_begins_at_its_midnight_in_utc() {
        let window = Window::parse(Some("2026-10-14"), None, None).unwrap();
        assert!(!window.contains(at("2026-10-13T23:59:59.999999Z")));
        assert!(window.contains(at("2026-10-14T00:00:00Z")));
        assert_eq!(window.to_string(), " from 2026-10-14");
    }

    #[test]
    fn daily_hours_include_their_start_and_exclude_their_end() {
        let window = Window::parse(None, Some("00:30:00+00:00"), Some("16:30")).unwrap();
        for (time, expected) in [
            ("2001-01-01T00:29:59.999999Z", false),
            ("2001-01-01T00:30:00Z", true),
            ("2033-05-05T16:29:59.999999Z", true),
            ("2033-05-05T16:30:00Z", false),
            ("1969-12-31T12:00:00Z", true),
        ] {
            assert_eq!(window.contains(at(time)), expected, "{time}");
        }
    }

    #[test]
    fn daily_hours_may_cross_midnight_and_carry_an_offset() {
        let window = Window::parse(Some("2026-01-01"), Some("06:00+08:00"), Some("08:00:00+08:00")).unwrap();
        assert_eq!(window.to_string(), " from 2026-01-01 daily 22:00:00-00:00:00");
        for (time, expected) in [
            ("2026-03-01T21:59:59Z", false),
            ("2026-03-01T22:00:00Z", true),
            ("2026-03-01T23:59:59Z", true),
            ("2026-03-02T00:00:00Z", false),
            ("2025-12-31T23:00:00Z", false),
        ] {
            assert_eq!(window.contains(at(time)), expected, "{time}");
        }
    }

    #[test]
    fn a_window_that_cannot_be_is_refused() {
        for (day, from, until) in [
            (Some("2026-13-01"), None, None),
            (Some("yesterday"), None, None),
            (None, Some("01:00"), None),
            (None, None, Some("01:00")),
            (None, Some("25:00"), Some("01:00")),
            (None, Some("01:00"), Some("02:00+8")),
            (None, Some("01:00"), Some("01:00Z")),
            (None, Some(""), Some("02:00")),
        ] {
            assert!(Window::parse(day, from, until).is_err(), "{day:?} {from:?} {until:?}");
        }
    }
}
