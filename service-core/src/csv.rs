//! One cell of a CSV file (RFC 4180), the same for every export.
//!
//! A cell that a spreadsheet would run as a formula gets a leading apostrophe, which makes it text.

/// A byte of names and numbers.
const NAME: u8 = 1;
/// A byte that a cell may have behind a letter or digit as it is.
const TAME: u8 = 2;
/// What each byte is, so that a cell is looked through once.
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = b' ';
    while byte <= b'~' {
        if !matches!(byte, b'"' | b',' | b';') {
            kinds[byte as usize] |= TAME;
        }
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b':') {
            kinds[byte as usize] |= NAME;
        }
        byte += 1;
    }
    kinds
};

/// Whether a text is a cell as it is, at a glance: most are.
pub fn is_plain(text: &str) -> bool {
    let all = text.bytes().fold(NAME | TAME, |all, byte| all & KINDS[usize::from(byte)]);
    all & NAME != 0 || (all & TAME != 0 && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric))
}

/// Appends a cell, quoted where it must be.
pub fn push_cell(out: &mut String, text: &str) {
    if is_plain(text) {
        return out.push_str(text);
    }
    let inert = if runs(text) { "'" } else { "" };
    // A semicolon or a tab separates cells where the comma is the decimal sign.
    if text.contains(['"', ',', ';', '\r', '\n', '\t']) {
        out.push('"');
        out.push_str(inert);
        for part in text.split_inclusive('"') {
            out.push_str(part);
            if part.ends_with('"') {
                out.push('"');
            }
        }
        out.push('"');
    } else {
        out.push_str(inert);
        out.push_str(text);
    }
}

/// Whether a spreadsheet may take the cell for a formula. Some drop blanks first, and take full-width signs too.
fn runs(text: &str) -> bool {
    let blank = |char: char| char.is_whitespace() || char == '\u{feff}';
    text.starts_with(['\t', '\r', '\n'])
        || text.trim_start_matches(blank).starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(text: &str) -> String {
        let mut out = String::new();
        push_cell(&mut out, text);
        out
    }

    #[test]
    fn formulas_are_made_inert() {
        let signs = ["=1+1", "+1", "-1", "@SUM(A1)", "＝1", "＋1", "－1", "＠x"];
        let behind_blanks = ["\t=1", "\r=1", "\n=1", " =1+1", "\u{a0}=1", "\u{feff}=1", " \u{a0}\u{feff}-1"];
        for formula in signs.iter().chain(&behind_blanks) {
            let written = cell(formula);
            assert!(written.starts_with('\'') || written.starts_with("\"'"), "{written}");
        }
        for plain in ["a=b", "1-2", "", " ", "model.enabled", "x@y.z"] {
            assert_eq!(cell(plain), plain);
        }
    }

    #[test]
    fn cells_with_separators_are_quoted() {
        assert_eq!(cell("a,b"), "\"a,b\"");
        assert_eq!(cell("x;=1+1"), "\"x;=1+1\"");
        assert_eq!(cell("x\t=1+1"), "\"x\t=1+1\"");
        assert_eq!(cell("say \"hi\""), "\"say \"\"hi\"\"\"");
        assert_eq!(cell("two\r\nlines"), "\"two\r\nlines\"");
        assert_eq!(cell("\"=1\""), "\"\"\"=1\"\"\"");
    }
}
