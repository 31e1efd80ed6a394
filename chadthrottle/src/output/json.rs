//! JSON that can be shown on a terminal: what a name could do there is written as `\uNNNN`, which means the same to
//! every reader.

use std::io;

use serde_json::ser::Formatter;

use crate::model::text::is_harmless;

/// Compact, with everything escaped in strings that [`is_harmless`] does not vouch for.
pub struct Escaping;

impl Formatter for Escaping {
    /// serde_json has escaped quotation marks, backslashes and ASCII's control characters itself.
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        // Nearly everything is: numbers, names, addresses.
        if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return writer.write_all(text.as_bytes());
        }
        let mut written = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| !is_harmless(*c)) {
            writer.write_all(&text.as_bytes()[written..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            written = at + c.len_utf8();
        }
        writer.write_all(&text.as_bytes()[written..])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Serialize;

    use super::*;

    fn line(text: &str) -> String {
        let mut bytes = Vec::new();
        text.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Escaping)).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn marks_and_controls_are_escaped() {
        assert_eq!(line("a\"\n\u{7f}\u{9b}é"), "\"a\\\"\\n\\u007f\\u009bé\"");
        assert_eq!(line("\u{202e}\u{feff}\u{e0001}"), "\"\\u202e\\ufeff\\udb40\\udc01\"");
    }

    proptest! {
        #[test]
        fn every_text_comes_back(text in any::<String>()) {
            let line = line(&text);
            prop_assert!(line.chars().all(is_harmless), "{}", line);
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
