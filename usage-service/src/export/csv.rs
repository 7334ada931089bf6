//! CSV as in RFC 4180: CRLF at the end of a line, quotes where they are needed. A
//! cell that a spreadsheet would run as a formula is made inert by an apostrophe.

use std::io::Write as _;

use service_core::csv::{is_plain, push_cell};
use service_core::time_range::{Stamp, rfc3339};

/// One line, cell by cell.
#[derive(Debug)]
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
    cell: String,
}

impl<'a> Line<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, empty: true, cell: String::new() }
    }

    /// Text from outside.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.separate();
        if is_plain(text) {
            self.out.extend_from_slice(text.as_bytes());
        } else {
            self.cell.clear();
            push_cell(&mut self.cell, text);
            self.out.extend_from_slice(self.cell.as_bytes());
        }
        self
    }

    /// A value of our own making: a name of the contract.
    pub(super) fn plain(&mut self, value: impl std::fmt::Display) -> &mut Self {
        self.separate();
        // Writing into memory does not fail.
        let _ = write!(self.out, "{value}");
        self
    }

    /// The same for a text.
    pub(super) fn word(&mut self, word: &str) -> &mut Self {
        self.separate();
        self.out.extend_from_slice(word.as_bytes());
        self
    }

    /// So many cells with nothing in them.
    pub(super) fn nothing(&mut self, cells: usize) -> &mut Self {
        (0..cells).for_each(|_| self.separate());
        self
    }

    pub(super) fn number(&mut self, number: i64) -> &mut Self {
        self.separate();
        self.digits(number.is_negative(), number.unsigned_abs(), 1);
        self
    }

    /// What is counted in parts of a whole: with all digits behind the point, or only those that say something.
    pub(super) fn parts(&mut self, number: i64, digits: u32, all: bool) -> &mut Self {
        self.separate();
        let one = 10_u64.pow(digits);
        let (whole, part) = (number.unsigned_abs() / one, number.unsigned_abs() % one);
        self.digits(number.is_negative(), whole, 1);
        if all || part != 0 {
            self.out.push(b'.');
            self.digits(false, part, digits as usize);
            while !all && self.out.last() == Some(&b'0') {
                self.out.pop();
            }
        }
        self
    }

    pub(super) fn time(&mut self, us: i64) -> &mut Self {
        match Stamp::new(us) {
            Some(stamp) => self.word(stamp.as_str()),
            None => self.plain(rfc3339(us)),
        }
    }

    /// A number with at least so many digits.
    fn digits(&mut self, negative: bool, mut number: u64, least: usize) {
        // As many as 64 bits may have.
        let mut digits = [b'0'; 20];
        let mut from = digits.len();
        while number > 0 {
            from -= 1;
            digits[from] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        if negative {
            self.out.push(b'-');
        }
        self.out.extend_from_slice(&digits[from.min(digits.len() - least)..]);
    }

    pub(super) fn end(&mut self) {
        self.out.extend_from_slice(b"\r\n");
    }

    fn separate(&mut self) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(cells: &[&str]) -> String {
        let mut out = Vec::new();
        let mut line = Line::new(&mut out);
        for cell in cells {
            line.text(cell);
        }
        line.end();
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn cells_are_quoted_where_needed() {
        assert_eq!(line(&["a", "", "b c"]), "a,,b c\r\n");
        assert_eq!(line(&["a,b", "say \"x\"", "ü"]), "\"a,b\",\"say \"\"x\"\"\",ü\r\n");
    }

    #[test]
    fn numbers_are_written_as_rust_writes_them() {
        for number in [0, 7, -7, 10, 1_234_567_890, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            Line::new(&mut out).number(number).parts(number, 9, false).parts(number, 6, true).nothing(2);
            let (whole, part) = (number.unsigned_abs() / 1_000_000, number.unsigned_abs() % 1_000_000);
            let sign = if number < 0 { "-" } else { "" };
            let expected = format!("{number},{},{sign}{whole}.{part:06},,", crate::money::text(number.into()));
            assert_eq!(String::from_utf8(out).expect("UTF-8"), expected);
        }
    }

    #[test]
    fn formulas_are_made_inert() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", " =1+1"] {
            assert_eq!(line(&[formula]), format!("'{formula}\r\n"));
        }
        // Where a semicolon separates cells.
        assert_eq!(line(&["x;=1+1"]), "\"x;=1+1\"\r\n");
        assert_eq!(line(&["=a\"b"]), "\"'=a\"\"b\"\r\n");
        assert_eq!(line(&["a=1"]), "a=1\r\n");
    }
}
