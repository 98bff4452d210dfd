//! Who serves a device.

/// Who serves a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// The program beside xl, in the same domain.
    Us,
    /// One in another domain, with its own files.
    Domain(String),
}

impl Server {
    /// Of what an entry says by `backend=` and `grant_usage=`.
    ///
    /// # Errors
    /// We are to serve it, and cannot so: what would be right.
    pub(super) fn new(backend: Option<&str>, grants: Option<bool>) -> Result<Self, String> {
        match backend {
            None | Some("" | "0" | "Domain-0") if grants == Some(true) => {
                Err("grant_usage=1 is not possible: xen-virtio maps the guest's memory itself; leave it out, or write \
                     grant_usage=0"
                    .to_owned())
            }
            None | Some("" | "0" | "Domain-0") => Ok(Self::Us),
            Some(domain) => Ok(Self::Domain(domain.to_owned())),
        }
    }
}
