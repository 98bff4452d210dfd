//! Xen, as the broker gives it to a worker: two descriptors, restricted to its guest.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioreq::{EventChannels, GuestChannels, GuestDomain, Hypervisor};
use xen_ioctls::{DeviceModel, DomId, Privcmd};

use super::memory::ForeignPages;

/// What a guest is served through.
pub(super) struct Xen {
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) events: Arc<dyn EventChannels>,
    pub(super) pages: ForeignPages,
}

impl Xen {
    /// Takes `/dev/xen/privcmd` and `/dev/xen/evtchn`.
    pub(super) fn new(domid: u16, privcmd: OwnedFd, evtchn: OwnedFd) -> anyhow::Result<Self> {
        let domain = DomId::new(domid.into())?;
        let privcmd = Arc::new(Privcmd::from(privcmd));
        let model = DeviceModel::new(Arc::clone(&privcmd), domain);
        let events = GuestChannels::new(evtchn.into(), domain)?;
        Ok(Self {
            hypervisor: Arc::new(GuestDomain::new(model)),
            events: Arc::new(events),
            pages: ForeignPages { privcmd, domain },
        })
    }
}
