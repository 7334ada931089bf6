//! What holds of everything that goes out, whatever came in: the claims that the bodies of fuzz targets make.

/// Room for a path of fields, a value that was given (cut at 64 characters or so), and what is allowed.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// A refusal says which field is wrong, in a line that does nothing where it is shown, and of a length that does not
/// grow with what was sent.
///
/// # Panics
/// When it does not.
pub fn assert_refusal(field: &str, message: &str) {
    let is_path = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.[]".contains(&byte))
    };
    assert!(!field.is_empty() && is_path(field), "no field is named: {field:?}: {message}");
    assert_harmless(message);
    assert!(message.starts_with(field), "{message:?} does not begin with its field, {field:?}");
}

/// A text for people is there, short, and one line without controls.
///
/// # Panics
/// When it is not.
pub fn assert_harmless(message: &str) {
    assert!(!message.is_empty(), "no message");
    assert!(message.len() <= MAX_MESSAGE_BYTES, "a message of {} bytes: {message:.200}", message.len());
    assert!(!message.chars().any(char::is_control), "a control character: {message:?}");
}

/// The rows of a CSV file as a reader of RFC 4180 sees them, written from the RFC alone: `None` where it is not one.
pub fn csv_rows(text: &str) -> Option<Vec<Vec<String>>> {
    let (mut rows, mut row, mut rest) = (Vec::new(), Vec::new(), text);
    while !rest.is_empty() {
        let mut cell = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let (part, behind) = rest.split_once('"')?;
                cell.push_str(part);
                match behind.strip_prefix('"') {
                    Some(more) => {
                        cell.push('"');
                        rest = more;
                    }
                    None => {
                        rest = behind;
                        break;
                    }
                }
            }
        } else {
            let end = rest.find([',', '\r', '\n']).unwrap_or(rest.len());
            let (text, behind) = rest.split_at(end);
            if text.contains('"') {
                return None;
            }
            cell.push_str(text);
            rest = behind;
        }
        row.push(cell);
        match rest.strip_prefix(',') {
            // What follows a comma is a cell, also at the end of the file.
            Some(behind) => rest = behind,
            None => {
                rest = rest.strip_prefix("\r\n")?;
                rows.push(std::mem::take(&mut row));
            }
        }
    }
    row.is_empty().then_some(rows)
}

/// A cell as it was read back is the text that was written, but for an apostrophe before what a spreadsheet would run.
///
/// # Panics
/// When it is not, or would be run.
pub fn assert_cell(read: &str, written: &str) {
    assert!(read == written || read.strip_prefix('\'') == Some(written), "{written:?} came back as {read:?}");
    let first = read.trim_start_matches(|char: char| char.is_whitespace() || char == '\u{feff}').chars().next();
    let runs = first.is_some_and(|first| "=+-@＝＋－＠".contains(first)) || read.starts_with(['\t', '\r', '\n']);
    assert!(!runs, "a spreadsheet may run {read:?}");
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn rows_are_read_as_the_rfc_has_them() {
        let rows = csv_rows("a,\"b,\"\"c\r\n\",\r\n\"\",d\r\n").expect("CSV");
        assert_eq!(rows, [vec!["a", "b,\"c\r\n", ""], vec!["", "d"]]);
        assert_eq!(csv_rows(""), Some(Vec::new()));
        for bad in ["a", "a\n", "\"a\r\n", "a\"b\r\n", "\"a\"b\r\n", "a,"] {
            assert_eq!(csv_rows(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_breaks_a_claim_is_noticed() {
        assert_refusal("filter.actors[3]", "filter.actors[3] has 300 bytes, allowed are 256");
        assert_cell("'=1", "=1");
        assert_cell("x", "x");
        let broken: [fn(); 8] = [
            || assert_refusal("", "something is wrong"),
            || assert_refusal("id", "something is wrong"),
            || assert_refusal("id", &format!("id {}", "x".repeat(2_000))),
            || assert_refusal("id", "id is \u{1b}[31m"),
            || assert_harmless(""),
            || assert_cell("=1", "=1"),
            || assert_cell("\u{feff} -1", "\u{feff} -1"),
            || assert_cell("y", "x"),
        ];
        for (at, broken) in broken.into_iter().enumerate() {
            assert!(catch_unwind(broken).is_err(), "case {at}");
        }
    }
}
