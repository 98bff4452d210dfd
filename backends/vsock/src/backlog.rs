//! What a guest sent and its socket did not take yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use guest_memory::Buffers;

/// Bytes in order. Its user bounds them; memory is no more than the next power of two.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: VecDeque<u8>,
}

/// An empty backlog keeps up to this much memory, in bytes.
const KEPT: usize = 4096;

impl Backlog {
    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Copies `len` bytes from the guest, from `at` on.
    pub(crate) fn append(&mut self, from: &Buffers, at: usize, len: usize) {
        let before = self.bytes.len();
        if before + len > self.bytes.capacity() {
            self.bytes.reserve_exact((before + len).next_power_of_two() - before);
        }
        self.bytes.resize(before + len, 0);
        let (front, back) = self.bytes.as_mut_slices();
        let (front_before, back_before) = (before.min(front.len()), before.saturating_sub(front.len()));
        let (_, front) = front.split_at_mut(front_before);
        let (_, back) = back.split_at_mut(back_before);
        let copied = from.read(at, front);
        from.read(at + copied, back);
    }

    /// Writes to a socket what it takes. Returns how much that was.
    ///
    /// # Errors
    /// As of `writev(2)`; nothing was written then.
    pub(crate) fn write_to(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let (front, back) = self.bytes.as_slices();
        let parts = [IoSlice::new(front), IoSlice::new(back)];
        let written = rustix::io::retry_on_intr(|| rustix::io::writev(&socket, &parts))?;
        self.bytes.drain(..written);
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT {
            self.bytes = VecDeque::new();
        }
        Ok(written)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "a pattern")]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use guest_memory::{Access, Budget, MapCache, View};
    use proptest::prelude::*;
    use testkit::memory::FakeForeignMemory;
    use vm_memory::GuestAddress;

    use super::*;

    const BASE: u64 = 0x4000_0000;
    const LEN: usize = 1 << 16;

    /// A guest's memory in which each byte differs from its neighbours, as one buffer in two pieces.
    fn guest() -> (Vec<u8>, Buffers) {
        let bytes: Vec<u8> = (0..LEN).map(|at| (at * 7 + at / 251) as u8).collect();
        let memory = FakeForeignMemory::new(&[(BASE, LEN as u64)]);
        memory.write(BASE, &bytes);
        let view = View::new(MapCache::new(memory, Budget::default()));
        let mut buffers = Buffers::new();
        view.pin(&[(GuestAddress(BASE + 100), LEN - 100)], Access::Write, &mut buffers).unwrap();
        view.pin(&[(GuestAddress(BASE), 100)], Access::Write, &mut buffers).unwrap();
        ([&bytes[100..], &bytes[..100]].concat(), buffers)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_goes_in_comes_out_in_order_whatever_the_pieces(
            steps in prop::collection::vec((0..LEN, 0..20_000usize, 0..20_000usize), 1..40),
        ) {
            let (bytes, buffers) = guest();
            let (here, mut there) = UnixStream::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            let (mut backlog, mut expected, mut written) = (Backlog::default(), VecDeque::<u8>::new(), 0);
            for (at, len, read) in steps {
                let len = len.min(LEN - at);
                backlog.append(&buffers, at, len);
                expected.extend(&bytes[at..at + len]);
                written += backlog.write_to(&here).unwrap_or(0);
                let mut some = vec![0; read.min(written)];
                there.read_exact(&mut some).unwrap();
                written -= some.len();
                prop_assert!(expected.drain(..some.len()).eq(some));
                prop_assert_eq!(backlog.len() + written, expected.len());
            }
        }
    }

    #[test]
    fn memory_grows_to_the_next_power_of_two_and_goes_when_all_is_written() {
        let (_, buffers) = guest();
        let (here, _there) = UnixStream::pair().unwrap();
        let mut backlog = Backlog::default();
        for step in 1..=50 {
            backlog.append(&buffers, 0, 1000);
            assert!(backlog.bytes.capacity() <= (step * 1000usize).next_power_of_two());
        }
        assert_eq!(backlog.write_to(&here).unwrap(), 50_000);
        assert!(backlog.is_empty());
        assert_eq!(backlog.bytes.capacity(), 0);
    }
}
