//! The back-end channel: a second socket, on which a device speaks first.
//!
//! The one thing that is said there is that configuration space has changed.

use std::os::fd::OwnedFd;

use rustix::net::{SendFlags, send};
use vhost::vhost_user::message::BackendReq;

/// Where a front-end hears of changes.
pub(crate) struct Channel(OwnedFd);

/// The header's flags if nothing is said but the protocol's version, and no reply is asked for.
const VERSION_1: u32 = 1;

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says that configuration space has changed. Does not wait: a front-end that has not read as many earlier messages
    /// as its socket holds is not told once more.
    pub(crate) fn config_changed(&self) {
        let header = [u32::from(BackendReq::CONFIG_CHANGE_MSG), VERSION_1, 0];
        let header: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
        if let Err(error) = send(&self.0, &header, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            tracing::debug!(name: "vhost.config_change_lost", %error);
        }
    }
}
