//! The table of processes: which rows there are, in which order, and which of them is selected.

use std::collections::HashSet;

use super::list::Cursor;
use crate::{
    error::Error,
    model::{Filter, Grouping, Process, Row, RowKey, Snapshot, SortBy, group},
};

/// A line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it shows; its children are entries of their own.
    pub row: Row,
    /// How deep it stands in the tree.
    pub depth: usize,
    /// Whether what is below it is shown; `None`: nothing is below.
    pub open: Option<bool>,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct ProcessTable {
    /// Its lines.
    pub entries: Vec<Entry>,
    /// Where we are.
    pub cursor: Cursor,
    /// What makes a row.
    pub grouping: Grouping,
    /// What decides the order.
    pub sort: SortBy,
    /// Whether it is turned round.
    pub reversed: bool,
    /// As it was typed.
    pub filter_text: String,
    /// Why it is none; the last good one holds.
    pub filter_error: Option<String>,
    /// How many rows the filter hides.
    pub hidden: usize,
    filter: Filter,
    /// Whom the selection follows; nobody as long as it is at the top and was not moved.
    followed: Option<RowKey>,
    /// Rows that are open although they would be closed, or the other way round.
    toggled: HashSet<RowKey>,
}

impl ProcessTable {
    /// The line that keys are about.
    pub fn selected(&self) -> Option<&Entry> {
        self.entries.get(self.cursor.selected)
    }

    /// Makes the lines anew. `height`: how many are seen; `limited`: whom the filter takes for limited.
    pub fn rebuild(&mut self, snapshot: &Snapshot, height: usize, limited: &dyn Fn(&Process) -> bool) {
        let chosen = self.filter.select_where(snapshot, limited);
        let mut rows = group::group(snapshot, &chosen, self.grouping);
        group::sort(&mut rows, snapshot, self.sort, self.reversed);
        self.hidden = snapshot.processes.len() - chosen.len();
        self.entries.clear();
        for row in rows {
            self.flatten(row, 0);
        }
        let found = self.followed.as_ref().and_then(|key| self.find(key));
        let place = match (found, &self.followed) {
            (Some(found), _) => found,
            // It has left: its place stays selected, now of another, in case it comes back.
            (None, Some(_)) => self.cursor.selected,
            (None, None) => 0,
        };
        self.cursor.to(place, self.entries.len(), height);
    }

    fn find(&self, key: &RowKey) -> Option<usize> {
        self.entries.iter().position(|entry| entry.row.key == *key)
    }

    fn flatten(&mut self, mut row: Row, depth: usize) {
        let children = std::mem::take(&mut row.children);
        let is_open = (self.grouping == Grouping::Tree) != self.toggled.contains(&row.key);
        let open = (!children.is_empty()).then_some(is_open);
        self.entries.push(Entry { row, depth, open });
        if open == Some(true) {
            for child in children {
                self.flatten(child, depth + 1);
            }
        }
    }

    /// Moves the selection by some lines; from now on it follows its row.
    pub fn step(&mut self, lines: isize, height: usize) {
        self.cursor.step(lines, self.entries.len(), height);
        self.follow();
    }

    /// Moves the selection to a line.
    pub fn to(&mut self, line: usize, height: usize) {
        self.cursor.to(line, self.entries.len(), height);
        self.follow();
    }

    /// From now on the selection follows the row it is on.
    pub fn follow(&mut self) {
        self.followed = self.selected().map(|entry| entry.row.key.clone());
    }

    /// Whether the row that was selected has left, so that the one in its place is nobody's choice.
    pub fn is_lost(&self) -> bool {
        matches!((&self.followed, self.selected()), (Some(followed), Some(entry)) if entry.row.key != *followed)
    }

    /// Whether the selection was moved.
    pub fn follows(&self) -> bool {
        self.followed.is_some()
    }

    /// Other rows than before: the selection begins at the top.
    fn unfollow(&mut self) {
        self.followed = None;
        self.cursor = Cursor::default();
    }

    /// Orders by another column, in its usual direction; by the same one turned round.
    pub fn order_by(&mut self, sort: SortBy) {
        if self.sort == sort {
            self.reversed = !self.reversed;
        } else {
            (self.sort, self.reversed) = (sort, false);
        }
    }

    /// Goes to the next of `orders`, or the one before.
    pub fn next_order(&mut self, orders: &[SortBy], forward: bool) {
        let length = orders.len().max(1);
        let at = orders.iter().position(|order| *order == self.sort);
        let next = match (at, forward) {
            (Some(at), true) => (at + 1) % length,
            (Some(at), false) => (at + length - 1) % length,
            (None, _) => 0,
        };
        if let Some(sort) = orders.get(next) {
            (self.sort, self.reversed) = (*sort, false);
        }
    }

