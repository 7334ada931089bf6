//! How things look on a terminal: numbers, money, tables, and text that comes
//! from data, made inert.

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, presets};

/// Width of tables where the terminal does not tell its own.
const WIDTH: u16 = 140;
/// What is narrower than this is no width to set a table in.
const NARROWEST: u16 = 60;

/// Text from data, without what would act on a terminal or hide what it says:
/// control characters, line and paragraph separators, marks that turn the
/// direction of writing, and invisible ones are shown by their numbers.
pub fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        let hidden = letter.is_control()
            || matches!(letter,
                '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
        if hidden {
            out.extend(letter.escape_unicode());
        } else {
            out.push(letter);
        }
    }
    out
}

/// Inert text of at most so many letters, with what was cut shown as `…`.
pub fn short(text: &str, letters: usize) -> String {
    let text = inert(text);
    if text.chars().count() <= letters {
        return text;
    }
    let mut out: String = text.chars().take(letters.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// What stands where a request has no user, team, key and so on.
pub fn key(text: &str) -> String {
    if text.is_empty() { "(none)".into() } else { short(text, 40) }
}

/// `1234567` as `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// As [`count`], of any integer.
pub fn grouped(number: i128) -> String {
    let sign = if number < 0 { "-" } else { "" };
    // Counts stay below 2⁶⁴.
    format!("{sign}{}", count(u64::try_from(number.unsigned_abs()).unwrap_or(u64::MAX)))
}

/// A decimal text of dollars as nano-dollars; 0 for what is none.
pub fn nanos(money: &str) -> i128 {
    let (sign, digits) = match money.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, money),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: i128 = whole.parse().unwrap_or(0);
    let part: i128 = format!("{part:0<9.9}").parse().unwrap_or(0);
    sign * (whole * 1_000_000_000 + part)
}

/// A decimal text of dollars to the nano-dollar, with as many decimals as all others.
pub fn exact(money: &str) -> String {
    let nanos = nanos(money);
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, part) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    format!("{sign}{}.{part:09}", count(u64::try_from(whole).unwrap_or(u64::MAX)))
}

/// Nano-dollars in cents, rounded half up: `$1,234.57`.
pub fn money(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let cents = (nanos.unsigned_abs() + 5_000_000) / 10_000_000;
    // Sums of money stay far below 2⁶⁴ dollars.
    let whole = u64::try_from(cents / 100).unwrap_or(u64::MAX);
    format!("{sign}${}.{:02}", count(whole), cents % 100)
}

/// The change from one to the other: `+12.3 %`, `-4.0 %`, `new`.
pub fn change(before: i128, now: i128) -> String {
    match (before, now) {
        (0, 0) => "—".into(),
        (0, _) => "new".into(),
        _ => format!("{:+.1} %", (now - before) as f64 / before as f64 * 100.0),
    }
}

/// A part of a whole: `12.3 %`.
pub fn share(part: i128, whole: i128) -> String {
    if whole == 0 {
        return "—".into();
    }
    format!("{:.1} %", part as f64 / whole as f64 * 100.0)
}

/// A table with these headings; those that begin with `>` are of numbers and set
/// to the right.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings.iter().map(|text| Cell::new(text.trim_start_matches('>'))));
    // A terminal may not know, or say that it has no columns at all.
    if !table.is_tty() || table.width().is_none_or(|width| width < NARROWEST) {
        table.set_width(WIDTH);
    }
    for (index, text) in headings.iter().enumerate() {
        if text.starts_with('>')
            && let Some(column) = table.column_mut(index)
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_data_cannot_act_on_a_terminal() {
        assert_eq!(inert("a\u{1b}[31mb\r\n\u{202e}c"), "a\\u{1b}[31mb\\u{d}\\u{a}\\u{202e}c");
        assert_eq!(inert("gpt-5.4 – größer"), "gpt-5.4 – größer");
        assert_eq!(short("abcdef", 4), "abc…");
    }

    #[test]
    fn money_is_read_exactly_and_shown_in_cents() {
        assert_eq!(nanos("12.345678901"), 12_345_678_901);
        assert_eq!(nanos("0.5"), 500_000_000);
        assert_eq!(nanos("-1"), -1_000_000_000);
        assert_eq!(nanos("0"), 0);
        assert_eq!(money(1_234_565_000_000), "$1,234.57");
        assert_eq!(money(-10_000_000), "-$0.01");
    }

    #[test]
    fn counts_are_grouped_by_three() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(12_345_678), "12,345,678");
    }
}
