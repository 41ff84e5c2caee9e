//! Which parts of a region are free: whole pages, the lowest that is large enough first, so that what was used last is used
//! again.

use std::collections::BTreeMap;

/// What is given out comes in multiples of this.
pub(super) const PAGE: usize = 4096;

/// A size in whole pages.
pub(super) fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

/// A region of so many bytes.
#[derive(Debug)]
pub(super) struct Ranges {
    /// By where they begin; no two touch.
    free: BTreeMap<usize, usize>,
    /// From here on all is free, and from there on nothing was ever given out.
    rest: usize,
    touched: usize,
    end: usize,
}

impl Ranges {
    pub fn new(bytes: usize) -> Ranges {
        Ranges { free: BTreeMap::new(), rest: 0, touched: 0, end: bytes }
    }

    /// Takes so many bytes, whole pages; gives where they begin, and whether nobody had them before.
    pub fn take(&mut self, bytes: usize) -> Option<(usize, bool)> {
        let fits = self.free.iter().find(|(_, len)| **len >= bytes).map(|(start, len)| (*start, *len));
        if let Some((start, len)) = fits {
            self.free.remove(&start);
            if len > bytes {
                self.free.insert(start + bytes, len - bytes);
            }
            return Some((start, false));
        }
        let (start, end) = (self.rest, self.rest.checked_add(bytes).filter(|end| *end <= self.end)?);
        let is_fresh = start >= self.touched;
        self.rest = end;
        self.touched = self.touched.max(end);
        Some((start, is_fresh))
    }

    /// Takes back what was given out.
    pub fn give(&mut self, start: usize, bytes: usize) {
        let (mut start, mut end) = (start, start + bytes);
        if let Some((before, len)) = self.free.range(..start).next_back().map(|(before, len)| (*before, *len))
            && before + len == start
        {
            self.free.remove(&before);
            start = before;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        if end == self.rest {
            self.rest = start;
        } else {
            self.free.insert(start, end - start);
        }
    }

    /// Makes what was given out larger where it is, if there is room.
    pub fn extend(&mut self, start: usize, bytes: usize, more: usize) -> bool {
        let end = start + bytes;
        if end == self.rest {
            let Some(rest) = end.checked_add(more).filter(|rest| *rest <= self.end) else { return false };
            self.rest = rest;
            self.touched = self.touched.max(rest);
            return true;
        }
        let Some(len) = self.free.get(&end).copied().filter(|len| *len >= more) else { return false };
        self.free.remove(&end);
        if len > more {
            self.free.insert(end + more, len - more);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However it is used, no byte is given out twice, what is called fresh is, and in the end all is free again.
        #[test]
        fn nothing_is_given_out_twice(events in proptest::collection::vec((0u8..4, 1usize..9, 0usize..20), 0..200)) {
            let size = 64;
            let mut ranges = Ranges::new(size);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            let mut used = vec![false; size];
            for (event, len, which) in events {
                let held = if taken.is_empty() { None } else { Some(which % taken.len()) };
                match (event, held) {
                    (0 | 1, _) | (_, None) => {
                        let Some((start, is_fresh)) = ranges.take(len) else { continue };
                        prop_assert!(start + len <= size && !(is_fresh && used[start..start + len].contains(&true)));
                        used[start..start + len].fill(true);
                        taken.push((start, len));
                    }
                    (2, Some(at)) => {
                        let (start, len) = taken.swap_remove(at);
                        ranges.give(start, len);
                    }
                    (_, Some(at)) => {
                        let (start, bytes) = taken[at];
                        if ranges.extend(start, bytes, len) {
                            taken[at].1 += len;
                            used[start..start + bytes + len].fill(true);
                        }
                    }
                }
                let mut sorted = taken.clone();
                sorted.sort_unstable();
                prop_assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{:?}", sorted);
                prop_assert!(sorted.last().is_none_or(|(start, len)| start + len <= size));
            }
            taken.into_iter().for_each(|(start, len)| ranges.give(start, len));
            prop_assert_eq!(ranges.take(size).map(|(start, _)| start), Some(0));
        }
    }
}
