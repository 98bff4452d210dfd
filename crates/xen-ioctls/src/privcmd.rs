//! `/dev/xen/privcmd`: the way to Xen's control operations.
#![expect(unsafe_code, reason = "ioctls whose arguments hold addresses")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;

use crate::abi::dm_op::{self, ModifiedMemoryExtent, NrVcpus};
use crate::abi::linux_privcmd::{self as abi, DmOp, DmOpBuf};
use crate::node::{open_node, owns_node};
use crate::{DomId, Error, Kind, sys};

const PATH: &str = "/dev/xen/privcmd";

/// A domain id that no domain has, which the kernel and Xen look at only late (`DOMID_INVALID`).
const NO_DOMAIN: u16 = 0x7ff4;

/// An open `/dev/xen/privcmd`.
#[derive(Debug)]
pub struct Privcmd {
    node: OwnedFd,
}

owns_node!(Privcmd);

impl Privcmd {
    /// Opens the node.
    ///
    /// # Errors
    /// [`Kind::NotOnXen`], [`Kind::NoPermission`].
    pub fn open() -> Result<Self, Error> {
        open_node(PATH).map(Self::from)
    }

    /// Asks kernel and Xen whether device models can operate here at all, without doing anything.
    ///
    /// # Errors
    /// [`Kind::KernelLacksIt`]; [`Kind::XenLacksIoreq`]; [`Kind::Forbidden`] in a driver domain whose
    /// kernel is restricted since XSA-482.
    pub fn probe(&self) -> Result<(), Error> {
        let mut question = dm_op::DmOp::new(dm_op::NR_VCPUS, &NrVcpus::default());
        let told = self
            .dm_op(NO_DOMAIN, &mut question, &mut [])
            .map_err(|errno| Error::of_server("Looking for IOREQ servers", errno));
        match told {
            Err(error) if error.kind().is_lack_of_system() => Err(error),
            // Anything else is about the domain, which does not exist.
            _ => Ok(()),
        }
    }

    /// Binds this descriptor, for good, to operations on one domain.
    ///
    /// # Errors
    /// [`Kind::KernelLacksIt`] before Linux 4.14; [`Kind::Other`] if it is bound to another domain.
    pub fn restrict(&self, domain: DomId) -> Result<(), Error> {
        let mut id = domain.get();
        // SAFETY: RESTRICT reads a domid_t.
        unsafe { sys::ioctl(self.as_fd(), abi::RESTRICT, &mut id) }
            .map(drop)
            .map_err(|errno| Error::new(format!("Restricting {PATH} to domain {domain}"), errno))
    }

    /// Has Xen do `op` on a domain; some operations take a list beside it.
    pub(crate) fn dm_op(&self, dom: u16, op: &mut dm_op::DmOp, list: &mut [ModifiedMemoryExtent]) -> Result<(), Errno> {
        let (buffers, num) = buffers(op, list);
        let mut call = DmOp { dom, num, ubufs: address_of(buffers.as_ptr().cast_mut()) };
        // SAFETY: DM_OP takes a privcmd_dm_op; the first `num` entries of `buffers` describe `op` and
        // `list`, which are borrowed mutably until this returns.
        unsafe { sys::ioctl(self.as_fd(), abi::DM_OP, &mut call) }.map(drop)
    }
}

/// What a call describes, and how many buffers that is. The operation is always there and always whole, whatever of it Xen
/// looks at: one that has to do with less may read what was never written (XSA-506).
fn buffers(op: &mut dm_op::DmOp, list: &mut [ModifiedMemoryExtent]) -> ([DmOpBuf; 2], u16) {
    let count = if list.is_empty() { 1 } else { 2 };
    let described = [
        DmOpBuf { uptr: address_of(ptr::from_mut(op)), size: size_of_val(op) as u64 },
        DmOpBuf { uptr: address_of(list.as_mut_ptr()), size: size_of_val(list) as u64 },
    ];
    (described, count)
}

/// An address as these structures carry it; the kernel writes through it.
pub(crate) fn address_of<T>(pointer: *mut T) -> u64 {
    pointer.expose_provenance() as u64
}

impl Kind {
    /// Whether the system, rather than the operation, is to blame.
    pub fn is_lack_of_system(self) -> bool {
        matches!(
            self,
            Self::NotOnXen | Self::NoPermission | Self::KernelLacksIt | Self::XenLacksIoreq | Self::Forbidden
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a24_the_operation_is_passed_whole_with_or_without_a_list() {
        for len in [0, 1, 7, 256] {
            let mut op = dm_op::DmOp::new(dm_op::NR_VCPUS, &NrVcpus::default());
            let mut list = vec![ModifiedMemoryExtent { nr: 1, pad: 0, first_pfn: 2 }; len];
            let (first, second) = (address_of(ptr::from_mut(&mut op)), address_of(list.as_mut_ptr()));

            let ([operation, extents], count) = buffers(&mut op, &mut list);

            assert_eq!((operation.uptr, operation.size), (first, size_of::<dm_op::DmOp>() as u64));
            assert_eq!((extents.uptr, extents.size), (second, (len * size_of::<ModifiedMemoryExtent>()) as u64));
            assert_eq!(usize::from(count), 1 + usize::from(len > 0), "never none, and never an empty one");
        }
    }

    #[test]
    fn a_node_that_is_not_privcmd_is_told_apart() {
        let null = Privcmd::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert_eq!(null.probe().unwrap_err().kind(), Kind::KernelLacksIt);
        let refused = null.restrict(DomId::new(7).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("to domain 7"), "{refused}");
    }
}
