//! CSV as in RFC 4180: CRLF at the end of a line, quotes where they are needed. A
//! cell that a spreadsheet would run as a formula is made inert by an apostrophe.

/// One line, cell by cell.
#[derive(Debug)]
pub(super) struct Line<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

impl<'a> Line<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, empty: true }
    }

    /// Text from outside.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.separate();
        let inert = starts_formula(text);
        if !inert && !text.contains(['"', ',', '\r', '\n']) {
            self.out.extend_from_slice(text.as_bytes());
            return self;
        }
        self.out.push(b'"');
        if inert {
            self.out.push(b'\'');
        }
        self.out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        self.out.push(b'"');
        self
    }

    /// A value of our own making: a number, a time, a name of the contract.
    pub(super) fn plain(&mut self, value: impl std::fmt::Display) -> &mut Self {
        self.separate();
        self.out.extend_from_slice(value.to_string().as_bytes());
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

/// What spreadsheets take for a formula, in ASCII and in full width (OWASP, "CSV
/// injection").
fn starts_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'])
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
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)", "＝1"] {
            assert_eq!(line(&[formula]), format!("\"'{formula}\"\r\n"));
        }
        assert_eq!(line(&["=a\"b"]), "\"'=a\"\"b\"\r\n");
        assert_eq!(line(&["a=1"]), "a=1\r\n");
    }
}
