//! linux/include/uapi/xen/evtchn.h

use super::ioc_none;

/// `struct ioctl_evtchn_bind_interdomain`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BindInterdomain {
    /// The other end's domain.
    pub remote_domain: u32,
    /// The other end's port.
    pub remote_port: u32,
}

/// `struct ioctl_evtchn_restrict_domid`
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RestrictDomid {
    /// The one domain that may be bound to from now on.
    pub domid: u16,
}

/// `IOCTL_EVTCHN_BIND_VIRQ`: takes the number of the virtual interrupt, returns the port.
pub const BIND_VIRQ: u32 = ioc_none(b'E', 0, size_of::<u32>());
/// `IOCTL_EVTCHN_BIND_INTERDOMAIN`: returns the local port.
pub const BIND_INTERDOMAIN: u32 = ioc_none(b'E', 1, size_of::<BindInterdomain>());
/// `IOCTL_EVTCHN_BIND_UNBOUND_PORT`: takes the domain that may bind to it, returns the port.
pub const BIND_UNBOUND_PORT: u32 = ioc_none(b'E', 2, size_of::<u32>());
/// `IOCTL_EVTCHN_UNBIND`: takes a port.
pub const UNBIND: u32 = ioc_none(b'E', 3, size_of::<u32>());
/// `IOCTL_EVTCHN_NOTIFY`: takes a port.
pub const NOTIFY: u32 = ioc_none(b'E', 4, size_of::<u32>());
/// `IOCTL_EVTCHN_RESET`: empties the ring of fired ports.
pub const RESET: u32 = ioc_none(b'E', 5, 0);
/// `IOCTL_EVTCHN_RESTRICT_DOMID`
pub const RESTRICT_DOMID: u32 = ioc_none(b'E', 6, size_of::<RestrictDomid>());
