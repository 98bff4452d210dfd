//! Register accesses on a socket, in the place of a vCPU's slot: one at a time, and what was answered is there to be read
//! even if the worker is not any more. Before them, once, the descriptors with which a worker starts.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// What a worker is handed: the guest's memory, the device's record, the image.
pub(crate) const DESCRIPTORS: usize = 3;

/// Bytes of an access, and of its answer.
const ACCESS: usize = 24;
const ANSWER: usize = 8;

/// One access to the device's window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// Bytes from the start of the window.
    pub(crate) offset: u64,
    /// Bytes, at most 8.
    pub(crate) len: usize,
    /// What is written, or `None` for a read.
    pub(crate) value: Option<u64>,
}

impl Access {
    fn to_bytes(self) -> [u8; ACCESS] {
        let mut bytes = [0; ACCESS];
        let is_write = u64::from(self.value.is_some());
        let words = [self.offset, self.len as u64 | is_write << 32, self.value.unwrap_or(0)];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn of_bytes(bytes: [u8; ACCESS]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let (offset, how, value) = (next(), next(), next());
        Self { offset, len: (how & 0xf) as usize, value: (how >> 32 != 0).then_some(value) }
    }
}

/// Makes an access and waits for its answer. An error means that the worker is no more and has not answered.
pub(crate) fn exchange(mut socket: &UnixStream, access: Access) -> io::Result<u64> {
    socket.write_all(&access.to_bytes())?;
    let mut answer = [0; ANSWER];
    socket.read_exact(&mut answer)?;
    Ok(u64::from_le_bytes(answer))
}

/// Takes the next access.
pub(crate) fn take(mut socket: &UnixStream) -> io::Result<Access> {
    let mut bytes = [0; ACCESS];
    socket.read_exact(&mut bytes)?;
    Ok(Access::of_bytes(bytes))
}

/// Answers the access taken last.
pub(crate) fn answer(mut socket: &UnixStream, value: u64) -> io::Result<()> {
    socket.write_all(&value.to_le_bytes())
}

/// Hands over what a worker starts with.
pub(crate) fn hand_over(socket: &UnixStream, descriptors: [BorrowedFd<'_>; DESCRIPTORS]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    net::sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes what a worker starts with.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    net::recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<_> = descriptors.flatten().collect();
    descriptors.try_into().map_err(|_others| io::Error::other("A worker is started without its descriptors"))
}
