//! Which rows of a source without a test part are held out.

use convoy_proto::order::{self, Purpose};

/// Splits `0..rows` by the seed into training and test; both keep the source's order. A source of two rows or more has
/// at least one of each.
pub fn split(rows: u32, test_size: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let held_out = ((f64::from(rows) * test_size).round() as u32).clamp(1, rows.saturating_sub(1).max(1));
    let order = order::permutation(&mut order::stream(seed, Purpose::Split, 0, 0), rows);
    let mut is_test = vec![false; rows as usize];
    order.iter().take(held_out as usize).for_each(|row| is_test[*row as usize] = true);
    let (test, train): (Vec<_>, Vec<_>) = (0..rows).partition(|row| is_test[*row as usize]);
    (train, test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_disjoint_and_follow_the_seed() {
        let (train, test) = split(50, 0.2, 1);
        assert_eq!((train.len(), test.len()), (40, 10));
        let mut all = [train, test.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert_ne!(test, split(50, 0.2, 2).1);
    }

    #[test]
    fn neither_part_is_empty() {
        for size in [0.001, 0.5, 0.999] {
            let (train, test) = split(2, size, 0);
            assert_eq!((train.len(), test.len()), (1, 1));
        }
    }
}
