//! Bytes in the order in which they came, in memory that outlives the process.
//!
//! Two counts say which of them are there: of the bytes that have ever been put in, and of those taken out. Each changes
//! with one store, after the bytes are in place; so it is true wherever the writer was stopped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{Mapping, SharedMemory};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use vm_memory::Bytes;

use crate::port::{INPUT_BYTES, OUTPUT_BYTES, Port};

/// Bytes before the bytes: the counts.
const HEADER: usize = 64;

/// Memory of a port: its output, then its input.
const PORT: usize = (HEADER + OUTPUT_BYTES + HEADER + INPUT_BYTES).next_multiple_of(4096);

// An index is a count modulo the room, also where a count wraps.
const _: () = assert!(OUTPUT_BYTES.is_power_of_two() && INPUT_BYTES.is_power_of_two());

/// Memory for so many ports, of which nothing is on its way.
///
/// # Errors
/// The host has no memory or no descriptor left.
pub(crate) fn memory(ports: usize) -> io::Result<OwnedFd> {
    SharedMemory::new("console", ports * PORT)?.as_fd().try_clone_to_owned()
}

/// So many ports over their [`memory`], in which a former process may have left something. `None` if it is none.
pub(crate) fn ports(memory: OwnedFd, count: usize) -> Option<Vec<Port>> {
    let seals = fcntl_get_seals(&memory).ok()?;
    let size = fstat(&memory).ok()?.st_size;
    if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(count * PORT) {
        return None;
    }
    let memory = Arc::new(SharedMemory::of(memory, 0, count * PORT).ok()?);
    let port = |index| {
        let at = index * PORT;
        let output = Backlog::new(Arc::clone(&memory), at, OUTPUT_BYTES);
        Port::new(output, Backlog::new(Arc::clone(&memory), at + HEADER + OUTPUT_BYTES, INPUT_BYTES))
    };
    Some((0..count).map(port).collect())
}

/// See the module. Whoever has it sees to it that nobody else changes it meanwhile.
pub(crate) struct Backlog {
    memory: Arc<SharedMemory>,
    at: usize,
    room: usize,
}

impl Backlog {
    fn new(memory: Arc<SharedMemory>, at: usize, room: usize) -> Self {
        let backlog = Self { memory, at, room };
        if backlog.put().wrapping_sub(backlog.taken()) > room as u64 {
            // Nobody of us has written this.
            backlog.set_taken(backlog.put());
        }
        backlog
    }

    /// Bytes that are there.
    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.put().wrapping_sub(self.taken())).unwrap_or(self.room).min(self.room)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts bytes in, as many as there is room for. Returns how many.
    pub(crate) fn push(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room - self.len());
        let put = self.put();
        self.write(put, bytes.get(..count).unwrap_or_default());
        self.store(8, put.wrapping_add(count as u64));
        count
    }

    /// Copies the first bytes. Returns how many.
    pub(crate) fn peek(&self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.len());
        self.read(self.taken(), to.get_mut(..count).unwrap_or_default());
        count
    }

    /// Takes the first bytes out.
    pub(crate) fn remove(&self, count: usize) {
        self.set_taken(self.taken().wrapping_add(count.min(self.len()) as u64));
    }

    /// Takes bytes out that come after the first `kept`.
    pub(crate) fn remove_behind(&self, kept: usize, count: usize) {
        let mut first = vec![0; kept.min(self.len())];
        let count = count.min(self.len() - first.len());
        self.peek(&mut first);
        self.write(self.taken().wrapping_add(count as u64), &first);
        self.remove(count);
    }

    fn put(&self) -> u64 {
        self.load(8)
    }

    fn taken(&self) -> u64 {
        self.load(0)
    }

    fn set_taken(&self, taken: u64) {
        self.store(0, taken);
    }

    /// Where the byte of a count is, and how many are from there to the end.
    fn place(&self, count: u64) -> (usize, usize) {
        let index = usize::try_from(count % self.room as u64).unwrap_or(0);
        (self.at + HEADER + index, self.room - index)
    }

    fn write(&self, from: u64, bytes: &[u8]) {
        let (at, left) = self.place(from);
        let (first, rest) = bytes.split_at(bytes.len().min(left));
        // All places are within the memory.
        let _ = self.memory.memory().write_slice(first, at);
        let _ = self.memory.memory().write_slice(rest, self.at + HEADER);
    }

    fn read(&self, from: u64, bytes: &mut [u8]) {
        let (at, left) = self.place(from);
        let (first, rest) = bytes.split_at_mut(bytes.len().min(left));
        let _ = self.memory.memory().read_slice(first, at);
        let _ = self.memory.memory().read_slice(rest, self.at + HEADER);
    }

    fn load(&self, field: usize) -> u64 {
        self.memory.memory().load(self.at + field, Ordering::Acquire).unwrap_or(0)
    }

    fn store(&self, field: usize, count: u64) {
        let _ = self.memory.memory().store(count, self.at + field, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(memory: &OwnedFd) -> Backlog {
        let memory = SharedMemory::of(memory.try_clone().unwrap(), 0, PORT).unwrap();
        Backlog::new(Arc::new(memory), 0, OUTPUT_BYTES)
    }

    fn bytes(backlog: &Backlog) -> Vec<u8> {
        let mut bytes = vec![0; backlog.len()];
        assert_eq!(backlog.peek(&mut bytes), bytes.len());
        bytes
    }

    #[test]
    fn what_was_put_in_is_there_for_whoever_follows() {
        let memory = memory(1).unwrap();
        // Around the end, and where a count wraps.
        for start in [0, OUTPUT_BYTES as u64 - 3, u64::MAX - 2] {
            let first = backlog(&memory);
            first.store(8, start);
            first.set_taken(start);
            assert_eq!(first.push(b"abcdefgh"), 8);
            first.remove(2);
            assert_eq!(bytes(&backlog(&memory)), b"cdefgh");
            backlog(&memory).remove_behind(1, 3);
            assert_eq!(bytes(&first), b"cgh");
        }
    }

    #[test]
    fn there_is_room_for_so_much_and_no_more() {
        let memory = memory(1).unwrap();
        let backlog = backlog(&memory);
        assert_eq!(backlog.push(&vec![1; OUTPUT_BYTES + 1]), OUTPUT_BYTES);
        assert_eq!(backlog.push(b"x"), 0);
        backlog.remove(usize::MAX);
        assert!(backlog.is_empty());
    }

    #[test]
    fn counts_that_cannot_be_are_of_nothing() {
        let memory = memory(1).unwrap();
        backlog(&memory).store(8, OUTPUT_BYTES as u64 + 1);
        assert_eq!(backlog(&memory).len(), 0);
        assert_eq!(backlog(&memory).push(b"x"), 1);
    }

    #[test]
    fn memory_that_is_something_else_is_refused() {
        assert!(ports(memory(2).unwrap(), 1).is_none());
        assert!(ports(rustix::pipe::pipe().unwrap().0, 1).is_none());
        assert_eq!(ports(memory(2).unwrap(), 2).unwrap().len(), 2);
    }
}
