//! The indices of a split ring: numbers of 16 bits that only ever grow, and wrap (virtio 1.2 §2.7.6, §2.7.8).

/// How many entries an index of the other side is ahead of ours; `None` if that is more than the ring has.
pub(crate) fn ahead(theirs: u16, ours: u16, size: u16) -> Option<u16> {
    Some(theirs.wrapping_sub(ours)).filter(|ahead| *ahead <= size)
}

/// Whether an index passes the entry that the other side wants to hear of, `event`, when it goes from `before` to `now`
/// (§2.7.7.2).
pub(crate) fn passes(event: u16, before: u16, now: u16) -> bool {
    // From the entry's far side, `now` is nearer than `before` is, unless it was passed earlier, or not yet.
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

#[cfg(test)]
mod tests {
    use testkit::cases;

    use super::*;

    /// Where indices start from: around where they wrap, and where their sign would change if they had one.
    const STARTS: [u16; 6] = [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff];

    #[test]
    fn spec_2_7_6_any_available_index_is_so_many_entries_ahead_or_refused() {
        let sizes = (0..=15).map(|bit| 1_u16 << bit);
        cases::each(sizes, |size| {
            for ours in STARTS {
                // Every index that a driver can write, by how many steps it takes to get there.
                let mut theirs = ours;
                for steps in 0..=u16::MAX {
                    assert_eq!(ahead(theirs, ours, size), (steps <= size).then_some(steps), "from {ours}");
                    theirs = theirs.wrapping_add(1);
                }
            }
        });
    }

    #[test]
    fn spec_2_7_7_2_the_driver_hears_of_its_event_if_and_only_if_that_entry_was_filled() {
        let powers = (0..=15).map(|bit| 1_u16 << bit);
        cases::each(powers.flat_map(|power| [power - 1, power, power + 1]), |filled| {
            for before in STARTS {
                let now = before.wrapping_add(filled);
                // Every entry that a driver can name, counted from the first one that was filled.
                let mut event = before;
                for place in 0..=u16::MAX {
                    assert_eq!(passes(event, before, now), place < filled, "{event}, {filled} entries from {before}");
                    event = event.wrapping_add(1);
                }
            }
        });
    }
}
