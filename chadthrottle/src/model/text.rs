//! Text from outside (arguments, process names) made safe to show in a line.

/// `text` with everything escaped that could change how a terminal shows the rest of the line: control
/// characters, newlines, marks that turn the writing direction or have no width. What is escaped already
/// stays as it is.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // `escape_debug` is made for literals and escapes these too.
            '"' | '\'' | '\\' => escaped.push(c),
            _ => escaped.extend(c.escape_debug()),
        }
    }
    escaped
}

/// `text` escaped, in quotation marks and cut to what fits into a message.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("'{}…'", escape(&text[..end])),
        None => format!("'{}'", escape(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal() {
        assert_eq!(escape("curl it's \"fine\""), "curl it's \"fine\"");
        assert_eq!(escape("a\nb\x1b[31m\u{202e}\\"), "a\\nb\\u{1b}[31m\\u{202e}\\");
        assert_eq!(escape(&escape("\n")), escape("\n"));
        assert_eq!(escape("\u{9b}\u{200b}\u{2066}\u{feff}"), "\\u{9b}\\u{200b}\\u{2066}\\u{feff}");
        assert_eq!(escape("名前é"), "名前é");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(quote("x"), "'x'");
        assert_eq!(quote(&"é".repeat(1000)).chars().count(), 63);
    }
}
