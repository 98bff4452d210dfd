//! The ioctls of taps, by their names in <linux/if_tun.h>. No safe crate offers them all: those that
//! make taps keep the header and its layout to themselves.
#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// `TUNSETIFF`: ties an open /dev/net/tun to the interface `name`, which is made if there is none.
/// `flags` are those of `libc::IFF_TAP` and its neighbours.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a name without bytes, of more than 15, or with a zero byte, and what the kernel
/// says: EBUSY (in use, or there with `IFF_TUN_EXCL`), EINVAL (it exists and is of another kind), EPERM.
pub(crate) fn set_iff(tun: impl AsFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len()) && !name.contains('\0');
    if !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = request(flags)?;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, which lives until the call returns.
    done(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// `TUNGETIFF`: the flags that the descriptor was tied to its interface with, `libc::IFF_TAP` and its neighbours.
///
/// # Errors
/// The descriptor is not tied to an interface.
pub(crate) fn flags(tap: impl AsFd) -> io::Result<libc::c_int> {
    let mut request = request(0)?;
    // SAFETY: TUNGETIFF writes one struct ifreq, which lives until the call returns.
    done(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: any bytes are a c_short, and the kernel has written the flags there.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned()))
}

/// A descriptor of our own for one that the process was started with.
///
/// # Errors
/// None of this number is open.
pub(crate) fn inherited(number: u32) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(|_too_large| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: a number that is not negative; the kernel says whether it is open, and nothing else is done with it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?)
}

/// `TUNSETVNETHDRSZ`: the bytes of the virtio_net_hdr before each packet, 10 or 12.
///
/// # Errors
/// The descriptor is not tied to a tap, or the size is not possible.
pub(crate) fn set_vnet_hdr_size(tap: impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives until the call returns.
    done(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// `TUNSETVNETLE`: the fields of the virtio_net_hdr are little-endian, as virtio 1 has them, whatever the host is.
///
/// # Errors
/// The descriptor is not tied to a tap.
pub(crate) fn set_vnet_le(tap: impl AsFd) -> io::Result<()> {
    let little: libc::c_int = 1;
    // SAFETY: TUNSETVNETLE reads one int, which lives until the call returns.
    done(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETVNETLE, &raw const little) })
}

/// `TUNSETOFFLOAD`: what the reader of the tap can do itself, of the `libc::TUN_F_` bits; the kernel does the rest
/// before it passes a packet on. Holds for all queues of the tap.
///
/// # Errors
/// EINVAL: the kernel does not know one of the bits, or one is without the bit it needs; nothing has changed.
pub(crate) fn set_offload(tap: impl AsFd, bits: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number in place of an address.
    done(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
}

/// `TUNSETQUEUE`: whether the tap sends packets by this queue. A queue starts attached; a detached one can still be
/// told to attach. Only for taps of several queues.
///
/// # Errors
/// EINVAL: it is as told already, or the tap has but one queue.
pub(crate) fn set_queue(tap: impl AsFd, attached: bool) -> io::Result<()> {
    let request = request(if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE })?;
    // SAFETY: TUNSETQUEUE reads one struct ifreq, which lives until the call returns.
    done(unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// A struct ifreq without a name.
fn request(flags: libc::c_int) -> io::Result<libc::ifreq> {
    let flags = u16::try_from(flags).map_err(|_not_in_the_field| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags.cast_signed() },
    })
}

fn done(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
