//! Long lines of text in several that fit, each with its colours. A widget that wraps does not tell into how many, which
//! scrolling has to know.

use ratatui::{
    style::Style,
    text::{Line, Span},
};

/// A line as lines of at most `width` columns, cut between words where there are any. What goes on is indented a little
/// more than what began.
pub fn wrapped(line: Line<'static>, width: usize) -> Vec<Line<'static>> {
    if line.width() <= width {
        return vec![line];
    }
    let base = line.style;
    let letters: Vec<(char, Style)> = line
        .spans
        .iter()
        .flat_map(|span| span.content.chars().map(|letter| (letter, base.patch(span.style))))
        .collect();
    let indent = letters.iter().take_while(|(letter, _)| *letter == ' ').count();
    let indent = (indent + 2).min(width / 2);
    let mut lines = Vec::new();
    let mut rest = &letters[..];
    while !rest.is_empty() {
        let before = if lines.is_empty() { 0 } else { indent };
        let length = fitting(rest, width.saturating_sub(before).max(1));
        let (now, later) = rest.split_at(length);
        rest = &later[later.iter().take_while(|(letter, _)| *letter == ' ').count()..];
        let mut spans = vec![Span::raw(" ".repeat(before))];
        for piece in now.chunk_by(|one, other| one.1 == other.1) {
            spans.push(Span::styled(piece.iter().map(|(letter, _)| *letter).collect::<String>(), piece[0].1));
        }
        lines.push(Line::from(spans));
    }
    lines
}

/// How many letters come into a line; at least one.
fn fitting(letters: &[(char, Style)], width: usize) -> usize {
    let mut wide = 0;
    let fits = |(letter, _): &&(char, Style)| {
        wide += Span::raw(letter.to_string()).width();
        wide <= width
    };
    let most = letters.iter().take_while(fits).count().max(1);
    if most == letters.len() || letters[most].0 == ' ' {
        return most;
    }
    let space = letters[..most].iter().rposition(|(letter, _)| *letter == ' ');
    // The spaces that a line begins with are no place to cut it.
    let begins = letters.iter().take_while(|(letter, _)| *letter == ' ').count();
    space.filter(|space| *space > begins).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use ratatui::style::Stylize;

    use super::*;

    fn texts(line: Line<'static>, width: usize) -> Vec<String> {
        wrapped(line, width).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lines_are_cut_between_words() {
        let line = || Line::from(vec![" ! what: ".red(), "is missing here".into()]);
        assert_eq!(texts(line(), 40), [" ! what: is missing here"]);
        assert_eq!(texts(line(), 14), [" ! what: is", "   missing", "   here"]);
        assert_eq!(wrapped(line(), 14)[0].spans[1], " ! what: ".red());
        // A word that fits nowhere, and letters that are wide.
        assert_eq!(texts(Line::from("  abcdefgh"), 6), ["  abcd", "   efg", "   h"]);
        assert_eq!(texts(Line::from("名前名前"), 5), ["名前", "  名", "  前"]);
        assert_eq!(texts(Line::from("abc"), 0).concat(), "abc");
    }
}
