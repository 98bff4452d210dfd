//! What a worker that was taken over might try: one of each kind, in the process that serves. Each call beside these that must not
//! come through is tried by crates/xen-virtio/tests/confine.

use std::fmt;

use anyhow::Result;
use libc::c_long;
use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::borrowed::{Borrowed, Outcome};

/// A system call, and what is to come of it.
pub struct Attempt {
    /// What it is called.
    pub name: &'static str,
    call: c_long,
    arguments: &'static [Argument],
    /// What is to come of it.
    pub denial: Denial,
}

/// How it is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It is the end of the process.
    End,
    /// The kernel answers with this.
    Error(Errno),
    /// It is not: this returns what a confined process is to see.
    Returns(i64),
}

enum Argument {
    /// As it is.
    Number(u64),
    /// The address of these bytes.
    Bytes(&'static [u8]),
    /// The number of the descriptor of what has this name.
    Descriptor(&'static str),
}

use Argument::{Bytes, Descriptor, Number};
use Denial::{End, Error, Returns};

const fn attempt(name: &'static str, call: c_long, arguments: &'static [Argument], denial: Denial) -> Attempt {
    Attempt { name, call, arguments, denial }
}

/// AT_FDCWD
const HERE: Argument = Number((-100_i64).cast_unsigned());
const PRIVCMD: Argument = Descriptor("/dev/xen/privcmd");
const EVTCHN: Argument = Descriptor("/dev/xen/evtchn");

/// <xen/privcmd.h> of Linux: IOCTL_PRIVCMD_HYPERCALL, _DM_OP, _RESTRICT, _MMAPBATCH_V2.
const HYPERCALL: Argument = Number(0x0030_5000);
const DM_OP: Argument = Number(0x0010_5005);
const RESTRICT: Argument = Number(0x0002_5006);
const MMAPBATCH_V2: Argument = Number(0x0020_5004);
/// <xen/evtchn.h>: IOCTL_EVTCHN_BIND_VIRQ, _BIND_INTERDOMAIN.
const BIND_VIRQ: Argument = Number(0x0004_4500);
const BIND_INTERDOMAIN: Argument = Number(0x0008_4501);

/// PROT_READ with PROT_EXEC, and MAP_PRIVATE with MAP_ANONYMOUS.
const RUNNABLE: Argument = Number(0x5);
const ANONYMOUS: Argument = Number(0x22);

/// All of them.
pub const ATTEMPTS: &[Attempt] = &[
    // That what follows happens inside: it is the first process of its namespace.
    attempt("who-am-i", libc::SYS_getpid, &[], Returns(1)),
    attempt("open-a-file", libc::SYS_openat, &[HERE, Bytes(b"/proc/1/mem\0"), Number(2)], Error(Errno::ENOENT)),
    attempt("open-it-otherwise", libc::SYS_openat2, &[HERE, Bytes(b"/\0")], End),
    attempt("make-a-socket", libc::SYS_socket, &[Number(2), Number(1)], End),
    attempt("connect", libc::SYS_connect, &[Number(0)], End),
    attempt("run-a-program", libc::SYS_execve, &[Bytes(b"/bin/sh\0")], End),
    // SIGCHLD
    attempt("make-a-process", libc::SYS_clone, &[Number(17)], End),
    // CLONE_NEWUSER
    attempt("make-a-namespace", libc::SYS_unshare, &[Number(0x1000_0000)], End),
    attempt("mount", libc::SYS_mount, &[Bytes(b"/\0")], End),
    attempt("become-root", libc::SYS_setresuid, &[], End),
    attempt("gain-capabilities", libc::SYS_capset, &[], End),
    attempt("kill-its-parent", libc::SYS_kill, &[Number(0), Number(9)], End),
    attempt("trace", libc::SYS_ptrace, &[Number(16), Number(1)], End),
    attempt("read-another-process", libc::SYS_process_vm_readv, &[Number(1)], End),
    attempt("load-a-program-into-the-kernel", libc::SYS_bpf, &[], End),
    attempt("map-memory-that-runs", libc::SYS_mmap, &[Number(0), Number(4096), RUNNABLE, ANONYMOUS], End),
    attempt("make-any-hypercall", libc::SYS_ioctl, &[PRIVCMD, HYPERCALL], End),
    attempt("serve-another-guest", libc::SYS_ioctl, &[PRIVCMD, RESTRICT, Bytes(&[0, 0])], End),
    attempt("take-an-interrupt-of-xens", libc::SYS_ioctl, &[EVTCHN, BIND_VIRQ, Bytes(&[0; 4])], End),
    // What serving takes comes through the filter; that it is not about domain 0, Linux sees to.
    attempt("ask-about-another-domain", libc::SYS_ioctl, &[PRIVCMD, DM_OP, Bytes(&[0; 16])], Error(Errno::EPERM)),
    attempt("map-another-domain", libc::SYS_ioctl, &[PRIVCMD, MMAPBATCH_V2, Bytes(&[0; 32])], Error(Errno::EPERM)),
    attempt(
        "notify-another-domain",
        libc::SYS_ioctl,
        &[EVTCHN, BIND_INTERDOMAIN, Bytes(&[0; 8])],
        Error(Errno::EACCES),
    ),
];

impl Attempt {
    /// Has the process try it.
    ///
    /// # Errors
    /// It cannot try: it lacks a descriptor, or is gone.
    pub fn by(&self, process: &Borrowed) -> Result<Outcome> {
        let mut arguments = [0; 6];
        for (place, argument) in arguments.iter_mut().zip(self.arguments) {
            *place = match argument {
                Number(number) => *number,
                Bytes(bytes) => process.place(bytes)?,
                Descriptor(name) => process.descriptor(name)?,
            };
        }
        process.call(self.call, arguments)
    }
}

impl Denial {
    /// Whether that is what came of it.
    pub fn is(self, outcome: Outcome) -> bool {
        match self {
            End => outcome == Outcome::Killed(Signal::SIGSYS),
            Error(errno) => outcome == Outcome::Refused(errno),
            Returns(value) => outcome == Outcome::Returned(value),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(value) => write!(f, "returned {value}"),
            Self::Refused(errno) => write!(f, "refused: {errno}"),
            Self::Killed(signal) => write!(f, "killed: {signal}"),
        }
    }
}
