//! Text from outside (arguments, names of processes, units and containers) made safe to show: the one place that
//! says how.

/// Whether a character shows as itself, whatever stands around it: no control character, no line feed, no mark that
/// turns the writing direction or has no width.
pub fn is_harmless(c: char) -> bool {
    match c {
        // `escape_debug` is made for literals and escapes these too.
        '"' | '\'' | '\\' => true,
        _ => c.escape_debug().len() == 1,
    }
}

/// `text` with everything escaped that is not [harmless](is_harmless). What is escaped already stays as it is.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) { escaped.push(c) } else { escaped.extend(c.escape_debug()) }
    }
    escaped
}

/// `text` escaped, and cut to `longest` characters before that.
pub fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => escape(&text[..end]) + "…",
        None => escape(text),
    }
}

/// `text` escaped, in quotation marks and cut to what fits into a message.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 60;
    format!("'{}'", cut(text, LONGEST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "abc…");
        assert_eq!(cut("\n\n", 1), "\\n…");
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_harmless(text in any::<String>()) {
            let escaped = escape(&text);
            prop_assert!(escaped.chars().all(is_harmless), "{:?}", escaped);
            prop_assert_eq!(escape(&escaped), escaped);
        }
    }
}
