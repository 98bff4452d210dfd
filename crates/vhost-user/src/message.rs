//! The next message, as it lies in the socket. `vhost` will read it; before, two things are to be known of it.
//!
//! Whether all of it is there: `vhost` would wait for the rest and could not be told to stop. And which channel it
//! brings, if any: `vhost` keeps that descriptor to itself, and has no way to send on it the one message that a device
//! has to send.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::io::ioctl_fionread;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recv, recvmsg};
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE};

use crate::channel::Channel;

/// A message's header; nothing of it has been checked.
pub(crate) struct Message {
    /// What it is and how long its payload is, if that has arrived.
    header: Option<(u32, u32)>,
}

/// Bytes of a header: request, flags and size, 32 bits each in the machine's byte order.
const HEADER_LEN: usize = 12;

/// It stays where it is, nobody waits for it, and descriptors that come with it are not handed to programs we start.
const LOOK: RecvFlags = RecvFlags::PEEK.union(RecvFlags::DONTWAIT).union(RecvFlags::CMSG_CLOEXEC);

impl Message {
    /// Looks at the next message.
    pub(crate) fn peek(socket: &UnixStream) -> Self {
        let mut header = [0; HEADER_LEN];
        let arrived = recv(socket, &mut header, LOOK).is_ok_and(|(_, len)| len == HEADER_LEN);
        let [a, b, c, d, _, _, _, _, e, f, g, h] = header;
        let fields = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        Self { header: arrived.then_some(fields) }
    }

    /// Whether all of it has arrived, or as much as there needs to be to refuse it.
    pub(crate) fn is_whole(&self, socket: &UnixStream) -> bool {
        let Some((_, size)) = self.header else { return false };
        let size = size as usize;
        size > MAX_MSG_SIZE || ioctl_fionread(socket).is_ok_and(|len| len >= (HEADER_LEN + size) as u64)
    }

    /// The back-end channel, if it brings one.
    pub(crate) fn channel(&self, socket: &UnixStream) -> Option<Channel> {
        self.header.filter(|(request, _)| *request == u32::from(FrontendReq::SET_BACKEND_REQ_FD))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(socket, &mut [IoSliceMut::new(&mut [0; HEADER_LEN])], &mut ancillary, LOOK).ok()?;
        let mut descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        descriptors.next().map(Channel::new)
    }
}
