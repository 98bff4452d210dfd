//! Taps: made for the device, or made by the operator and taken over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;
use virtio_backend::Owner;

use super::HostError;
use super::links::{Kind, Link, Links};
use crate::config::LONGEST_NAME;
use crate::engine::tun;

/// Bytes of virtio 1's virtio_net_hdr, num_buffers included (virtio 1.2 §5.1.6): the tap reads and writes it before
/// each packet.
const VNET_HDR_SIZE: libc::c_int = 12;

/// An open tap.
pub(super) struct Tap {
    name: String,
    index: u32,
    /// Not there before, and gone when its queues are closed.
    is_ours: bool,
    queues: Vec<OwnedFd>,
}

/// The name of a guest's tap, when nobody chose one: `web-net0`.
///
/// # Errors
/// [`HostError::DefaultName`]: the guest's name is too long, or has characters that no interface's name has.
pub(super) fn default_name(owner: &Owner) -> Result<String, HostError> {
    let name = format!("{}-net{}", owner.guest, owner.index);
    // The kernel takes others as well. But it numbers a name with a '%', and tools stumble over the rest.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() <= LONGEST_NAME && name.bytes().all(plain) && !name.starts_with('-') {
        Ok(name)
    } else {
        Err(HostError::DefaultName { name })
    }
}

impl Tap {
    /// Makes the tap `name`, or takes it over if it exists and nobody uses it, with a descriptor for each of `queues`
    /// queues: non-blocking, and with the header of virtio 1 before each packet.
    ///
    /// # Errors
    /// There are no taps on this host, or there can be none of that name.
    pub(super) fn open(links: &Links, name: &str, queues: u16) -> Result<Self, HostError> {
        let existing = links.find(name)?;
        match existing {
            Some(Link { kind: Kind::Tap, has_carrier: false, .. }) | None => {}
            // A tap of several queues would let us in beside its user, and pass us a share of the packets.
            Some(Link { kind: Kind::Tap, .. }) => return Err(HostError::InUse { name: name.to_owned() }),
            Some(_) => return Err(HostError::NotATap { name: name.to_owned() }),
        }
        let is_ours = existing.is_none();
        let queues = (0..queues)
            .map(|queue| open_queue(name, queues > 1, is_ours && queue == 0))
            .collect::<Result<_, HostError>>()?;
        let Some(link) = links.find(name)? else {
            let source = Errno::NODEV.into();
            return Err(HostError::Tap { name: name.to_owned(), what: "Finding the interface", source });
        };
        Ok(Self { name: name.to_owned(), index: link.index, is_ours, queues })
    }

    /// Makes the tap a port of the Linux bridge `bridge`. Without an `mtu` of its own it takes the bridge's: a port with
    /// less would lower that of the bridge, for everyone on it.
    ///
    /// # Errors
    /// There is no such bridge, or it does not take the tap.
    pub(super) fn join(&self, links: &Links, bridge: &str, mtu: Option<u16>) -> Result<(), HostError> {
        let found = links.find(bridge)?.ok_or_else(|| HostError::NoBridge { bridge: bridge.to_owned() })?;
        if found.kind != Kind::Bridge {
            return Err(HostError::NotABridge { bridge: bridge.to_owned() });
        }
        if !found.is_up {
            tracing::warn!(bridge, tap = self.name, "The bridge is down, so the guest reaches nobody");
        }
        if mtu.is_none() {
            self.set_mtu_of(links, found.mtu)?;
        }
        if self.is_ours {
            self.raise_address(links)?;
        }
        let refused = |source| HostError::Join { bridge: bridge.to_owned(), name: self.name.clone(), source };
        links.join(self.index, found.index).map_err(refused)
    }

    /// Gives the interface an address that the bridge will not take for its own.
    ///
    /// A bridge without a fixed address has the lowest of its ports', so the host's address would change as guests come
    /// and go. One that starts with fe is above all hardware's, and still nobody else's.
    fn raise_address(&self, links: &Links) -> Result<(), HostError> {
        let [a, b, c, d] = self.index.to_be_bytes();
        links
            .set_address(self.index, [0xfe, 0xff, a, b, c, d])
            .map_err(|source| self.failed("Setting the address", source))
    }