    /// Puts processes together in the next way.
    pub fn next_grouping(&mut self) {
        self.grouping = self.grouping.next();
        self.toggled.clear();
        self.unfollow();
    }

    /// Opens or closes the selected row; closing one that has nothing below it goes up to what it is below.
    pub fn open(&mut self, open: bool, height: usize) {
        let Some(entry) = self.selected() else { return };
        match entry.open {
            Some(is_open) if is_open != open => {
                let key = entry.row.key.clone();
                if !self.toggled.remove(&key) {
                    self.toggled.insert(key);
                }
                self.follow();
            }
            Some(true) | None if !open && entry.depth > 0 => {
                let (at, depth) = (self.cursor.selected, entry.depth);
                let parent = self.entries[..at].iter().rposition(|above| above.depth < depth);
                self.to(parent.unwrap_or(at), height);
            }
            _ => {}
        }
    }

    /// Takes what was typed as the filter; while it is none, the last good one holds.
    pub fn set_filter(&mut self, text: &str) {
        text.clone_into(&mut self.filter_text);
        self.filter_error = match text.parse::<Filter>() {
            Ok(filter) => {
                if filter != self.filter {
                    self.filter = filter;
                    // What was found stays selected when everything else comes back.
                    if self.filter.is_empty() { self.follow() } else { self.unfollow() }
                }
                None
            }
            Err(Error { message, .. }) => Some(message),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::process;

    fn snapshot(rates: [u64; 3]) -> Snapshot {
        let named = |(index, rate): (usize, u64)| {
            let mut process =
                process(10 + index as u32, 1 + 9 * (index as u32).min(1), ["a", "b", "c"][index]);
            process.rx_rate = rate;
            process
        };
        Snapshot { processes: rates.into_iter().enumerate().map(named).collect(), ..Snapshot::default() }
    }

    fn rebuild(table: &mut ProcessTable, snapshot: &Snapshot) {
        table.rebuild(snapshot, 10, &|_| false);
    }

    fn labels(table: &ProcessTable) -> String {
        table.entries.iter().map(|entry| format!("{}{}", " ".repeat(entry.depth), entry.row.label)).collect()
    }

    #[test]
    fn the_selection_follows_its_row_once_it_was_moved() {
        let mut table = ProcessTable::default();
        rebuild(&mut table, &snapshot([3, 2, 1]));
        rebuild(&mut table, &snapshot([1, 2, 3]));
        assert_eq!((labels(&table).as_str(), table.cursor.selected), ("cba", 0));
        table.step(1, 10);
        rebuild(&mut table, &snapshot([1, 9, 3]));
        assert_eq!((labels(&table).as_str(), table.cursor.selected), ("bca", 0));
        let mut without = snapshot([1, 9, 3]);
        without.processes.remove(1);
        rebuild(&mut table, &without);
        assert_eq!((table.selected().unwrap().row.label.as_str(), table.is_lost()), ("c", true));
        rebuild(&mut table, &snapshot([1, 9, 3]));
        assert_eq!((table.selected().unwrap().row.label.as_str(), table.is_lost()), ("b", false));
        rebuild(&mut table, &without);
        table.step(0, 10);
        assert!(!table.is_lost());
    }

    #[test]
    fn trees_open_and_close() {
        let mut table = ProcessTable { grouping: Grouping::Tree, ..ProcessTable::default() };
        let snapshot = snapshot([1, 2, 3]);
        rebuild(&mut table, &snapshot);
        assert_eq!(labels(&table), "a c b");
        table.to(1, 10);
        table.open(false, 10);
        assert_eq!(table.cursor.selected, 0);
        table.open(false, 10);
        rebuild(&mut table, &snapshot);
        assert_eq!(labels(&table), "a");
        table.open(true, 10);
        rebuild(&mut table, &snapshot);
        assert_eq!(labels(&table), "a c b");
    }

    #[test]
    fn a_bad_filter_changes_nothing() {
        let mut table = ProcessTable::default();
        table.set_filter("name:a");
        table.set_filter("name:a port:");
        rebuild(&mut table, &snapshot([1, 2, 3]));
        assert_eq!((labels(&table).as_str(), table.hidden), ("a", 2));
        assert!(table.filter_error.as_ref().unwrap().contains("port"));
        table.set_filter("");
        rebuild(&mut table, &snapshot([1, 2, 3]));
        assert_eq!((labels(&table).as_str(), table.filter_error.is_none()), ("cba", true));
    }

    #[test]
    fn orders_go_round() {
        let mut table = ProcessTable::default();
        let orders = [SortBy::Pid, SortBy::Name];
        for expected in [SortBy::Pid, SortBy::Name, SortBy::Pid] {
            table.next_order(&orders, true);
            assert_eq!(table.sort, expected);
        }
        table.next_order(&orders, false);
        assert_eq!(table.sort, SortBy::Name);
        table.order_by(SortBy::Name);
        assert!(table.reversed);
    }
}
