//! Colours by what they mean.

use std::str::FromStr;

use clap::ValueEnum;
use ratatui::style::{Color, Modifier, Style};

/// Which colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ThemeName {
    /// For dark terminals.
    #[default]
    Default,
    /// For light terminals.
    Light,
    /// No colours at all.
    Mono,
    /// Black, white, and the brightest colours.
    HighContrast,
}

impl ThemeName {
    /// The one after this; after the last comes the first.
    pub fn next(self) -> Self {
        let all = Self::value_variants();
        let at = all.iter().position(|name| *name == self).unwrap_or(0);
        all[(at + 1) % all.len()]
    }

    /// As users write it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl FromStr for ThemeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, true)
    }
}

/// Styles of everything that is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// What has no meaning of its own.
    pub text: Style,
    /// What matters less: units, explanations, rows at rest.
    pub dim: Style,
    /// Name of the program, and of the screen shown.
    pub title: Style,
    /// The tab of the screen shown.
    pub tab: Style,
    /// Headings of tables.
    pub heading: Style,
    /// Heading of the column that decides the order.
    pub sorted: Style,
    /// The selected row.
    pub selected: Style,
    /// Download.
    pub download: Style,
    /// Upload.
    pub upload: Style,
    /// A limit that holds.
    pub limit: Style,
    /// Something went wrong, or gets past a limit.
    pub alarm: Style,
    /// Something is not as it could be.
    pub warning: Style,
    /// Something went well.
    pub good: Style,
    /// Frames.
    pub frame: Style,
    /// A key.
    pub key: Style,
    /// The field that is typed into.
    pub field: Style,
}

impl Theme {
    /// The styles of that name.
    pub fn of(name: ThemeName) -> Self {
        match name {
            ThemeName::Default => Self::default_colors(),
            ThemeName::Light => Self::light(),
            ThemeName::Mono => Self::mono(),
            ThemeName::HighContrast => Self::high_contrast(),
        }
    }

    /// Of the 256 colours every terminal of today has.
    fn default_colors() -> Self {
        let plain = Style::new();
        Self {
            text: plain,
            dim: plain.fg(Color::Indexed(245)),
            title: plain.fg(Color::Indexed(81)).add_modifier(Modifier::BOLD),
            tab: plain.fg(Color::Indexed(231)).bg(Color::Indexed(25)).add_modifier(Modifier::BOLD),
            heading: plain.fg(Color::Indexed(250)).bg(Color::Indexed(236)),
            sorted: plain.fg(Color::Indexed(81)).bg(Color::Indexed(236)).add_modifier(Modifier::BOLD),
            selected: plain.bg(Color::Indexed(238)).add_modifier(Modifier::BOLD),
            download: plain.fg(Color::Indexed(78)),
            upload: plain.fg(Color::Indexed(75)),
            limit: plain.fg(Color::Indexed(221)),
            alarm: plain.fg(Color::Indexed(203)).add_modifier(Modifier::BOLD),
            warning: plain.fg(Color::Indexed(215)),
            good: plain.fg(Color::Indexed(114)),
            frame: plain.fg(Color::Indexed(240)),
            key: plain.fg(Color::Indexed(81)),
            field: plain.fg(Color::Indexed(231)).bg(Color::Indexed(24)),
        }
    }

    fn light() -> Self {
        let plain = Style::new().fg(Color::Indexed(235));
        Self {
            text: plain,
            dim: plain.fg(Color::Indexed(243)),
            title: plain.fg(Color::Indexed(25)).add_modifier(Modifier::BOLD),
            tab: plain.fg(Color::Indexed(231)).bg(Color::Indexed(25)).add_modifier(Modifier::BOLD),
            heading: plain.fg(Color::Indexed(238)).bg(Color::Indexed(253)),
            sorted: plain.fg(Color::Indexed(25)).bg(Color::Indexed(253)).add_modifier(Modifier::BOLD),
            // The colours of the cells stay.
            selected: Style::new().bg(Color::Indexed(189)).add_modifier(Modifier::BOLD),
            download: plain.fg(Color::Indexed(28)),
            upload: plain.fg(Color::Indexed(26)),
            limit: plain.fg(Color::Indexed(130)),
            alarm: plain.fg(Color::Indexed(160)).add_modifier(Modifier::BOLD),
            warning: plain.fg(Color::Indexed(130)),
            good: plain.fg(Color::Indexed(28)),
            frame: plain.fg(Color::Indexed(248)),
            key: plain.fg(Color::Indexed(25)),
            field: plain.fg(Color::Indexed(232)).bg(Color::Indexed(195)),
        }
    }

    fn mono() -> Self {
        let plain = Style::new();
        let bold = plain.add_modifier(Modifier::BOLD);
        let reversed = plain.add_modifier(Modifier::REVERSED);
        Self {
            text: plain,
            dim: plain,
            title: bold,
            tab: reversed,
            heading: plain.add_modifier(Modifier::UNDERLINED),
            sorted: bold.add_modifier(Modifier::UNDERLINED),
            selected: reversed,
            download: plain,
            upload: plain,
            limit: bold,
            alarm: bold,
            warning: bold,
            good: plain,
            frame: plain,
            key: bold,
            field: plain.add_modifier(Modifier::UNDERLINED),
        }
    }

    fn high_contrast() -> Self {
        let plain = Style::new().fg(Color::White).bg(Color::Black);
        let bold = plain.add_modifier(Modifier::BOLD);
        Self {
            text: plain,
            dim: plain,
            title: bold.fg(Color::LightYellow),
            tab: bold.fg(Color::Black).bg(Color::LightYellow),
            heading: bold.fg(Color::Black).bg(Color::White),
            sorted: bold.fg(Color::Black).bg(Color::LightYellow),
            selected: bold.fg(Color::Black).bg(Color::LightCyan),
            download: bold.fg(Color::LightGreen),
            upload: bold.fg(Color::LightCyan),
            limit: bold.fg(Color::LightYellow),
            alarm: bold.fg(Color::White).bg(Color::Red),
            warning: bold.fg(Color::LightYellow),
            good: bold.fg(Color::LightGreen),
            frame: plain,
            key: bold.fg(Color::LightYellow),
            field: bold.fg(Color::Black).bg(Color::White),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn themes_have_names() {
        for name in ThemeName::value_variants() {
            assert_eq!(name.name().parse::<ThemeName>().unwrap(), *name);
        }
        assert_eq!(ThemeName::HighContrast.next(), ThemeName::Default);
        assert!("pink".parse::<ThemeName>().is_err());
    }

    #[test]
    fn mono_has_no_colours() {
        let shown = format!("{:?}", Theme::of(ThemeName::Mono));
        assert!(!shown.contains(".fg(") && !shown.contains(".bg("), "{shown}");
    }
}
