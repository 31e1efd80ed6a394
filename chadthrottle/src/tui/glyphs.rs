//! Characters for terminals that only have ASCII: LANG=C, the console of the kernel.

use ratatui::buffer::Buffer;

/// Whether only ASCII may be shown, going by what the surroundings say of locale and terminal.
pub fn only_ascii(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    // The first that is set decides.
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    let is_console = set("TERM").is_some_and(|term| term == "linux" || term.starts_with("vt"));
    is_console || !(locale.contains("utf-8") || locale.contains("utf8"))
}

/// Replaces everything in a picture that is not ASCII.
pub fn to_ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if !cell.symbol().is_ascii() {
            let letter = cell.symbol().chars().next().map_or(' ', plain);
            cell.set_char(letter);
        }
    }
}

fn plain(letter: char) -> char {
    match letter {
        '↓' | '▼' | '▾' => 'v',
        '↑' | '▲' => '^',
        '↕' => '|',
        '→' | '▸' | '▶' => '>',
        '←' | '◂' | '◀' => '<',
        '–' | '─' | '━' | '╌' | '╍' | '┄' => '-',
        '│' | '┃' | '║' | '▏' => '|',
        '┌' | '┐' | '└' | '┘' | '├' | '┤' | '┬' | '┴' | '┼' | '╭' | '╮' | '╰' | '╯' => {
            '+'
        }
        '⚡' => '*',
        '✓' => '+',
        '✗' | '×' => 'x',
        '○' => 'o',
        '…' => '~',
        '·' | '•' | '▁' => '.',
        '▂' => ':',
        '▃' => '-',
        '▄' => '=',
        '▅' => '+',
        '▆' => '*',
        '▇' => '#',
        '█' => '@',
        'µ' => 'u',
        '±' => '+',
        // Dots of charts.
        '\u{2801}'..='\u{28ff}' => '*',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;

    use super::*;

    #[test]
    fn the_surroundings_decide() {
        for (variables, expected) in [
            (vec![("LANG", "en_US.UTF-8"), ("TERM", "xterm-256color")], false),
            (vec![("LANG", "C.utf8")], false),
            (vec![("LANG", "C")], true),
            (vec![], true),
            (vec![("LANG", "de_DE.UTF-8"), ("LC_ALL", "C")], true),
            (vec![("LANG", "C"), ("LC_ALL", ""), ("LC_CTYPE", "C.UTF-8")], false),
            (vec![("LANG", "en_US.UTF-8"), ("TERM", "linux")], true),
        ] {
            let of = |name: &str| {
                variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(only_ascii(of), expected, "{variables:?}");
        }
    }

    #[test]
    fn everything_has_a_plain_form() {
        let mut buffer = Buffer::with_lines(["↓ ⚡▁▂█ 名 é ⣿"]);
        to_ascii(&mut buffer);
        assert_eq!(buffer, {
            let mut expected = Buffer::empty(Rect::new(0, 0, buffer.area.width, 1));
            expected.set_string(0, 0, "v * .:@ ?  ? *", ratatui::style::Style::new());
            expected
        });
    }
}
