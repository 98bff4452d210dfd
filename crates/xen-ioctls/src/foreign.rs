//! Another domain's memory, mapped by frame number.
//!
//! The call that maps does not fail on a frame without memory behind it, but notes so in that page's
//! error code and installs the page all the same. Touching it kills the process with a SIGKILL that
//! no handler catches; lending it to a system call can stop the kernel. So no mapping leaves this
//! file unless every page's code was looked at and was zero.
#![expect(unsafe_code, reason = "fills mapped areas")]

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::ProtFlags;
use vm_memory::VolatileSlice;

use crate::abi::linux_privcmd as abi;
use crate::privcmd::address_of;
use crate::sys::{self, Mapped, Reserved, XEN_PAGE};
use crate::{DomId, Error, Gfn, Privcmd};

/// How often a frame that Xen is paging in is asked for again, a millisecond apart.
const PAGED_TRIES: u32 = 10;

/// Frames of another domain at consecutive addresses, unmapped when dropped.
///
/// Its pages are `VM_PFNMAP`: reads and writes by buffered system calls work, whatever pins pages
/// (O_DIRECT, registered buffers) fails with EFAULT.
#[derive(Debug)]
pub struct ForeignMapping(Mapped);

/// Why frames were not mapped. None of them is, then.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Frames that cannot be mapped, in ascending order of their place in the list.
    #[error("{} of the guest's frames cannot be mapped, the first with {}", .0.len(), .0.first().map_or("no error", |page| page.words()))]
    Pages(Vec<PageError>),
    /// The call itself failed.
    #[error(transparent)]
    Call(Error),
}

/// One frame that cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageError {
    /// Its place in the list.
    pub index: usize,
    /// `EINVAL`: no memory is there. `ENOENT`: Xen is paging it in.
    pub errno: Errno,
}

impl PageError {
    fn words(&self) -> &'static str {
        match self.errno {
            Errno::INVAL => "no memory behind it",
            Errno::NOENT => "its page paged out",
            _ => "an error of Xen's",
        }
    }
}

impl ForeignMapping {
    /// Maps `frames` of `domain`, readable and writable, one behind the other.
    ///
    /// # Errors
    /// [`MapError::Pages`] names every frame that cannot be mapped.
    pub fn new(privcmd: &Privcmd, domain: DomId, frames: &[Gfn]) -> Result<Self, MapError> {
        let mut tries = 0;
        loop {
            match Self::try_new(privcmd, domain, frames) {
                Err(MapError::Pages(pages)) if tries < PAGED_TRIES && pages.iter().all(|p| p.errno == Errno::NOENT) => {
                    tries += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                outcome => return outcome,
            }
        }
    }

    fn try_new(privcmd: &Privcmd, domain: DomId, frames: &[Gfn]) -> Result<Self, MapError> {
        let failed = |errno| MapError::Call(Error::new(format!("Mapping memory of domain {domain}"), errno));
        let num = u32::try_from(frames.len()).map_err(|_too_many| failed(Errno::TOOBIG))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let area = Reserved::new(privcmd.as_fd(), frames.len() * XEN_PAGE, protection, 0).map_err(&failed)?;
        // Nothing counts as mapped that the kernel did not write a zero for.
        let mut errors = vec![-i32::MAX; frames.len()];
        let mut call = abi::MmapBatchV2 {
            num,
            dom: domain.get(),
            addr: area.address(),
            arr: address_of(frames.as_ptr().cast_mut()),
            err: address_of(errors.as_mut_ptr()),
        };
        // SAFETY: MMAPBATCH_V2 takes this struct, fills the area that was reserved for it, reads `num`
        // frame numbers and writes `num` ints.
        match unsafe { sys::ioctl(privcmd.as_fd(), abi::MMAPBATCH_V2, &mut call) } {
            // With ENOENT it reports that a page's code is ENOENT.
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let failures = failures_among(&errors);
        if failures.is_empty() {
            // SAFETY: each page's error code is zero, so each has the guest's memory behind it.
            Ok(Self(unsafe { area.filled() }))
        } else {
            Err(MapError::Pages(failures))
        }
    }

    /// The frames' memory, which the guest writes at any time.
    pub fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

/// The pages whose code is not zero.
fn failures_among(errors: &[i32]) -> Vec<PageError> {
    let failed = errors.iter().enumerate().filter(|(_, error)| **error != 0);
    failed.map(|(index, &error)| PageError { index, errno: errno_of(error) }).collect()
}

/// A page's code is a negated errno.
fn errno_of(code: i32) -> Errno {
    match code.checked_neg() {
        Some(errno @ 1..=4095) => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn one_page_with_an_error_is_enough_to_fail() {
        assert!(failures_among(&[0, 0]).is_empty());
        let failures = failures_among(&[0, -22, 0, -2]);
        let expected = [PageError { index: 1, errno: Errno::INVAL }, PageError { index: 3, errno: Errno::NOENT }];
        assert_eq!(failures, expected);
    }

    #[test]
    fn a_code_that_is_no_errno_is_an_error_still() {
        for code in [1, i32::MAX, i32::MIN, -i32::MAX] {
            assert_eq!(failures_among(&[code]).len(), 1, "{code}");
        }
    }

    #[test]
    fn a_node_that_cannot_map_says_for_which_domain_it_failed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let privcmd = Privcmd::from(OwnedFd::from(file));

        let refused = ForeignMapping::new(&privcmd, DomId::new(9).unwrap(), &[Gfn(0x40000)]).unwrap_err();

        assert!(matches!(&refused, MapError::Call(error) if error.errno() == Errno::NOTTY));
        assert!(refused.to_string().contains("domain 9"), "{refused}");
    }
}
