//! Drawing: the state in, a picture out. Nothing is changed here, and nothing is decided that a key depends on.

use ratatui::{
    Frame,
    layout::{Position, Rect, Size},
    style::Style,
    text::{Line, Span},
    widgets::{Clear, Paragraph, Wrap},
};

use super::{
    app::{App, Feed, Screen},
    format, glyphs,
    keymap::{self, Context},
    layout,
    theme::Theme,
};

mod backends;
mod bars;
mod detail;
pub mod dialog;
mod help;
mod interfaces;
mod leaving;
mod limits;
mod processes;
mod table;
mod wrap;

/// What drawing may look at.
pub struct View<'a> {
    /// The state.
    pub app: &'a App,
    /// Its colours.
    pub theme: Theme,
    /// Size of the picture.
    pub size: Size,
}

impl<'a> View<'a> {
    fn new(app: &'a App, size: Size) -> Self {
        Self { app, theme: Theme::of(app.theme), size }
    }

    /// The mark of a limit that holds, as far as that is known now.
    fn holds(&self) -> (&'static str, Style) {
        match self.app.feed {
            Feed::Silent(_) => ("?", self.theme.warning),
            _ => ("⚡", self.theme.limit),
        }
    }
}

/// Draws everything.
pub fn draw(app: &App, frame: &mut Frame) {
    let whole = frame.area();
    let view = View::new(app, whole.as_size());
    frame.buffer_mut().set_style(whole, view.theme.text);
    let smallest = layout::SMALLEST;
    if whole.width < smallest.width || whole.height < smallest.height {
        let text = format!("at least {}x{} is needed", smallest.width, smallest.height);
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), whole);
    } else {
        screen(&view, frame);
    }
    if app.ascii {
        glyphs::to_ascii(frame.buffer_mut());
    }
}

fn screen(view: &View, frame: &mut Frame) {
    let app = view.app;
    let areas = layout::areas(view.size, app.screen);
    bars::tabs(view, frame, areas.tabs);
    if let Some(area) = areas.chart {
        processes::chart(view, frame, area);
    }
    match (&app.feed, app.screen) {
        (Feed::Failed(why), Screen::Processes | Screen::Detail | Screen::Limits | Screen::Interfaces) => {
            let text = format!("Nothing can be watched: {why}");
            note(frame, areas.body, Line::from(Span::styled(text, view.theme.alarm)));
        }
        (Feed::Waiting, Screen::Processes | Screen::Detail | Screen::Interfaces) => {
            note(frame, areas.body, Line::from("Waiting for the first look at the network …"));
        }
        (_, Screen::Processes) => processes::draw(view, frame, areas.body),
        (_, Screen::Detail) => detail::draw(view, frame),
        (_, Screen::Limits) => limits::draw(view, frame, areas.body),
        (_, Screen::Interfaces) => interfaces::draw(view, frame, areas.body),
        (_, Screen::Backends | Screen::Help) => scrolled(view, frame, areas.body),
    }
    bars::status(view, frame, areas.status);
    bars::footer(view, frame, areas.footer);
    bars::hints(view, frame, areas.hints);
    if app.leaving {
        leaving::draw(view, frame);
    } else if let Some(dialog) = &app.dialog {
        dialog::draw(view, frame, dialog);
    }
}

/// Something instead of a table.
fn note(frame: &mut Frame, area: Rect, line: Line) {
    let area = Rect { x: area.x + 1, y: area.y + 1.min(area.height), ..area };
    let area = area.intersection(frame.area());
    frame.render_widget(Paragraph::new(line).wrap(Wrap { trim: true }), area);
}

fn scrolled(view: &View, frame: &mut Frame, area: Rect) {
    let seen: Vec<_> =
        text(view).into_iter().skip(view.app.text.offset).take(usize::from(area.height)).collect();
    frame.render_widget(Paragraph::new(seen), area);
}

/// Makes room for what lies above the screen; a wide letter that reaches into it goes as a whole.
fn clear(frame: &mut Frame, area: Rect) {
    frame.render_widget(Clear, area);
    let Some(left) = area.x.checked_sub(1) else { return };
    for row in area.rows() {
        if let Some(cell) = frame.buffer_mut().cell_mut(Position::new(left, row.y))
            && Span::raw(cell.symbol()).width() > 1
        {
            cell.set_symbol(" ");
        }
    }
}

/// How many lines the text of the screen has, for scrolling.
pub fn text_length(app: &App) -> usize {
    text(&View::new(app, app.size)).len()
}

/// The text of a screen that has nothing else, in lines that fit.
fn text(view: &View) -> Vec<Line<'static>> {
    let lines = match view.app.screen {
        Screen::Backends => backends::lines(view),
        Screen::Help => help::lines(view),
        _ => Vec::new(),
    };
    lines.into_iter().flat_map(|line| wrap::wrapped(line, usize::from(view.size.width))).collect()
}

/// Keys and what they do, as many as fit.
fn hints_line(view: &View, context: Context, width: u16) -> Line<'static> {
    let mut line = Line::default();
    let of_use = |binding: &&keymap::Binding| {
        !binding.hint.is_empty() && (view.app.read_only.is_none() || !binding.needs_limits())
    };
    for binding in keymap::bindings(context).filter(of_use) {
        let more = [
            Span::styled(format!(" {}", binding.key()), view.theme.key),
            Span::styled(format!(" {} ", binding.hint), view.theme.dim),
        ];
        let wide: usize = more.iter().map(Span::width).sum();
        if line.width() + wide <= usize::from(width) {
            line.extend(more);
        }
    }
    line
}

/// An amount, or a dot for nothing.
fn amount(number: u64) -> String {
    if number == 0 { "·".to_owned() } else { format::bytes(number) }
}
