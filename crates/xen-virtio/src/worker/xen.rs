//! Xen, as the broker gives it to a worker: two descriptors, restricted to its guest.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use guest_memory::Sources;
use ioreq::{EventChannels, GuestChannels, GuestDomain, Hypervisor};
use xen_ioctls::{DeviceModel, DomId, Privcmd};

use super::caches::GuestPages;
use super::memory::{ForeignPages, GrantedPages};
use crate::model::Grants;

/// What a guest is served through.
pub(super) struct Xen {
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) events: Arc<dyn EventChannels>,
    pub(super) pages: XenPages,
}

/// The ways to a guest's pages: descriptors that Xen and the kernel answer.
pub(super) struct XenPages {
    privcmd: Arc<Privcmd>,
    domain: DomId,
}

impl GuestPages for XenPages {
    fn sources(&self, grants: Grants, gntdev: Option<OwnedFd>) -> anyhow::Result<Sources> {
        let foreign = || ForeignPages { privcmd: Arc::clone(&self.privcmd), domain: self.domain };
        let granted = || {
            let gntdev = Arc::new(
                gntdev.context("The guest's memory is to be reached by grants, and there is no way to them")?.into(),
            );
            anyhow::Ok(GrantedPages { gntdev, domain: self.domain })
        };
        Ok(match grants {
            Grants::Never => foreign().into(),
            Grants::Allowed => Sources::from(foreign()).with_grants(granted()?),
            Grants::Only => Sources::grants(granted()?),
        })
    }
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
            pages: XenPages { privcmd, domain },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use guest_memory::{Budget, MapCache};

    use super::*;

    fn node() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_guests_memory_is_reached_in_the_ways_it_allows_and_grants_need_their_node() {
        let xen = Xen::new(7, node(), node()).unwrap();
        let ways = |grants, gntdev| {
            let cache = MapCache::new(xen.pages.sources(grants, gntdev)?, Budget::default());
            anyhow::Ok((cache.reaches_frames(), cache.reaches_grants()))
        };
        assert_eq!(ways(Grants::Never, None).unwrap(), (true, false));
        assert_eq!(ways(Grants::Allowed, Some(node())).unwrap(), (true, true));
        assert_eq!(ways(Grants::Only, Some(node())).unwrap(), (false, true));
        for grants in [Grants::Allowed, Grants::Only] {
            let error = ways(grants, None).unwrap_err().to_string();
            assert!(error.contains("there is no way to them"), "{error}");
        }
    }

    #[test]
    fn a_guest_that_cannot_be_is_refused() {
        assert!(Xen::new(u16::MAX, node(), node()).is_err());
    }
}
