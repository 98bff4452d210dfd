//! Rings that are enabled before any features are set.
//!
//! The specification has SET_VRING_ENABLE come after SET_FEATURES, and `vhost` takes one that comes before out of the
//! socket and refuses it. QEMU's network card sends it before, and means it. So the message is looked at while it still
//! lies in the socket, and done from here once it has been refused.

use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandler};

use crate::session::Session;

/// The message: its header, of which the last field is the length of the rest, and the rest.
const FIELDS: usize = 5;
const FIELD_LEN: usize = size_of::<u32>();
const BODY_LEN: u32 = 8;

/// The header's flags: the protocol's version, and who answers what.
const VERSION_1: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// SET_VRING_ENABLE as a front-end has sent it.
pub(crate) struct EarlyEnable {
    index: u32,
    enable: bool,
    needs_reply: bool,
}

impl EarlyEnable {
    /// The next message, if it is one and has arrived whole; it stays where it is.
    pub(crate) fn peek(socket: &UnixStream) -> Option<Self> {
        let mut message = [0; FIELDS * FIELD_LEN];
        let (len, _) = recv(socket, &mut message, RecvFlags::PEEK | RecvFlags::DONTWAIT).ok()?;
        let (fields, _) = message.get(..len)?.as_chunks::<FIELD_LEN>();
        let &[request, flags, BODY_LEN, index, num @ (0 | 1)] =
            &*fields.iter().map(|&field| u32::from_ne_bytes(field)).collect::<Vec<_>>()
        else {
            return None;
        };
        let is_one = request == u32::from(FrontendReq::SET_VRING_ENABLE);
        is_one.then_some(Self { index, enable: num == 1, needs_reply: flags & NEED_REPLY != 0 })
    }

    /// Does what `vhost` has not done. A front-end asks for a reply only where that was negotiated.
    pub(crate) fn perform(&self, session: &Mutex<Session>, socket: &UnixStream) -> Result<()> {
        session.set_vring_enable(self.index, self.enable)?;
        if self.needs_reply {
            let done = [u32::from(FrontendReq::SET_VRING_ENABLE), VERSION_1 | REPLY, BODY_LEN, 0, 0];
            let reply: Vec<u8> = done.into_iter().flat_map(u32::to_ne_bytes).collect();
            send(socket, &reply, SendFlags::NOSIGNAL).map_err(|error| Error::SocketBroken(error.into()))?;
        }
        Ok(())
    }
}
