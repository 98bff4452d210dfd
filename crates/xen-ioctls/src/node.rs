//! Opening the device nodes.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};

use crate::Error;

/// Opens a node for reading and writing; it does not survive an exec.
pub(crate) fn open_node(path: &str) -> Result<OwnedFd, Error> {
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| Error::opening(path, errno))
}

/// Gives each owner of a node the ways to be made from a descriptor, such as one that another process
/// opened and restricted, and to lend it.
macro_rules! owns_node {
    ($owner:ident) => {
        impl From<OwnedFd> for $owner {
            fn from(node: OwnedFd) -> Self {
                Self { node }
            }
        }

        impl AsFd for $owner {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.node.as_fd()
            }
        }

        impl From<$owner> for OwnedFd {
            fn from(owner: $owner) -> Self {
                owner.node
            }
        }
    };
}
pub(crate) use owns_node;
