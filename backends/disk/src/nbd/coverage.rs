//! Which parts of a read have come.

/// Parts of a stretch of bytes that are there: in order, none touching another.
///
/// Servers send the chunks of a reply in order, or nearly so, and then there is one part.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    parts: Vec<(u64, u64)>,
}

/// More parts than any server has use for: a reply in single bytes, every other one left out, is to cost no memory.
const MOST_PARTS: usize = 64;

impl Coverage {
    /// Adds the bytes from `start` up to `end`. False if some of them were there, or there are too many parts.
    #[must_use]
    pub(super) fn add(&mut self, start: u64, end: u64) -> bool {
        let at = self.parts.partition_point(|(_, other_end)| *other_end < start);
        let overlaps = |part: Option<&(u64, u64)>| {
            part.is_some_and(|(other_start, other_end)| *other_start < end && start < *other_end)
        };
        let after_touching = at + usize::from(self.parts.get(at).is_some_and(|(_, other_end)| *other_end == start));
        if start >= end || overlaps(self.parts.get(at)) || overlaps(self.parts.get(after_touching)) {
            return false;
        }
        let continues = after_touching > at;
        let precedes = self.parts.get(after_touching).filter(|(next, _)| *next == end).map(|(_, next_end)| *next_end);
        match (continues, precedes) {
            (true, Some(next_end)) => {
                self.parts.remove(after_touching);
                self.set_end(at, next_end);
            }
            (true, None) => self.set_end(at, end),
            (false, Some(_)) => {
                if let Some(part) = self.parts.get_mut(at) {
                    part.0 = start;
                }
            }
            (false, None) if self.parts.len() == MOST_PARTS => return false,
            (false, None) => self.parts.insert(at, (start, end)),
        }
        true
    }

    /// Whether nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether all from `start` up to `end` is there.
    pub(super) fn is_whole(&self, start: u64, end: u64) -> bool {
        self.parts == [(start, end)]
    }

    fn set_end(&mut self, at: usize, end: u64) {
        if let Some(part) = self.parts.get_mut(at) {
            part.1 = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_in_any_order_make_a_whole() {
        let mut coverage = Coverage::default();
        for (start, end) in [(10, 20), (40, 50), (20, 30), (0, 10), (30, 40)] {
            assert!(!coverage.is_whole(0, 50));
            assert!(coverage.add(start, end), "{start}");
        }
        assert!(coverage.is_whole(0, 50));
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut coverage = Coverage::default();
        assert!((0..64).all(|at| coverage.add(2 * at, 2 * at + 1)));
        assert!(!coverage.add(1000, 1001));
        assert!(coverage.add(1, 2), "what joins others costs nothing");
    }

    proptest! {
        #[test]
        fn it_is_what_a_list_of_bytes_would_be(pieces in prop::collection::vec((0..64_usize, 0..12_usize), 0..24)) {
            let (mut coverage, mut model) = (Coverage::default(), [false; 80]);
            for (start, len) in pieces {
                let place = &mut model[start..start + len];
                let free = len > 0 && place.iter().all(|taken| !taken);
                prop_assert_eq!(coverage.add(start as u64, (start + len) as u64), free);
                if free {
                    place.fill(true);
                }
            }
            let whole = model.iter().enumerate().all(|(at, taken)| *taken == (at < 64));
            prop_assert_eq!(coverage.is_whole(0, 64), whole);
        }
    }
}
