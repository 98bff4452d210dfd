//! Which descriptor chains a device holds.

/// Which heads the device holds: a driver that offers one twice would have its first buffers taken
/// from under the kernel.
pub(crate) struct HeadSet {
    words: Vec<u64>,
    len: usize,
}

impl HeadSet {
    pub(crate) fn new(size: u16) -> Self {
        Self { words: vec![0; usize::from(size).div_ceil(64)], len: 0 }
    }

    fn word(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        Some((self.words.get_mut(usize::from(head / 64))?, 1 << (head % 64)))
    }

    /// False if it was there already, or cannot be.
    pub(crate) fn insert(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.word(head) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += usize::from(is_new);
        is_new
    }

    /// False if it was not there.
    pub(crate) fn remove(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.word(head) else { return false };
        let was_there = *word & bit != 0;
        *word &= !bit;
        self.len -= usize::from(was_there);
        was_there
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
