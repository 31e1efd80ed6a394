//! A place in a list, and the part of the list that is seen.

/// Which line is selected, and which is the first that is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Index of the selected line.
    pub selected: usize,
    /// Index of the first line seen.
    pub offset: usize,
}

impl Cursor {
    /// Moves by some lines, no further than the ends.
    pub fn step(&mut self, lines: isize, length: usize, height: usize) {
        self.to(self.selected.saturating_add_signed(lines), length, height);
    }

    /// Moves to a line, or the last one; scrolls no more than needed.
    pub fn to(&mut self, line: usize, length: usize, height: usize) {
        self.selected = line.min(length.saturating_sub(1));
        if self.selected < self.offset {
            self.offset = self.selected;
        } else if height > 0 && self.selected >= self.offset + height {
            self.offset = self.selected + 1 - height;
        }
        // No empty lines below the last one where there are others above.
        self.offset = self.offset.min(length.saturating_sub(height));
    }

    /// Scrolls without a selected line.
    pub fn scroll(&mut self, lines: isize, length: usize, height: usize) {
        self.offset = self.offset.saturating_add_signed(lines).min(length.saturating_sub(height));
        self.selected = self.offset;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_selected_line_is_seen(
            moves in prop::collection::vec((-50isize..50, 0usize..100, 1usize..30), 1..30)
        ) {
            let mut cursor = Cursor::default();
            for (lines, length, height) in moves {
                cursor.step(lines, length, height);
                prop_assert!(cursor.selected < length.max(1));
                prop_assert!(cursor.offset <= cursor.selected);
                prop_assert!(cursor.selected < cursor.offset + height);
                prop_assert!(cursor.offset + height <= length.max(height));
            }
        }
    }
}
