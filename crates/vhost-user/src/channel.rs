//! The back-end channel: a second socket, on which a device speaks first.
//!
//! The one thing that is said there is that configuration space has changed. The crate `vhost` takes the channel's
//! descriptor in, but has no way to send this message on it, and its sends can block. So the descriptor is looked at
//! while it still lies in the socket, and the message is sent from here.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send};
use vhost::vhost_user::message::{BackendReq, FrontendReq};

/// Where a front-end hears of changes.
pub(crate) struct Channel(OwnedFd);

/// The first field of a message's header, 32 bits in the machine's byte order, says what it is.
const REQUEST_LEN: usize = 4;

/// The header's flags if nothing is said but the protocol's version, and no reply is asked for.
const VERSION_1: u32 = 1;

impl Channel {
    /// The channel that the next message brings, if it does, and has arrived; the message stays where it is.
    pub(crate) fn peek(socket: &UnixStream) -> Option<Self> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut request = [0; REQUEST_LEN];
        let (len, _) = recv(socket, &mut request, flags).ok()?;
        if len < REQUEST_LEN || u32::from_ne_bytes(request) != u32::from(FrontendReq::SET_BACKEND_REQ_FD) {
            return None;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(socket, &mut [IoSliceMut::new(&mut request)], &mut ancillary, flags).ok()?;
        let mut descriptors = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        descriptors.next().map(Self)
    }

    /// Says that configuration space has changed. A front-end that has not read as many earlier messages as its socket
    /// holds is not told once more.
    pub(crate) fn config_changed(&self) {
        let header = [u32::from(BackendReq::CONFIG_CHANGE_MSG), VERSION_1, 0];
        let header: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
        if let Err(error) = send(&self.0, &header, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            tracing::debug!(name: "vhost.config_change_lost", %error);
        }
    }
}
