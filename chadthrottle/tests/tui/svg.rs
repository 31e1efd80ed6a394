//! A picture of a terminal as SVG. Blocks, lines and dots are drawn, so that they fit together in every font.

use std::fmt::Write;

use ratatui::{
    buffer::{Buffer, Cell},
    style::{Color, Modifier},
};
use unicode_width::UnicodeWidthStr;

/// Size of a cell in pixels.
const WIDE: f32 = 8.4;
const HIGH: f32 = 18.0;
/// Around the cells.
const MARGIN: f32 = 12.0;
/// From the top of a cell to the foot of its letters.
const FOOT: f32 = 13.5;

/// Colours of a terminal that has its own.
pub struct Ground {
    pub text: &'static str,
    pub behind: &'static str,
}

/// Light on dark.
pub const DARK: Ground = Ground { text: "#d4d7dd", behind: "#15181e" };
/// Dark on light.
pub const LIGHT: Ground = Ground { text: "#24272c", behind: "#fbfbf9" };

/// The 16 colours that terminals name.
const NAMED: [&str; 16] = [
    "#000000", "#cd3131", "#0dbc79", "#e5e510", "#2472c8", "#bc3fbc", "#11a8cd", "#c0c0c0", "#666666",
    "#f14c4c", "#23d18b", "#f5f543", "#3b8eea", "#d670d6", "#29b8db", "#ffffff",
];

fn of_index(index: u8) -> String {
    match index {
        0..16 => NAMED[usize::from(index)].to_owned(),
        16..232 => {
            let level = |step: u8| if step == 0 { 0 } else { 55 + 40 * step };
            let at = index - 16;
            format!("#{:02x}{:02x}{:02x}", level(at / 36), level(at / 6 % 6), level(at % 6))
        }
        232.. => format!("#{0:02x}{0:02x}{0:02x}", 8 + 10 * (index - 232)),
    }
}

fn colour(colour: Color, unset: &str) -> String {
    match colour {
        Color::Reset => unset.to_owned(),
        Color::Indexed(index) => of_index(index),
        Color::Rgb(red, green, blue) => format!("#{red:02x}{green:02x}{blue:02x}"),
        named => {
            const ALL: [Color; 16] = [
                Color::Black,
                Color::Red,
                Color::Green,
                Color::Yellow,
                Color::Blue,
                Color::Magenta,
                Color::Cyan,
                Color::Gray,
                Color::DarkGray,
                Color::LightRed,
                Color::LightGreen,
                Color::LightYellow,
                Color::LightBlue,
                Color::LightMagenta,
                Color::LightCyan,
                Color::White,
            ];
            ALL.iter().position(|each| *each == named).map_or(unset, |at| NAMED[at]).to_owned()
        }
    }
}

/// Letters and ground of a cell.
fn colours(cell: &Cell, ground: &Ground) -> (String, String) {
    let pair = (colour(cell.fg, ground.text), colour(cell.bg, ground.behind));
    if cell.modifier.contains(Modifier::REVERSED) { (pair.1, pair.0) } else { pair }
}

