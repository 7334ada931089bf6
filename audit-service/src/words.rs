//! Words of a text, by our own code and so the same on both engines: runs of alphanumeric characters, lower case.
//!
//! `GPT-4o` is the words `gpt` and `4o`. Of a JSON text the strings are read (`"a\nb"` is two words), names of
//! members and bare values included.

/// Gives each word of plain text to `sink`.
pub(crate) fn of_text(text: &str, sink: &mut impl FnMut(&str)) {
    let mut word = Word::default();
    for char in text.chars() {
        word.push(char, sink);
    }
    word.end(sink);
}

/// Gives each word of a JSON text to `sink`. The text was checked on arrival; of any other, it finds what it can.
pub(crate) fn of_json(json: &str, sink: &mut impl FnMut(&str)) {
    let mut word = Word::default();
    let mut chars = json.chars();
    let mut in_string = false;
    while let Some(char) = chars.next() {
        match char {
            '"' => {
                in_string = !in_string;
                word.end(sink);
            }
            '\\' if in_string => match chars.next() {
                Some('u') => match escaped(&mut chars) {
                    Some(char) => word.push(char, sink),
                    None => word.end(sink),
                },
                // A quote, a slash or a control: none is alphanumeric.
                _ => word.end(sink),
            },
            _ => word.push(char, sink),
        }
    }
    word.end(sink);
}

/// The character behind `\u`, which may be told as two surrogates. A lone surrogate is no character.
fn escaped(chars: &mut std::str::Chars<'_>) -> Option<char> {
    let unit = hex(chars)?;
    if !(0xd800..0xdc00).contains(&unit) {
        return char::from_u32(unit);
    }
    let mut ahead = chars.clone();
    if (ahead.next(), ahead.next()) != (Some('\\'), Some('u')) {
        return None;
    }
    let low = hex(&mut ahead).filter(|low| (0xdc00..0xe000).contains(low))?;
    *chars = ahead;
    char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
}

fn hex(chars: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit * 16 + chars.next()?.to_digit(16)?))
}

/// The word being read.
#[derive(Default)]
struct Word(String);

impl Word {
    fn push(&mut self, char: char, sink: &mut impl FnMut(&str)) {
        if char.is_ascii_alphanumeric() {
            self.0.push(char.to_ascii_lowercase());
        } else if char.is_alphanumeric() {
            // Some lower-case forms end in a combining mark, which would end a word when met by itself.
            self.0.extend(char.to_lowercase().filter(|lower| lower.is_alphanumeric()));
        } else {
            self.end(sink);
        }
    }

    fn end(&mut self, sink: &mut impl FnMut(&str)) {
        if !self.0.is_empty() {
            sink(&self.0);
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        of_text(text, &mut |word| words.push(word.to_owned()));
        words
    }

    fn json(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        of_json(text, &mut |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn text_splits_into_lower_case_words() {
        assert_eq!(text("GPT-4o, für Zoë_2!"), ["gpt", "4o", "für", "zoë", "2"]);
        assert_eq!(text("İstanbul 東京"), ["istanbul", "東京"]);
        assert_eq!(text(" -- "), [""; 0]);
    }

    #[test]
    fn strings_of_json_are_read() {
        assert_eq!(json(r#"{"rpm":60,"note":"a\nb\u00e9 \ud83d\ude00C"}"#), ["rpm", "60", "note", "a", "bé", "c"]);
        assert_eq!(json(r#"[true,-1.5e3,null]"#), ["true", "1", "5e3", "null"]);
        assert_eq!(json(r#""\ud800x\ud835\udc00""#), ["x𝐀"]);
    }
}
