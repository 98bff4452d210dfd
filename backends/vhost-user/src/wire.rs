//! Messages on the socket, each sent and received within a deadline.
//!
//! The front-end of the `vhost` crate waits for answers as long as it takes: it tries again when a timeout of the
//! socket has run out. So of that crate come the names and numbers of the protocol, and from here how messages travel.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use vhost::vhost_user::message::FrontendReq;

/// Why a backend cannot be worked with any longer, by this connection at least.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It is not there.
    #[error("Nobody can be reached at the backend's socket")]
    Absent(#[source] io::Error),
    /// It is gone.
    #[error("The backend ended the connection")]
    Ended,
    /// It does not answer.
    #[error("The backend did not answer {0:?} in time")]
    Hung(FrontendReq),
    /// It does not want what it needs to be told.
    #[error("The backend refused {0:?}")]
    Refused(FrontendReq),
    /// It broke the protocol.
    #[error("The backend broke the protocol: {0}")]
    Lied(&'static str),
    /// It is not the one it was.
    #[error("The backend that came back is another: {0}")]
    Changed(&'static str),
    /// The host has no memory or no descriptors.
    #[error("The host does not give what the connection needs")]
    Host(#[source] io::Error),
}

impl ConnectionError {
    /// Whether another connection may go better.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Ended | Self::Hung(_) | Self::Host(_))
    }
}

impl From<Errno> for ConnectionError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Ended,
            errno => Self::Host(errno.into()),
        }
    }
}

/// When a conversation has to be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    fn left(self) -> Option<Timespec> {
        let left = self.0.checked_duration_since(Instant::now())?;
        Timespec::try_from(left).ok()
    }
}

/// Flags of a message's header: the protocol's version, and what the message is.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Bytes of a message's header: request, flags and size, in this order, as the host counts.
pub(crate) const HEADER: usize = 12;

/// A connected stream that never blocks by itself.
#[derive(Debug)]
pub(crate) struct Wire(OwnedFd);

impl Wire {
    /// A connection that was made elsewhere.
    pub(crate) fn over(socket: OwnedFd) -> Result<Self, ConnectionError> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(socket))
    }

    /// Connects to whoever listens at `path`.
    ///
    /// # Errors
    /// Nobody does, or the host does not allow it; [`WouldBlock`](io::ErrorKind::WouldBlock) if too many wait there.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let address = SocketAddrUnix::new(path)?;
        rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
        Ok(Self(socket))
    }

    pub(crate) fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// Sends a request, with descriptors that go with it.
    pub(crate) fn send(
        &self,
        request: FrontendReq,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        wants_acknowledgment: bool,
        deadline: Deadline,
    ) -> Result<(), ConnectionError> {
        let flags = VERSION | if wants_acknowledgment { NEED_REPLY } else { 0 };
        let message = message(u32::from(request), flags, body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ConnectionError::Host(io::ErrorKind::InvalidInput.into()));
        }
        let mut rest = &message[..];
        while !rest.is_empty() {
            match sendmsg(&self.0, &[IoSlice::new(rest)], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    // The descriptors went with the first byte.
                    ancillary.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, request, deadline)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Receives the answer to a request, which has so many bytes as `body`.
    pub(crate) fn receive(
        &self,
        request: FrontendReq,
        body: &mut [u8],
        deadline: Deadline,
    ) -> Result<(), ConnectionError> {
        let mut header = [0; HEADER];
        self.fill(&mut header, request, deadline)?;
        let Header { code, flags, size } = Header::parse(header);
        if code != u32::from(request) || flags & VERSION_MASK != VERSION || flags & REPLY == 0 {
            return Err(ConnectionError::Lied("it answered what it was not asked"));
        }
        if request == FrontendReq::GET_CONFIG && (size as usize) < body.len() {
            // So they say that they have no such range.
            return Err(ConnectionError::Refused(request));
        }
        if size as usize != body.len() {
            return Err(ConnectionError::Lied("its answer is longer or shorter than such an answer is"));
        }
        self.fill(body, request, deadline)
    }

    fn fill(&self, bytes: &mut [u8], request: FrontendReq, deadline: Deadline) -> Result<(), ConnectionError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.receive_some(rest) {
                Ok(0) => return Err(ConnectionError::Ended),
                Ok(received) => rest = rest.get_mut(received..).unwrap_or_default(),
                Err(Some(Errno::INTR)) => {}
                Err(Some(Errno::AGAIN)) => self.wait(PollFlags::IN, request, deadline)?,
                Err(Some(errno)) => return Err(errno.into()),
                Err(None) => return Err(ConnectionError::Lied("it sent descriptors, of which none was asked for")),
            }
        }
        Ok(())
    }

    /// Receives what is there; `None` for an error if descriptors came with it. Those are closed: there is no room for
    /// them.
    fn receive_some(&self, bytes: &mut [u8]) -> Result<usize, Option<Errno>> {
        let mut none = RecvAncillaryBuffer::default();
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(bytes)], &mut none, RecvFlags::CMSG_CLOEXEC)?;
        if received.flags.contains(ReturnFlags::CTRUNC) { Err(None) } else { Ok(received.bytes) }
    }

    fn wait(&self, what: PollFlags, request: FrontendReq, deadline: Deadline) -> Result<(), ConnectionError> {
        let left = deadline.left().ok_or(ConnectionError::Hung(request))?;
        match poll(&mut [PollFd::new(&self.0, what)], Some(&left)) {
            Ok(0) => Err(ConnectionError::Hung(request)),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What the backend does with the connection while nobody asks it anything: it has to be silent.
    pub(crate) fn look(&self) -> Result<(), ConnectionError> {
        let mut byte = [0];
        match rustix::net::recv(&self.0, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(ConnectionError::Ended),
            Ok(_) => Err(ConnectionError::Lied("it answered before it was asked")),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) code: u32,
    pub(crate) flags: u32,
    /// Bytes that follow.
    pub(crate) size: u32,
}

impl Header {
    pub(crate) fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            code: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    pub(crate) fn wants_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// The whole answer to a message with this header: a number, which is 0 if all went well.
    pub(crate) fn answer(self, outcome: u64) -> Vec<u8> {
        message(self.code, VERSION | REPLY, &outcome.to_ne_bytes())
    }
}

fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&code.to_ne_bytes()[..], &flags.to_ne_bytes(), &size.to_ne_bytes(), body].concat()
}
