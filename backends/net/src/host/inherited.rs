//! Taps that are handed over: the program was started with their descriptors.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::HostError;
use super::tap::set_up_header;
use crate::engine::tun;

/// What a tap's descriptor has to be: without the kernel's own header, and with virtio's.
const NEEDED: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Descriptors of our own for those with these numbers, which stay open for the guest's next start.
///
/// # Errors
/// One of them is not open, or is not a tap's.
pub(super) fn taps(numbers: &[u32]) -> Result<Vec<OwnedFd>, HostError> {
    numbers.iter().map(|number| tap(*number)).collect()
}

fn tap(number: u32) -> Result<OwnedFd, HostError> {
    let tap = tun::inherited(number).map_err(|source| HostError::NoDescriptor { number, source })?;
    let unfit = HostError::NotATapDescriptor { number };
    if tun::flags(&tap).is_ok_and(|flags| flags & NEEDED == NEEDED) {
        let nonblocking = fcntl_getfl(&tap).and_then(|flags| fcntl_setfl(&tap, flags | OFlags::NONBLOCK));
        if nonblocking.is_ok() && set_up_header(&tap).is_ok() {
            return Ok(tap);
        }
    }
    Err(unfit)
}
