//! What a backend says of its own accord, on a socket of its own: that its configuration has changed.
//!
//! Nothing waits here for the rest of a message, nor for room for an answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use vhost::vhost_user::message::{BackendReq, MAX_MSG_SIZE};

use crate::wire::{ConnectionError, HEADER, Header};

/// How many bytes of messages are looked at at a time.
const BATCH: usize = 4096;

/// Our end of it.
pub(crate) struct Channel {
    socket: OwnedFd,
    acknowledges: bool,
    /// The header of a message that is still coming.
    header: Vec<u8>,
    /// How many bytes behind the last header are still to come; nothing is done with them.
    rest: usize,
}

/// What there was to hear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Configuration space is another.
    pub(crate) config_changed: bool,
    /// The backend will say no more.
    pub(crate) ended: bool,
}

impl Channel {
    /// Our end, and the backend's.
    pub(crate) fn new(acknowledges: bool) -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self { socket: ours, acknowledges, header: Vec::with_capacity(HEADER), rest: 0 }, theirs))
    }

    /// Hears some of what was said; there may be more.
    pub(crate) fn listen(&mut self) -> Result<Heard, ConnectionError> {
        let mut bytes = [0; BATCH];
        // Descriptors that come along find no room, and are closed.
        match rustix::net::recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Heard { ended: true, ..Heard::default() }),
            Ok((_, received)) => self.understand(bytes.get(..received).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Heard::default()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn understand(&mut self, mut bytes: &[u8]) -> Result<Heard, ConnectionError> {
        let mut heard = Heard::default();
        while !bytes.is_empty() {
            let passed_over = self.rest.min(bytes.len());
            self.rest -= passed_over;
            bytes = bytes.get(passed_over..).unwrap_or_default();
            let wanted = if self.rest > 0 { 0 } else { HEADER - self.header.len() };
            let (new, others) = bytes.split_at(wanted.min(bytes.len()));
            self.header.extend_from_slice(new);
            bytes = others;
            if let Ok(header) = <[u8; HEADER]>::try_from(&self.header[..]) {
                self.header.clear();
                heard.config_changed |= self.obey(Header::parse(header))?;
            }
        }
        Ok(heard)
    }

    /// Does what a message asks for. Returns whether it told of another configuration.
    fn obey(&mut self, header: Header) -> Result<bool, ConnectionError> {
        self.rest = header.size as usize;
        if self.rest > MAX_MSG_SIZE {
            return Err(ConnectionError::Lied("it sent a message that is longer than messages are"));
        }
        let config_changed = header.code == u32::from(BackendReq::CONFIG_CHANGE_MSG);
        if self.acknowledges && header.wants_reply() {
            // Before anything is asked of the backend, which may do nothing until it has this.
            let answer = header.answer(u64::from(!config_changed));
            match rustix::net::send(&self.socket, &answer, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) if sent == answer.len() => {}
                Ok(_) | Err(Errno::AGAIN) => {
                    return Err(ConnectionError::Lied("it does not take the answers it wants"));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(config_changed)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const CHANGED: Heard = Heard { config_changed: true, ended: false };
    const NOTHING: Heard = Heard { config_changed: false, ended: false };

    fn channel() -> (Channel, UnixStream) {
        let (channel, theirs) = Channel::new(true).unwrap();
        (channel, theirs.into())
    }

    fn message(code: BackendReq, flags: u32, body: &[u8]) -> Vec<u8> {
        let header = [u32::from(code), flags, u32::try_from(body.len()).unwrap()];
        [&header.map(u32::to_ne_bytes).concat(), body].concat()
    }

    #[test]
    fn a_change_is_heard_and_other_messages_are_passed_over() {
        let (mut channel, mut backend) = channel();
        assert_eq!(channel.listen().unwrap(), NOTHING);
        backend.write_all(&message(BackendReq::SHMEM_UNMAP, 1, &[7; 40])).unwrap();
        assert_eq!(channel.listen().unwrap(), NOTHING);
        let two = [message(BackendReq::VRING_ERR, 1, &[2; 8]), message(BackendReq::CONFIG_CHANGE_MSG, 1, &[])].concat();
        backend.write_all(&two).unwrap();
        assert_eq!(channel.listen().unwrap(), CHANGED);
        assert_eq!(channel.listen().unwrap(), NOTHING);
    }

    #[test]
    fn g09_half_a_message_waits_for_its_other_half_without_anybody_waiting() {
        let (mut channel, mut backend) = channel();
        let messages =
            [message(BackendReq::SHARED_OBJECT_ADD, 1, &[3; 16]), message(BackendReq::CONFIG_CHANGE_MSG, 1, &[])];
        let bytes = messages.concat();
        for (index, byte) in bytes.iter().enumerate() {
            assert_eq!(channel.listen().unwrap(), NOTHING);
            backend.write_all(&[*byte]).unwrap();
            if index + 1 == bytes.len() {
                assert_eq!(channel.listen().unwrap(), CHANGED);
            }
        }
    }

    #[test]
    fn what_wants_an_answer_gets_it_by_what_it_was() {
        let (mut channel, mut backend) = channel();
        for (code, outcome) in [(BackendReq::CONFIG_CHANGE_MSG, 0), (BackendReq::SHMEM_MAP, 1)] {
            backend.write_all(&message(code, 9, &[])).unwrap();
            channel.listen().unwrap();
            let mut answer = [0; 20];
            backend.read_exact(&mut answer).unwrap();
            assert_eq!(answer[..], message(code, 5, &u64::to_ne_bytes(outcome)));
        }
    }

    #[test]
    fn g09_a_message_of_4_gib_is_not_waited_for() {
        let (mut channel, mut backend) = channel();
        let header = [u32::from(BackendReq::CONFIG_CHANGE_MSG), 1, u32::MAX].map(u32::to_ne_bytes).concat();
        backend.write_all(&header).unwrap();
        assert!(matches!(channel.listen(), Err(ConnectionError::Lied(_))));
    }

    #[test]
    fn g09_answers_that_nobody_takes_do_not_stop_us() {
        let (mut channel, mut backend) = channel();
        let flood = message(BackendReq::CONFIG_CHANGE_MSG, 9, &[]).repeat(100);
        let refused = (0..10_000).find_map(|_| {
            backend.write_all(&flood).unwrap();
            channel.listen().err()
        });
        assert!(matches!(refused, Some(ConnectionError::Lied(_))), "{refused:?}");
    }

    #[test]
    fn its_end_is_told() {
        let (mut channel, backend) = channel();
        drop(backend);
        assert!(channel.listen().unwrap().ended);
    }
}