    /// Sets the MTU of the host's end.
    ///
    /// # Errors
    /// The tap cannot have it.
    pub(super) fn set_mtu(&self, links: &Links, mtu: u16) -> Result<(), HostError> {
        self.set_mtu_of(links, u32::from(mtu))
    }

    fn set_mtu_of(&self, links: &Links, mtu: u32) -> Result<(), HostError> {
        links.set_mtu(self.index, mtu).map_err(|source| HostError::Mtu { name: self.name.clone(), mtu, source })
    }

    /// Brings the interface up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn bring_up(&self, links: &Links) -> Result<(), HostError> {
        links.bring_up(self.index).map_err(|source| self.failed("Bringing up the interface", source))
    }

    /// Its descriptors, one for each queue.
    pub(super) fn into_queues(self) -> Vec<OwnedFd> {
        self.queues
    }

    fn failed(&self, what: &'static str, source: io::Error) -> HostError {
        HostError::Tap { name: self.name.clone(), what, source }
    }
}

/// Opens one queue of the tap; `make` it, or else it has to exist.
fn open_queue(name: &str, several: bool, make: bool) -> Result<OwnedFd, HostError> {
    let tun = open_tun()?;
    let flags = libc::IFF_TAP
        | libc::IFF_NO_PI
        | libc::IFF_VNET_HDR
        | if several { libc::IFF_MULTI_QUEUE } else { 0 }
        | if make { libc::IFF_TUN_EXCL } else { 0 };
    tun::set_iff(&tun, name, flags).map_err(|source| refused(name, several, source))?;
    let failed = |source| HostError::Tap { name: name.to_owned(), what: "Setting the packet header", source };
    set_up_header(&tun).map_err(failed)?;
    Ok(tun.into())
}

/// Has a tap's packets headers as virtio 1 has them.
pub(super) fn set_up_header(tap: impl AsFd) -> io::Result<()> {
    tun::set_vnet_hdr_size(&tap, VNET_HDR_SIZE)?;
    tun::set_vnet_le(&tap)
}

fn open_tun() -> Result<File, HostError> {
    // The flags O_CLOEXEC and O_NONBLOCK go with the description, to whoever gets the descriptor.
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    opened.map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => HostError::NoTun { source },
        _ => HostError::OpenTun { source },
    })
}

/// What the kernel means by its answer to TUNSETIFF.
fn refused(name: &str, several: bool, source: io::Error) -> HostError {
    let name = name.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::BUSY) => HostError::InUse { name },
        Some(Errno::PERM) => HostError::NotAllowed { name },
        // Its kind has been looked at, so what differs is IFF_MULTI_QUEUE.
        Some(Errno::INVAL) => HostError::Queues { name, several },
        _ => HostError::Tap { name, what: "Opening a queue", source },
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn name_for(guest: &str, index: usize) -> Result<String, HostError> {
        default_name(&Owner {
            guest: guest.into(),
            identity: String::new(),
            index,
            vcpus: 1,
            directory: PathBuf::new(),
        })
    }

    #[test]
    fn a_tap_is_called_by_its_guest_and_number() {
        assert_eq!(name_for("web", 1).unwrap(), "web-net1");
        assert_eq!(name_for("ten.bytes_", 0).unwrap(), "ten.bytes_-net0");
    }

    #[test]
    fn h10_a_guest_whose_name_makes_no_interface_has_to_have_its_tap_named() {
        for guest in ["eleven-byte", "web%d", "a/b", "a b", "-x", "a:b", "ä"] {
            let error = name_for(guest, 0).unwrap_err();
            assert!(error.to_string().contains("tap = "), "{guest}: {error}");
        }
        assert!(name_for("ten.bytes_", 10).is_err(), "the number counts, too");
    }
}
