//! CSV as in RFC 4180: CRLF at the end of a line, quotes where they are needed. A
//! cell that a spreadsheet would run as a formula is made inert by an apostrophe.

use std::io::Write as _;

use service_core::csv::push_cell;

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
        self.cell.clear();
        push_cell(&mut self.cell, text);
        self.out.extend_from_slice(self.cell.as_bytes());
        self
    }

    /// A value of our own making: a number, a time, a name of the contract.
    pub(super) fn plain(&mut self, value: impl std::fmt::Display) -> &mut Self {
        self.separate();
        // Writing into memory does not fail.
        let _ = write!(self.out, "{value}");
        self
    }

    /// Such a value, or nothing.
    pub(super) fn optional(&mut self, value: Option<impl std::fmt::Display>) -> &mut Self {
        match value {
            Some(value) => self.plain(value),
            None => self.plain(""),
        }
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
