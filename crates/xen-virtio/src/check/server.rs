//! Who serves a device, and by which way it reaches the guest's memory.

/// Who serves a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// The program beside xl, in the same domain.
    Us,
    /// One in another domain, with its own files.
    Domain(String),
}

impl Server {
    /// Of what an entry says by `backend=`.
    pub(super) fn new(backend: Option<&str>) -> Self {
        match backend {
            None | Some("" | "0" | "Domain-0") => Self::Us,
            Some(domain) => Self::Domain(domain.to_owned()),
        }
    }
}

/// By which way a device reaches the guest's memory, as libxl has it since Xen 4.18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// It maps the guest's frames.
    Frames,
    /// It reaches what the guest grants, and nothing else.
    Grants {
        /// Nobody said so: libxl does, of devices that another domain serves.
        by_default: bool,
    },
}

impl Memory {
    /// Of what an entry says by `grant_usage=`.
    pub(super) fn new(server: &Server, grant_usage: Option<bool>) -> Self {
        match (grant_usage, server) {
            (Some(false), _) | (None, Server::Us) => Self::Frames,
            (Some(true), _) => Self::Grants { by_default: false },
            (None, Server::Domain(_)) => Self::Grants { by_default: true },
        }
    }
}
