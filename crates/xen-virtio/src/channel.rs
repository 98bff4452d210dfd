//! A connection between two of our processes: whole messages, some with file descriptors.
//!
//! A `SOCK_SEQPACKET` pair keeps message boundaries, so a message is received whole or refused. What arrives is
//! bounded in bytes and descriptors, and parsed strictly; either side may treat the other as hostile. Sending never
//! waits: a peer that does not read is a peer that no longer works.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message. The report of a guest with all the devices Xen has interrupts for takes a quarter.
pub const MESSAGE_MAX: usize = 64 * 1024;
/// The most descriptors that come with one message. A disk over NBD brings a connection for each of its queues. (Linux
/// sends up to 253 at a time, `SCM_MAX_FD`.)
pub const DESCRIPTORS_MAX: usize = 160;

const ANCILLARY_SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// One end of the connection.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("The connection failed")]
    Io(#[from] io::Error),
    /// The peer has let so many messages wait that no more fit.
    #[error("The other side does not read its messages")]
    Stuffed,
    /// Longer than [`MESSAGE_MAX`], or with more than [`DESCRIPTORS_MAX`] descriptors.
    #[error("A message is longer than {MESSAGE_MAX} bytes, or carries more than {DESCRIPTORS_MAX} descriptors")]
    TooLong,
    /// Not a message of this protocol.
    #[error("A message is none of this protocol")]
    Garbage(#[from] serde_json::Error),
}

/// A message and the descriptors that came with it.
pub type Received<M> = (M, Vec<OwnedFd>);

impl Channel {
    /// Two connected ends; neither is inherited over exec.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (here, there) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: here }, Self { socket: there }))
    }

    /// Sends a message; the descriptors are duplicated for the peer.
    ///
    /// # Errors
    /// See [`ChannelError`]; nothing was sent then.
    pub fn send<M: Serialize>(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(ChannelError::TooLong);
        }
        let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ChannelError::TooLong);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN) => Err(ChannelError::Stuffed),
            Err(errno) => Err(ChannelError::Io(errno.into())),
        }
    }

    /// Takes the next message, if one waits: `Ok(None)` means that the peer is gone.
    ///
    /// # Errors
    /// [`ChannelError::Io`] of kind `WouldBlock`: none waits.
    pub fn try_receive<M: DeserializeOwned>(&self) -> Result<Option<Received<M>>, ChannelError> {
        self.receive(RecvFlags::empty())
    }

    /// Looks at the next message as [`try_receive`](Self::try_receive) does, and leaves it where it is.
    ///
    /// # Errors
    /// As there.
    pub fn peek<M: DeserializeOwned>(&self) -> Result<Option<Received<M>>, ChannelError> {
        self.receive(RecvFlags::PEEK)
    }

    fn receive<M: DeserializeOwned>(&self, how: RecvFlags) -> Result<Option<Received<M>>, ChannelError> {
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); ANCILLARY_SPACE];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | how;
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let received = match net::recvmsg(&self.socket, &mut buffers, &mut ancillary, flags) {
            // Said once, before what the peer sent last, if it went without reading all that we sent.
            Err(Errno::CONNRESET) => return self.receive(how),
            received => received.map_err(io::Error::from)?,
        };
        let descriptors = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let descriptors: Vec<_> = descriptors.collect();
        let is_cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        if is_cut || descriptors.len() > DESCRIPTORS_MAX {
            return Err(ChannelError::TooLong);
        }
        match bytes.get(..received.bytes) {
            None | Some([]) => Ok(None),
            Some(message) => Ok(Some((serde_json::from_slice(message)?, descriptors))),
        }
    }
}

impl From<OwnedFd> for Channel {
    /// Takes over a socket that another process made with [`Channel::pair`].
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    /// For event loops, which know descriptors by number.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Note {
        text: String,
    }

    fn note(text: impl Into<String>) -> Note {
        Note { text: text.into() }
    }

    fn send_raw(channel: &Channel, bytes: &[u8]) {
        net::send(channel, bytes, SendFlags::empty()).unwrap();
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (here, there) = Channel::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"image").unwrap();

        here.send(&note("take this"), &[file.as_fd()]).unwrap();
        let (message, mut descriptors) = there.try_receive::<Note>().unwrap().unwrap();

        assert_eq!(message, note("take this"));
        let mut received = std::fs::File::from(descriptors.pop().unwrap());
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("image", 0));
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let (here, there) = Channel::pair().unwrap();

        let sent = here.send(&note("x".repeat(MESSAGE_MAX)), &[]);

        assert!(matches!(sent, Err(ChannelError::TooLong)));
        let nothing = there.try_receive::<Note>().unwrap_err();
        assert!(matches!(nothing, ChannelError::Io(error) if error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_message_that_a_hostile_peer_made_too_long_is_refused_and_the_next_one_is_not() {
        let (here, there) = Channel::pair().unwrap();
        send_raw(&here, &vec![b' '; MESSAGE_MAX + 1]);
        here.send(&note("after"), &[]).unwrap();

        assert!(matches!(there.try_receive::<Note>(), Err(ChannelError::TooLong)));
        assert_eq!(there.try_receive::<Note>().unwrap().unwrap().0, note("after"));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (here, there) = Channel::pair().unwrap();
        for garbage in [&b"\xff\xfe"[..], b"{", b"[]", br#"{"text":1}"#, br#"{"text":"a","more":1}"#] {
            send_raw(&here, garbage);

            assert!(matches!(there.try_receive::<Note>(), Err(ChannelError::Garbage(_))), "{garbage:?}");
        }
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (here, there) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let too_many = [file.as_fd(); DESCRIPTORS_MAX + 1];

        assert!(matches!(here.send(&note(""), &too_many), Err(ChannelError::TooLong)));
        let mut space = [MaybeUninit::uninit(); 2 * ANCILLARY_SPACE];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&too_many)));
        let message = [IoSlice::new(br#"{"text":""}"#)];
        net::sendmsg(&here, &message, &mut ancillary, SendFlags::empty()).unwrap();

        assert!(matches!(there.try_receive::<Note>(), Err(ChannelError::TooLong)));
    }

    #[test]
    fn last_words_are_heard_of_a_peer_that_went_without_listening() {
        let (here, there) = Channel::pair().unwrap();
        here.send(&note("unread"), &[]).unwrap();
        there.send(&note("farewell"), &[]).unwrap();
        drop(there);

        assert_eq!(here.try_receive::<Note>().unwrap().unwrap().0, note("farewell"));
        assert!(matches!(once_gone(|| here.try_receive::<Note>()), Ok(None)));
    }

    /// What comes of it when nobody has the peer's end any more: a process that another test is about to start has a copy of
    /// it for a moment.
    fn once_gone<T>(mut attempt: impl FnMut() -> Result<T, ChannelError>) -> Result<T, ChannelError> {
        loop {
            match attempt() {
                Err(ChannelError::Stuffed) => {}
                Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_peer_that_does_not_read_is_told_apart_from_one_that_is_gone() {
        let (here, there) = Channel::pair().unwrap();
        let unread = (0..100_000).find_map(|_| here.send(&note("x".repeat(1000)), &[]).err());
        drop(there);
        let gone = once_gone(|| here.send(&note(""), &[]));

        assert!(matches!(unread, Some(ChannelError::Stuffed)));
        assert!(matches!(gone, Err(ChannelError::Io(_))));
        assert!(matches!(once_gone(|| here.try_receive::<Note>()), Ok(None)));
    }
}
