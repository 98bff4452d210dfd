//! The kernel's interfaces, by netlink, for code that may block.

use std::io;
use std::os::fd::OwnedFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use tokio::runtime::{Builder, Runtime};

use super::HostError;

/// A connection to the kernel of the network namespace that the calling thread is in.
pub(super) struct Links {
    runtime: Runtime,
    handle: Handle,
    /// To ask for an interface's index; any socket will do.
    names: OwnedFd,
}

/// An interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number.
    pub(super) index: u32,
    /// What it is.
    pub(super) kind: Kind,
    /// It is up, as an administrator sees it.
    pub(super) is_up: bool,
    /// There is something at its other end: of a tap, that a program has it open.
    pub(super) has_carrier: bool,
    /// Bytes of a packet without its Ethernet header.
    pub(super) mtu: u32,
}

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A bridge of Linux's.
    Bridge,
    /// A tap: Ethernet frames, not a tun's IP packets.
    Tap,
    /// Neither.
    Other,
}

impl Links {
    /// Connects.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub(super) fn new() -> Result<Self, HostError> {
        let failed = |source| HostError::Netlink { source };
        let names = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(|errno| failed(errno.into()))?;
        let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _messages) = rtnetlink::new_connection().map_err(failed)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle, names })
    }

    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// [`HostError::Netlink`].
    pub(super) fn find(&self, name: &str) -> Result<Option<Link>, HostError> {
        let index = match netdevice::name_to_index(&self.names, name) {
            Ok(index) => index,
            Err(Errno::NODEV) => return Ok(None),
            Err(errno) => return Err(HostError::Netlink { source: errno.into() }),
        };
        let answer = async { self.handle.link().get().match_index(index).execute().try_next().await };
        match self.runtime.block_on(answer).map_err(as_io) {
            Ok(message) => Ok(message.as_ref().map(link)),
            // It went in this moment.
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(source) => Err(HostError::Netlink { source }),
        }
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn bring_up(&self, index: u32) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(index).up())
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// The kernel's; EINVAL for what the interface cannot have.
    pub(super) fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(index).mtu(mtu))
    }

    /// Sets an interface's own MAC address.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn set_address(&self, index: u32, address: [u8; 6]) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(index).address(address.to_vec()))
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn join(&self, index: u32, bridge: u32) -> io::Result<()> {
        self.set(LinkUnspec::new_with_index(index).controller(bridge))
    }

    fn set(&self, change: LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
        self.runtime.block_on(self.handle.link().set(change.build()).execute()).map_err(as_io)
    }
}

fn as_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn link(message: &LinkMessage) -> Link {
    let header = &message.header;
    let mut link = Link {
        index: header.index,
        kind: Kind::Other,
        is_up: header.flags.contains(LinkFlags::Up),
        has_carrier: false,
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => link.has_carrier = *carrier != 0,
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos, header.link_layer_type),
            _ => {}
        }
    }
    link
}

fn kind(infos: &[LinkInfo], layer: LinkLayerType) -> Kind {
    let is = |wanted: InfoKind| infos.iter().any(|info| matches!(info, LinkInfo::Kind(kind) if *kind == wanted));
    if is(InfoKind::Bridge) {
        Kind::Bridge
    } else if is(InfoKind::Tun) && layer == LinkLayerType::Ether {
        Kind::Tap
    } else {
        Kind::Other
    }
}
