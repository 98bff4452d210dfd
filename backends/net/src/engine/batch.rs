//! Several packets with one system call, where a tap takes one with each write: io_uring carries many writes.
//!
//! io_uring attempts the requests of one call in their order, and RWF_NOWAIT has it make one attempt only: by the time
//! the call returns each packet is sent or is not, and none has overtaken another. Requests that are linked
//! (IOSQE_IO_LINK) would promise as much, and cost more than the system calls that they save. For taps RWF_NOWAIT is
//! there since Linux 6.4.
//!
//! Packets are copied, so that what the kernel works on is never the guest's. The tap is not registered with the ring:
//! the kernel takes its time to take a ring apart, and would keep the tap for as long.
#![expect(unsafe_code, reason = "the kernel works on memory that a request names")]

use std::io::{self, ErrorKind, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::{HEADER_LEN, Packet};

/// Entries of the ring.
const ENTRIES: u32 = 64;

/// The most packets of a batch.
pub(super) const MOST: usize = ENTRIES as usize;

/// The longest packet that goes with others, header included. Those that are longer are few.
const LONGEST: usize = 2048;

/// Sends packets many at a time.
pub(super) struct Batch {
    ring: IoUring,
    /// The packets, one behind the other.
    bytes: Box<[u8]>,
    /// Where each ends in `bytes`.
    ends: Vec<usize>,
    /// What the kernel returned for each.
    returned: Vec<i32>,
}

impl Batch {
    /// Batches for `tap`.
    ///
    /// # Errors
    /// The host does not allow io_uring, or its kernel cannot write to taps so that their order is kept.
    pub(super) fn new(tap: impl AsFd) -> io::Result<Self> {
        // Too short for a packet: EINVAL, from a kernel that gets as far.
        if pwritev2(tap, &[IoSlice::new(&[0])], u64::MAX, ReadWriteFlags::NOWAIT) == Err(Errno::OPNOTSUPP) {
            return Err(ErrorKind::Unsupported.into());
        }
        let ring = IoUring::builder().dontfork().build(ENTRIES)?;
        let bytes = vec![0; MOST * LONGEST].into();
        Ok(Self { ring, bytes, ends: Vec::with_capacity(MOST), returned: Vec::with_capacity(MOST) })
    }

    /// Whether the packet is one to go with others.
    pub(super) fn takes(packet: &Packet<'_>) -> bool {
        packet.frame.len <= LONGEST - HEADER_LEN
    }

    /// Sends packets that a batch takes, at most [`MOST`], and adds to `outcomes` what became of each, up to the first
    /// that has to wait for room. Counts its system calls.
    ///
    /// # Errors
    /// The ring is of no use any more. What it has not sent is lost, as `outcomes` tells.
    pub(super) fn send(
        &mut self,
        tap: BorrowedFd<'_>,
        packets: &[Packet<'_>],
        outcomes: &mut Vec<io::Result<()>>,
        calls: &mut u64,
    ) -> io::Result<()> {
        self.copy(packets);
        let done = self.submit(tap).and_then(|()| self.complete(calls));
        if done.is_err() {
            // Nobody knows what the kernel still reads.
            mem::forget(mem::take(&mut self.bytes));
        }
        tell(&self.returned, outcomes);
        done
    }

    fn copy(&mut self, packets: &[Packet<'_>]) {
        self.ends.clear();
        let mut end = 0;
        for Packet { header, frame } in packets {
            let slot = self.bytes.get_mut(end..end + HEADER_LEN + frame.len);
            let Some((head, rest)) = slot.and_then(<[u8]>::split_first_chunk_mut) else { break };
            *head = *header;
            end += HEADER_LEN + frame.buffers.read(frame.at, rest);
            self.ends.push(end);
        }
    }

    /// Puts a write of each packet into the ring.
    fn submit(&mut self, tap: BorrowedFd<'_>) -> io::Result<()> {
        self.returned.clear();
        self.returned.resize(self.ends.len(), -libc::ECANCELED);
        let (tap, mut start) = (types::Fd(tap.as_raw_fd()), 0);
        for (number, &end) in (0..).zip(&self.ends) {
            let packet = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            let len = u32::try_from(packet.len()).map_err(|_too_long| ErrorKind::InvalidInput)?;
            let write = opcode::Write::new(tap, packet.as_ptr(), len).rw_flags(libc::RWF_NOWAIT).build();
            push(&mut self.ring, &write.user_data(number))?;
        }
        Ok(())
    }

    /// Has the kernel do what is in the ring.
    fn complete(&mut self, calls: &mut u64) -> io::Result<()> {
        let mut left = self.ends.len();
        while left > 0 {
            *calls += 1;
            match self.ring.submit_and_wait(left) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for completion in self.ring.completion() {
                let number = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                if let Some(returned) = self.returned.get_mut(number) {
                    *returned = completion.result();
                }
                left = left.saturating_sub(1);
            }
        }
        Ok(())
    }
}

/// There is room: the ring has an entry for each packet of a batch, and is empty between batches.
fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    let mut submission = ring.submission();
    // SAFETY: the entry is a write from `Batch::bytes`, to a descriptor that its port borrows to the end of the call.
    // Until the kernel has told of all entries the bytes stay as they are; if it fails to they stay for ever.
    unsafe { submission.push(entry) }.map_err(|_full| ErrorKind::WouldBlock.into())
}

/// Adds what became of packets for which the kernel returned this, up to the first that has to wait for room.
fn tell(returned: &[i32], outcomes: &mut Vec<io::Result<()>>) {
    let waiting = returned.iter().rev().take_while(|returned| **returned == -libc::EAGAIN).count();
    let (done, waiting) = returned.split_at(returned.len() - waiting);
    outcomes.extend(done.iter().map(|&returned| match returned {
        0.. => Ok(()),
        // There was room for one behind it, which it must not follow.
        _ if returned == -libc::EAGAIN => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        _ => Err(io::Error::from_raw_os_error(-returned)),
    }));
    if !waiting.is_empty() {
        outcomes.push(Err(ErrorKind::WouldBlock.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(returned: &[i32]) -> Vec<String> {
        let mut outcomes = Vec::new();
        tell(returned, &mut outcomes);
        outcomes
            .iter()
            .map(|outcome| outcome.as_ref().map_or_else(|error| error.kind().to_string(), |()| "sent".into()))
            .collect()
    }

    #[test]
    fn packets_without_room_wait_if_none_behind_them_was_sent() {
        let (full, invalid) = (-libc::EAGAIN, -libc::EINVAL);
        let waits = ErrorKind::WouldBlock.to_string();
        assert_eq!(told(&[60, 61]), ["sent", "sent"]);
        assert_eq!(told(&[60, full, full]), ["sent", &waits]);
        assert_eq!(told(&[full, full, full]), [waits.as_str()]);
        let told = told(&[invalid, full, 60, full]);
        assert_eq!(told.len(), 4);
        assert_eq!([&told[0], &told[2], &told[3]], [&ErrorKind::InvalidInput.to_string(), "sent", &waits]);
        assert_ne!(told[1], waits, "it is lost, and does not overtake");
    }
}
