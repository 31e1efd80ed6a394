//! Which columns of a table fit into a width, and where they lie.

/// Columns between two columns.
pub const GAP: u16 = 1;

/// What the main column gets before the others.
const FIRST: u16 = 4;

/// What a column needs.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The least width.
    pub least: u16,
    /// The largest width that is of use.
    pub most: u16,
    /// Those of the highest number leave first; 0 never leaves.
    pub rank: u8,
}

/// A column in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the columns.
    pub index: usize,
    /// Where it begins, from the left edge of the table.
    pub x: u16,
    /// How wide it is.
    pub width: u16,
}

/// The columns that fit into `width`. What is left over makes them wider, first that of index `main`, which
/// holds text and gets what nobody else can use.
pub fn fit(needs: &[Need], main: usize, width: u16) -> Vec<Place> {
    let mut chosen: Vec<usize> = (0..needs.len()).collect();
    let needed = |chosen: &[usize]| -> u16 {
        let widths: u16 = chosen.iter().map(|index| needs[*index].least).sum();
        widths + GAP * (chosen.len() as u16).saturating_sub(1)
    };
    while needed(&chosen) > width {
        // Of two that are as important the right one leaves.
        let least = (0..chosen.len()).max_by_key(|at| needs[chosen[*at]].rank);
        match least {
            Some(least) if needs[chosen[least]].rank > 0 => chosen.remove(least),
            _ => break,
        };
    }
    let mut left = width.saturating_sub(needed(&chosen));
    let mut widths: Vec<u16> = chosen.iter().map(|index| needs[*index].least).collect();
    let mut grow = |at: usize, most: u16, left: &mut u16| {
        let more = most.saturating_sub(widths[at]).min(*left);
        widths[at] += more;
        *left -= more;
    };
    let main_at = chosen.iter().position(|index| *index == main);
    if let Some(at) = main_at {
        let some = needs[main].least + (left / 3).max(FIRST);
        grow(at, some.min(needs[main].most), &mut left);
    }
    for at in (0..chosen.len()).rev() {
        grow(at, needs[chosen[at]].most, &mut left);
    }
    if let Some(at) = main_at {
        grow(at, u16::MAX, &mut left);
    }
    let mut x = 0;
    let place = |(index, own): (&usize, &u16)| {
        let place = Place { index: *index, x, width: *own };
        x = x.saturating_add(own.saturating_add(GAP));
        place
    };
    chosen.iter().zip(&widths).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: [Need; 4] = [
        Need { least: 2, most: 2, rank: 0 },
        Need { least: 7, most: 9, rank: 2 },
        Need { least: 10, most: 30, rank: 0 },
        Need { least: 5, most: 8, rank: 1 },
    ];

    fn indices(width: u16) -> Vec<usize> {
        fit(&NEEDS, 2, width).iter().map(|place| place.index).collect()
    }

    #[test]
    fn the_least_important_leave_first() {
        assert_eq!(indices(27), [0, 1, 2, 3]);
        assert_eq!(indices(26), [0, 2, 3]);
        assert_eq!(indices(18), [0, 2]);
        assert_eq!(indices(0), [0, 2]);
    }

    #[test]
    fn columns_fill_the_width_and_do_not_overlap() {
        for width in 13..=500 {
            let mut end = 0;
            for place in fit(&NEEDS, 2, width) {
                assert_eq!(place.x, end);
                end += place.width + GAP;
            }
            assert_eq!(end - GAP, width);
        }
    }
}
