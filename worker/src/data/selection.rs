//! Which rows of a shard are used.

/// Rows of one word.
const WORD: u32 = 64;

/// The used rows of a shard, by their number among the used ones. Nothing is held for a shard of which all are used, a bit
/// and a half a row for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    rows: u32,
    /// Words of bits, and the number of used rows before each.
    some: Option<(Vec<u64>, Vec<u32>)>,
}

impl Selection {
    /// All of `rows` but the ones given, ascending.
    pub fn without(rows: u32, left_out: impl Iterator<Item = u32>) -> Self {
        let mut left_out = left_out.peekable();
        if left_out.peek().is_none() {
            return Self { rows, some: None };
        }
        let mut words = vec![u64::MAX; rows.div_ceil(WORD) as usize];
        if let Some(last) = words.last_mut().filter(|_| !rows.is_multiple_of(WORD)) {
            *last = (1 << (rows % WORD)) - 1;
        }
        for row in left_out {
            words[(row / WORD) as usize] &= !(1 << (row % WORD));
        }
        let mut before = 0;
        let count = |word: &u64| {
            before += word.count_ones();
            before - word.count_ones()
        };
        let counts = words.iter().map(count).collect();
        Self { rows, some: Some((words, counts)) }
    }

    /// How many rows are used.
    pub fn len(&self) -> u32 {
        match &self.some {
            None => self.rows,
            Some((words, counts)) => match (words.last(), counts.last()) {
                (Some(word), Some(before)) => before + word.count_ones(),
                _ => 0,
            },
        }
    }

    /// The row of the `n`th used one, counted from 0.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn row(&self, n: u32) -> u32 {
        assert!(n < self.len(), "row {n} of {}", self.len());
        let Some((words, counts)) = &self.some else { return n };
        let word = counts.partition_point(|before| *before <= n) - 1;
        let mut bits = words[word];
        (0..n - counts[word]).for_each(|_| bits &= bits - 1);
        word as u32 * WORD + bits.trailing_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::Selection;

    #[test]
    fn the_used_rows_are_those_that_are_not_left_out() {
        for rows in [0, 1, 63, 64, 65, 200] {
            for step in [1, 2, 3, 64, 65] {
                let out: Vec<u32> = (0..rows).step_by(step).collect();
                let selection = Selection::without(rows, out.iter().copied());
                let expected: Vec<u32> = (0..rows).filter(|row| !out.contains(row)).collect();
                assert_eq!(selection.len() as usize, expected.len());
                let found: Vec<u32> = (0..selection.len()).map(|n| selection.row(n)).collect();
                assert_eq!(found, expected, "{rows} rows, every {step}th left out");
            }
        }
        assert_eq!(Selection::without(7, std::iter::empty()).row(6), 6);
    }
}
