//! Aligned columns. Widths are those a terminal gives the characters, so that names in any script line up.

use unicode_width::UnicodeWidthStr;

use super::HEADING;

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table of these columns.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: one cell a column, already escaped.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The lines, each ended. Headings are left out when all of them are empty.
    pub fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].width());
                cells.chain([self.columns[column].0.width()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let headings: Vec<_> = self.columns.iter().map(|(heading, _)| *heading).collect();
        if headings.iter().any(|heading| !heading.is_empty()) {
            text.push_str(&format!("{HEADING}{}{HEADING:#}\n", self.line(&headings, &widths)));
        }
        for row in &self.rows {
            let cells: Vec<_> = row.iter().map(String::as_str).collect();
            text.push_str(&self.line(&cells, &widths));
            text.push('\n');
        }
        text
    }

    fn line(&self, cells: &[&str], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(&self.columns) {
            let gap = " ".repeat(width.saturating_sub(cell.width()));
            match align {
                Align::Left => line.extend([cell, gap.as_str(), "  "]),
                Align::Right => line.extend([gap.as_str(), cell, "  "]),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)]);
        table.row(vec!["a".into(), "1000".into(), "x".into()]);
        table.row(vec!["名前さん".into(), "1".into(), String::new()]);
        let text = table.render();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("NAME         N  WHY"), "{text}");
        assert_eq!(lines[1..], ["a         1000  x", "名前さん     1"]);
    }

    #[test]
    fn no_headings() {
        let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
        table.row(vec!["a".into(), "b".into()]);
        assert_eq!(table.render(), "a  b\n");
    }
}
