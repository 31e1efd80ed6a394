//! What lies where, computed from the size alone, so that drawing and the mouse agree.

use ratatui::layout::{Rect, Size};

use super::app::Screen;

/// The smallest size that everything fits into.
pub const SMALLEST: Size = Size { width: 60, height: 15 };

/// Parts of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Names of the screens.
    pub tabs: Rect,
    /// Filter, grouping, order; or what the screen is about.
    pub status: Rect,
    /// Traffic of the last minutes; where there is room.
    pub chart: Option<Rect>,
    /// The screen itself.
    pub body: Rect,
    /// Totals, backends, what is degraded.
    pub footer: Rect,
    /// The last message, or keys.
    pub hints: Rect,
}

/// Parts of a screen of that size.
pub fn areas(size: Size, screen: Screen) -> Areas {
    let line = |y: u16| Rect::new(0, y.min(size.height.saturating_sub(1)), size.width, 1.min(size.height));
    let chart = match size {
        Size { width: 100.., height: 30.. } if screen == Screen::Processes => 8,
        _ => 0,
    };
    let top = 2 + chart;
    Areas {
        tabs: line(0),
        chart: (chart > 0).then(|| Rect::new(0, 1, size.width, chart)),
        status: line(1 + chart),
        body: Rect::new(0, top.min(size.height), size.width, size.height.saturating_sub(top + 2)),
        footer: line(size.height.saturating_sub(2)),
        hints: line(size.height.saturating_sub(1)),
    }
}

/// Names of the screens, and where they stand in the line at the top.
pub fn tabs(width: u16) -> Vec<(Screen, String, Rect)> {
    let long = width >= 100;
    let mut x = if long { 15 } else { 0 };
    let mut tabs = Vec::new();
    for (index, screen) in Screen::ALL.into_iter().enumerate() {
        let name = if width >= 80 { screen.name() } else { screen.short_name() };
        let text = format!(" {} {name} ", index + 1);
        let wide = text.len() as u16;
        tabs.push((screen, text, Rect::new(x, 0, wide.min(width.saturating_sub(x)), 1)));
        x = x.saturating_add(wide).min(width);
    }
    tabs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_size_can_be_laid_out() {
        for width in [0, 1, 20, 60, 79, 80, 99, 100, 500] {
            for height in 0..60 {
                for screen in Screen::ALL {
                    let size = Size::new(width, height);
                    let whole = Rect::new(0, 0, width, height);
                    let areas = areas(size, screen);
                    let parts = [areas.tabs, areas.status, areas.body, areas.footer, areas.hints];
                    for part in parts.into_iter().chain(areas.chart) {
                        assert_eq!(part.intersection(whole).area(), part.area(), "{part:?} in {whole:?}");
                    }
                    if height >= SMALLEST.height {
                        assert!(areas.body.height >= 10);
                    }
                }
            }
        }
    }

    #[test]
    fn the_smallest_has_room_for_all_tabs() {
        let tabs = tabs(SMALLEST.width);
        assert_eq!(tabs.len(), Screen::ALL.len());
        assert!(tabs.iter().all(|(_, text, area)| text.len() == usize::from(area.width)), "{tabs:?}");
    }
}
