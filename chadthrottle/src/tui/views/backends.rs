//! How limits can be held here: what `doctor` says, and everything that is degraded.

use ratatui::text::{Line, Span};

use super::View;
use crate::{
    backend::Probe,
    model::Direction,
    output::{backends::BackendReport, escape, number},
    tui::app::Feed,
};

/// Everything there is to say, to be scrolled.
pub fn lines(view: &View) -> Vec<Line<'static>> {
    let theme = view.theme;
    let mut lines = Vec::new();
    if let Feed::Silent(why) = &view.app.feed {
        lines.push(Line::styled(format!(" ! Old figures: {why}"), theme.alarm));
        lines.push(Line::default());
    }
    lines.extend(choices(view));
    match &view.app.backends {
        None => lines.push(Line::styled(" Trying …", theme.dim)),
        Some(Err(error)) => lines.push(Line::styled(format!(" {}", escape(&error.to_string())), theme.alarm)),
        Some(Ok(reports)) => {
            for report in reports {
                backend(view, report, &mut lines);
            }
        }
    }
    lines.push(Line::styled(format!(" Traffic is counted by {}.", view.app.shown.source), theme.text));
    for notice in &view.app.shown.notices {
        lines.push(Line::from(vec![
            Span::styled(format!(" ! {}: ", escape(&notice.what)), theme.warning),
            Span::styled(escape(&notice.why), theme.text),
        ]));
        if let Some(mend) = &notice.mend {
            lines.push(Line::styled(format!("   mend: {}", escape(mend)), theme.good));
        }
    }
    lines
}

/// What limits are held by when they are set here.
fn choices(view: &View) -> Vec<Line<'static>> {
    let theme = view.theme;
    let choice = |direction: Direction| {
        let chosen = view.app.book.backends().get(direction).as_deref();
        let mut line = Line::from(vec![
            Span::styled(format!(" {:<22}", format!("Hold the {direction} by")), theme.dim),
            match chosen {
                Some(name) => Span::styled(escape(name), theme.limit),
                None => Span::styled("the best that works", theme.text),
            },
        ]);
        let elsewhere = view.app.elsewhere(direction).count() as u32;
        if elsewhere > 0 {
            let text =
                format!("   {} by another one", number::count(elsewhere, "limit is held", "limits are held"));
            line.push_span(Span::styled(text, theme.warning));
        }
        line
    };
    vec![choice(Direction::Download), choice(Direction::Upload), Line::default()]
}

fn backend(view: &View, report: &BackendReport, lines: &mut Vec<Line<'static>>) {
    let theme = view.theme;
    let directions: Vec<_> =
        report.directions.iter().map(|direction| in_use(view, report, *direction)).collect();
    let mut head = vec![Span::raw(" "), state(view, &report.available)];
    head.push(Span::styled(format!(" {}", report.name), theme.title));
    head.push(Span::styled(format!("  {:?}, {}", report.priority, directions.join(", ")), theme.dim));
    lines.push(Line::from(head));
    explain(view, &report.available, "   ", lines);
    for requirement in &report.requirements {
        lines.push(Line::from(vec![
            Span::raw("     "),
            state(view, &requirement.state),
            Span::styled(format!(" {}", escape(&requirement.name)), theme.text),
            Span::styled(format!("  {}", escape(&requirement.found)), theme.dim),
        ]));
        explain(view, &requirement.state, "       ", lines);
    }
    lines.push(Line::default());
}

/// A direction, and how many limits of it the backend holds.
fn in_use(view: &View, report: &BackendReport, direction: Direction) -> String {
    let limits = view.app.shown.limits.iter();
    let held = limits.filter_map(|limit| limit.directions.get(direction).as_ref());
    match held.filter(|held| held.backend == report.name).count() {
        0 => direction.to_string(),
        count => format!("{direction} (holds {count})"),
    }
}

fn state(view: &View, probe: &Probe) -> Span<'static> {
    let theme = view.theme;
    match probe {
        Probe::Ready => Span::styled("✓", theme.good),
        Probe::Unavailable { .. } => Span::styled("✗", theme.alarm),
        Probe::Unknown { .. } => Span::styled("?", theme.warning),
    }
}

fn explain(view: &View, probe: &Probe, indent: &str, lines: &mut Vec<Line<'static>>) {
    let theme = view.theme;
    match probe {
        Probe::Ready => {}
        Probe::Unknown { reason } => {
            lines.push(Line::styled(format!("{indent}{}", escape(reason)), theme.warning));
        }
        Probe::Unavailable { reason, mend } => {
            lines.push(Line::styled(format!("{indent}{}", escape(reason)), theme.alarm));
            if let Some(mend) = mend {
                lines.push(Line::styled(format!("{indent}mend: {}", escape(mend)), theme.good));
            }
        }
    }
}
