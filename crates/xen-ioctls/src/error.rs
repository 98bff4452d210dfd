//! What can go wrong, why, and what to do about it.

use std::fmt;

use rustix::io::Errno;

/// What lies behind an [`Error`], as far as its number and the operation tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The device node is not there.
    NotOnXen,
    /// The node may not be opened.
    NoPermission,
    /// The kernel's driver does not know the operation.
    KernelLacksIt,
    /// Xen does not know it: it was built without IOREQ servers.
    XenLacksIoreq,
    /// Xen, its security policy or the kernel forbids it.
    Forbidden,
    /// The domain is gone, or going.
    DomainGone,
    /// The domain has no room for one more.
    Full,
    /// It is there already.
    Exists,
    /// More events than the kernel keeps.
    Overflow,
    /// Anything else: the number tells.
    Other,
}

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    doing: String,
    errno: Errno,
    kind: Kind,
}

impl Error {
    /// Of an operation on an open node.
    pub(crate) fn new(doing: impl Into<String>, errno: Errno) -> Self {
        Self { doing: doing.into(), errno, kind: kind_of(errno) }
    }

    /// Of opening a node.
    pub(crate) fn opening(path: &str, errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOENT | Errno::NXIO | Errno::NODEV | Errno::NOTDIR => Kind::NotOnXen,
            Errno::ACCESS | Errno::PERM => Kind::NoPermission,
            _ => Kind::Other,
        };
        Self { doing: format!("Opening {path}"), errno, kind }
    }

    /// Of an operation on IOREQ servers, where "not supported" means that Xen has none.
    pub(crate) fn of_server(doing: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOSYS | Errno::OPNOTSUPP => Kind::XenLacksIoreq,
            other => kind_of(other),
        };
        Self { doing: doing.into(), errno, kind }
    }

    /// Of an operation on event channels: that driver answers what it does not know with ENOSYS, and
    /// ENOTCONN is said of a port that is not bound here.
    pub(crate) fn of_channel(doing: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOSYS => Kind::KernelLacksIt,
            Errno::NOTCONN => Kind::Other,
            other => kind_of(other),
        };
        Self { doing: doing.into(), errno, kind }
    }

    /// The number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// What it means.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

fn kind_of(errno: Errno) -> Kind {
    match errno {
        Errno::NOTTY => Kind::KernelLacksIt,
        // Xen has no device model operations at all without IOREQ servers.
        Errno::NOSYS => Kind::XenLacksIoreq,
        Errno::PERM | Errno::ACCESS => Kind::Forbidden,
        Errno::SRCH => Kind::DomainGone,
        Errno::NOSPC => Kind::Full,
        Errno::EXIST => Kind::Exists,
        Errno::FBIG => Kind::Overflow,
        _ => Kind::Other,
    }
}

impl Kind {
    fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::NotOnXen => {
                "This system does not run on Xen, or the kernel's Xen modules are missing: \
                 modprobe xen-privcmd xen-evtchn xen-gntdev"
            }
            Self::NoPermission => "Run it as root",
            Self::KernelLacksIt => "The kernel's Xen drivers are older than this operation",
            Self::XenLacksIoreq => {
                "This Xen has no IOREQ servers: on Arm it must be built with CONFIG_IOREQ_SERVER=y \
                 (and CONFIG_EXPERT=y, CONFIG_UNSUPPORTED=y)"
            }
            Self::Forbidden => {
                "Xen allows it to Dom0, and to a driver domain only if it was built with FLASK and its policy says so; \
                 the kernel of a driver domain allows it if it was booted with xen_privcmd.unrestricted=1 (XSA-482)"
            }
            Self::DomainGone => "The domain has been destroyed, or is about to be",
            Self::Full => "A domain has room for 8 IOREQ servers with 256 ranges each",
            Self::Exists | Self::Overflow | Self::Other => return None,
        })
    }
}

impl Error {
    /// The sentence behind the error's own, if there is something to say or do.
    fn advice(&self) -> Option<&'static str> {
        match (self.kind, self.errno) {
            // FLASK's own number: neither Xen without it nor the kernel refuse with this one.
            (Kind::Forbidden, Errno::ACCESS) => Some(
                "Xen's security policy (FLASK) does not allow it: `xl dmesg` in Dom0 has a line `avc: denied` with the \
                 permission and both labels",
            ),
            (kind, _) => kind.advice(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.errno)?;
        self.advice().map_or(Ok(()), |advice| write!(f, ". {advice}"))
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_is_told_apart_and_says_what_to_do() {
        let cases = [
            (Error::opening("/dev/xen/privcmd", Errno::NOENT), Kind::NotOnXen, "modprobe"),
            (Error::opening("/dev/xen/privcmd", Errno::ACCESS), Kind::NoPermission, "root"),
            (Error::of_server("Creating", Errno::NOSYS), Kind::XenLacksIoreq, "CONFIG_IOREQ_SERVER"),
            (Error::of_server("Creating", Errno::OPNOTSUPP), Kind::XenLacksIoreq, "CONFIG_IOREQ_SERVER"),
            (Error::of_server("Creating", Errno::PERM), Kind::Forbidden, "xen_privcmd.unrestricted=1"),
            (Error::of_server("Creating", Errno::ACCESS), Kind::Forbidden, "avc: denied"),
            (Error::of_server("Creating", Errno::SRCH), Kind::DomainGone, "destroyed"),
            (Error::of_server("Creating", Errno::NOSPC), Kind::Full, "8 IOREQ servers"),
            (Error::new("Restricting", Errno::NOTTY), Kind::KernelLacksIt, "older"),
            (Error::of_channel("Restricting", Errno::NOSYS), Kind::KernelLacksIt, "older"),
        ];
        for (error, kind, words) in cases {
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_plain_failure_keeps_its_number_and_gives_no_false_advice() {
        let error = Error::of_server("Mapping a range of domain 3", Errno::INVAL);
        assert_eq!((error.errno(), error.kind()), (Errno::INVAL, Kind::Other));
        assert!(error.to_string().starts_with("Mapping a range of domain 3: Invalid argument"), "{error}");
    }
}
