//! Pages that Xen itself owns on behalf of a domain: those of an IOREQ server.
#![expect(unsafe_code, reason = "fills mapped areas")]

use std::os::fd::AsFd;

use rustix::mm::ProtFlags;
use vm_memory::VolatileSlice;

use crate::abi::{linux_privcmd, memory};
use crate::sys::{self, Mapped, Reserved, XEN_PAGE};
use crate::{DomId, Error, Privcmd, ServerId};

/// One page of an IOREQ server, unmapped when dropped. Mapping it again, by a later process of the
/// same domain, gives the same page.
#[derive(Debug)]
pub struct ResourceMapping(Mapped);

impl ResourceMapping {
    /// The page of slots. The first mapping makes Xen allocate it.
    ///
    /// # Errors
    /// `ENOENT`: no such server. [`Kind::KernelLacksIt`](crate::Kind::KernelLacksIt) before Linux 4.18.
    pub fn ioreq_page(privcmd: &Privcmd, domain: DomId, server: ServerId) -> Result<Self, Error> {
        Self::page(privcmd, domain, server, memory::IOREQ_SERVER_FRAME_IOREQ)
    }

    /// The page of buffered requests.
    ///
    /// # Errors
    /// As [`ioreq_page`](Self::ioreq_page); `ENOENT` also for a server made without.
    pub fn buffered_page(privcmd: &Privcmd, domain: DomId, server: ServerId) -> Result<Self, Error> {
        Self::page(privcmd, domain, server, memory::IOREQ_SERVER_FRAME_BUFIOREQ)
    }

    fn page(privcmd: &Privcmd, domain: DomId, server: ServerId, idx: u32) -> Result<Self, Error> {
        let failed =
            |errno| Error::of_server(format!("Mapping a page of IOREQ server {} of domain {domain}", server.0), errno);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let area = Reserved::new(privcmd.as_fd(), XEN_PAGE, protection, 0).map_err(failed)?;
        let mut call = linux_privcmd::MmapResource {
            dom: domain.get(),
            type_: memory::RESOURCE_IOREQ_SERVER,
            id: server.0.into(),
            idx,
            num: 1,
            addr: area.address(),
        };
        // SAFETY: MMAP_RESOURCE takes this struct and fills the area that was reserved for it.
        unsafe { sys::ioctl(privcmd.as_fd(), linux_privcmd::MMAP_RESOURCE, &mut call) }.map_err(failed)?;
        // SAFETY: the call succeeded for its only page, and unlike foreign frames a resource is
        // mapped whole or not at all.
        Ok(Self(unsafe { area.filled() }))
    }

    /// The page, which Xen writes at any time.
    pub fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::Kind;

    #[test]
    fn a_node_without_resources_says_whose_page_it_could_not_map() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let privcmd = Privcmd::from(OwnedFd::from(file));
        let domain = DomId::new(9).unwrap();
        for refused in [
            ResourceMapping::ioreq_page(&privcmd, domain, ServerId(2)),
            ResourceMapping::buffered_page(&privcmd, domain, ServerId(2)),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), Kind::KernelLacksIt);
            assert!(error.to_string().contains("IOREQ server 2 of domain 9"), "{error}");
        }
    }
}
