//! Help, made from the keymap.

use ratatui::text::{Line, Span};

use super::View;
use crate::{
    model::filter,
    tui::{
        app::Screen,
        keymap::{self, Context},
    },
};

/// Width of the column of keys.
const KEYS: usize = 15;

/// Everything there is to say, to be scrolled.
pub fn lines(view: &View) -> Vec<Line<'static>> {
    let theme = view.theme;
    let about = view.app.help_about;
    let mut lines = keys(view, Context::On(about));
    let mut section = |heading: &str, text: Vec<Line<'static>>| {
        lines.push(Line::default());
        lines.push(Line::styled(format!(" {heading}"), theme.title));
        lines.extend(text);
    };
    if matches!(about, Screen::Processes | Screen::Detail | Screen::Limits) {
        section("In the limit dialog", keys(view, Context::Dialog));
        let rates = [
            "500K, 1.5MB, 250000    bytes a second",
            "512KiB                 bytes a second, powers of 1024",
            "800kbit, 10mbit        bits a second",
            "none                   no limit in that direction",
        ];
        section("Rates", rates.map(|text| Line::styled(format!("   {text}"), theme.text)).to_vec());
        let mark = |sign: &str, text: &str| {
            Line::from(vec![
                Span::styled(format!("   {sign:<3}"), theme.limit),
                Span::styled(text.to_owned(), theme.text),
            ])
        };
        let marks = vec![
            mark("⚡ ", "limited, and the limit holds"),
            mark("!!", "limited, but traffic gets past it"),
            mark("?", "limited, but whether the limit holds is not known now"),
            mark("○", "its limit is suspended"),
            mark("✗", "it has ended"),
        ];
        section("Marks", marks);
    }
    if about == Screen::Processes {
        let mut text = keys(view, Context::Filter);
        for line in [
            "words without a key are looked for everywhere; all have to hold; - turns one round",
            "name:fire  user:alice,bob  port:443  remote:10.0.0.0/8  rate:>1M  down:<=1mbit  limited:yes",
        ] {
            text.push(Line::styled(format!("   {line}"), theme.text));
        }
        let mut line = String::from("   keys:");
        for key in filter::KEYS.split(", ") {
            if line.len() + key.len() > 56 {
                text.push(Line::styled(std::mem::replace(&mut line, "        ".into()), theme.dim));
            }
            line = format!("{line} {key}");
        }
        text.push(Line::styled(line, theme.dim));
        section("While a filter is typed", text);
    }
    lines
}

fn keys(view: &View, context: Context) -> Vec<Line<'static>> {
    let theme = view.theme;
    let line = |binding: &keymap::Binding| {
        let keys = binding.keys();
        // Arrows count as one column, whatever they are in bytes.
        let padding = " ".repeat(KEYS.saturating_sub(Span::raw(keys.as_str()).width()));
        Line::from(vec![
            Span::styled(format!("   {keys}"), theme.key),
            Span::styled(format!("{padding} {}", binding.help), theme.text),
        ])
    };
    keymap::bindings(context).map(line).collect()
}