/// The whole picture; `title` is for those who can't see it.
pub fn picture(buffer: &Buffer, ground: &Ground, title: &str) -> String {
    let area = buffer.area;
    let (width, height) =
        (f32::from(area.width) * WIDE + 2.0 * MARGIN, f32::from(area.height) * HIGH + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" font-size=\"14\" \
         font-family=\"'DejaVu Sans Mono','Cascadia Mono',Menlo,Consolas,monospace\" xml:space=\"preserve\">\n\
         <title>{}</title>\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{}\"/>\n\
         <g transform=\"translate({MARGIN} {MARGIN})\">\n",
        escape(title),
        ground.behind
    );
    for row in 0..area.height {
        let cells: Vec<&Cell> = (0..area.width).map(|column| &buffer[(column, row)]).collect();
        let top = f32::from(row) * HIGH;
        behind(&mut svg, &cells, top, ground);
        letters(&mut svg, &cells, top, ground);
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

fn behind(svg: &mut String, cells: &[&Cell], top: f32, ground: &Ground) {
    let mut column = 0;
    while column < cells.len() {
        let fill = colours(cells[column], ground).1;
        let same = cells[column..].iter().take_while(|cell| colours(cell, ground).1 == fill).count();
        if fill != ground.behind {
            let (x, width) = (column as f32 * WIDE, same as f32 * WIDE);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{HIGH}\" fill=\"{fill}\"/>"
            );
        }
        column += same;
    }
}

fn letters(svg: &mut String, cells: &[&Cell], top: f32, ground: &Ground) {
    let mut column = 0;
    while column < cells.len() {
        let cell = cells[column];
        let symbol = cell.symbol();
        let fill = colours(cell, ground).0;
        let x = column as f32 * WIDE;
        if symbol == " " {
            column += 1;
        } else if let Some(shape) = symbol.chars().next().and_then(|letter| shape(letter, x, top, &fill)) {
            svg.push_str(&shape);
            svg.push('\n');
            column += symbol.width().max(1);
        } else {
            // A single space does not end a run of text.
            let mut run = String::new();
            let mut end = column;
            while let Some(next) = cells.get(end) {
                let is_gap =
                    next.symbol() == " " && cells.get(end + 1).is_none_or(|after| after.symbol() == " ");
                let first = next.symbol().chars().next().unwrap_or(' ');
                let alike = colours(next, ground).0 == fill && next.modifier == cell.modifier;
                if is_gap || !alike || shape(first, 0.0, 0.0, "").is_some() {
                    break;
                }
                run.push_str(next.symbol());
                end += next.symbol().width().max(1);
            }
            let bold = if cell.modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
            let line = if cell.modifier.contains(Modifier::UNDERLINED) {
                " text-decoration=\"underline\""
            } else {
                ""
            };
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
                 fill=\"{fill}\"{bold}{line}>{}</text>",
                top + FOOT,
                (end - column) as f32 * WIDE,
                escape(&run)
            );
            column = end.max(column + 1);
        }
    }
}

/// What is drawn instead of a letter.
fn shape(letter: char, x: f32, top: f32, fill: &str) -> Option<String> {
    let (middle, half) = (x + WIDE / 2.0, top + HIGH / 2.0);
    let (right, bottom) = (x + WIDE, top + HIGH);
    let stroke = |path: String| Some(format!("<path d=\"{path}\" fill=\"none\" stroke=\"{fill}\"/>"));
    match letter {
        '▁'..='█' => {
            let high = HIGH * (letter as u32 - '▁' as u32 + 1) as f32 / 8.0;
            let y = bottom - high;
            Some(format!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{WIDE}\" height=\"{high:.1}\" fill=\"{fill}\"/>"
            ))
        }
        '─' => stroke(format!("M{x:.1} {half}H{right:.1}")),
        '│' => stroke(format!("M{middle:.1} {top}V{bottom}")),
        '╭' => {
            stroke(format!("M{middle:.1} {bottom}V{:.1}Q{middle:.1} {half} {right:.1} {half}", half + 4.0))
        }
        '╮' => stroke(format!("M{middle:.1} {bottom}V{:.1}Q{middle:.1} {half} {x:.1} {half}", half + 4.0)),
        '╰' => stroke(format!("M{middle:.1} {top}V{:.1}Q{middle:.1} {half} {right:.1} {half}", half - 4.0)),
        '╯' => stroke(format!("M{middle:.1} {top}V{:.1}Q{middle:.1} {half} {x:.1} {half}", half - 4.0)),
        '⚡' => {
            // Two cells wide.
            let at = |dx: f32, dy: f32| format!("{:.1} {:.1}", right + dx, half + dy);
            let corners = [(1.5, -6.5), (-4.5, 1.0), (-0.5, 1.0), (-1.5, 6.5), (4.5, -1.0), (0.5, -1.0)];
            let corners: Vec<_> = corners.into_iter().map(|(dx, dy)| at(dx, dy)).collect();
            Some(format!("<path d=\"M{}Z\" fill=\"{fill}\"/>", corners.join("L")))
        }
        '\u{2801}'..='\u{28ff}' => {
            let bits = letter as u32 - 0x2800;
            // Dots of the left column are 1 2 3 7, of the right one 4 5 6 8.
            let places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
            let set = places.into_iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1);
            let dots: String = set
                .map(|(_, (column, row))| {
                    let (dx, dy) = (column as f32 * 0.5 + 0.25, row as f32 * 0.25 + 0.125);
                    format!("M{:.1} {:.1}h1.8v1.8h-1.8z", x + WIDE * dx - 0.9, top + HIGH * dy - 0.9)
                })
                .collect();
            Some(format!("<path d=\"{dots}\" fill=\"{fill}\"/>"))
        }
        _ => None,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
