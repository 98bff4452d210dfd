//! Confinement: what a worker gives up before its guest can reach it.
//!
//! A worker parses what its guest wrote, so it is built as if its guest had taken it over. It keeps the descriptors that
//! it was given, and the few system calls that serving takes; all else it gives away for good, in an order in which each
//! step still has the rights that it needs:
//!
//! 1. before it exists, the broker makes namespaces for it (namespaces.rs): in them it begins as process 1;
//! 2. it begins by an exec that closes all that it is not meant to inherit (inherited.rs);
//! 3. with whom to serve and with what in its hands, it leaves the host's files behind (root.rs), which takes
//!    CAP_SYS_ADMIN;
//! 4. limits (limits.rs), which an unprivileged process could not raise again;
//! 5. a user of its own, no capabilities, and no way to gain any (identity.rs);
//! 6. Landlock (landlock.rs), which any process may do to itself that can gain no privileges;
//! 7. and system calls, seccomp (calls.rs), last, as all before makes calls that are refused from then on.
//!
//! It happens before the IOREQ server is made and before there is a second thread: nothing of a guest has been read by
//! then, and no thread can have been left out. Nothing of this can be undone by the process that did it.
//!
//! There is no PR_SET_PDEATHSIG: a worker is to outlive its broker, and serves on until the next one comes.

mod calls;
mod identity;
mod inherited;
mod landlock;
mod limits;
mod namespaces;
mod root;

use std::fs;

use anyhow::{Context, bail};
use rustix::process::{Pid, getpid};

pub use calls::{ALLOWED, OPENS_NOTHING, REFUSED};
pub use namespaces::spawn;

/// Where user ids of workers begin by default: the worker of domain 5 is user 5 above it, so that no two guests share one.
///
/// Nobody else hands out ids there: distributions give users and subordinate users ids up to 600100000, systemd gives
/// containers ids up to 0x6fffffff and foreign files those from 0x7ffe0000, and SSSD ends at 2000200000.
pub const UID_BASE: u32 = 0x7876_0000;

/// The highest number where they may begin: all workers' are below those of foreign files then, and far below those that
/// programs take for negative.
pub const UID_BASE_MAX: u32 = 0x7ffd_0000;

/// The highest of their ids.
pub const UID_MAX: u32 = UID_BASE_MAX + u16::MAX as u32;

/// The user of a guest's worker, which is also its group.
pub fn uid_of(domid: u16, base: u32) -> u32 {
    base.saturating_add(domid.into())
}

/// Confines this process, which becomes user `uid`. Each thread that it makes from now on is confined as well.
///
/// # Errors
/// The kernel refuses a step; the message says which, and what to do. The process is then confined in part, and has to
/// end.
pub fn enter(uid: u32) -> anyhow::Result<()> {
    // Most of this is each thread's own: one that is there already would keep what the process gives up.
    let threads = fs::read_dir("/proc/self/task").context("Cannot count the threads of this process in /proc")?;
    if threads.count() != 1 {
        bail!("A process has to be confined before it makes threads");
    }
    // Else what follows would be done to the mounts of the host.
    if getpid() != Pid::INIT {
        bail!("A worker has to be started in namespaces of its own, as `xen-virtio serve` does");
    }
    step("leave the host's files behind", root::leave())?;
    step("limit what it may take", limits::set())?;
    step("give up its rights", identity::become_nobody(uid))?;
    step("restrict itself with Landlock", landlock::restrict())?;
    step("restrict its system calls", calls::restrict())
}

fn step<E: Into<anyhow::Error>>(what: &str, done: Result<(), E>) -> anyhow::Result<()> {
    done.map_err(Into::into).with_context(|| {
        format!(
            "The worker cannot {what}, so it does not start. `serve` has to be root with all capabilities, on a kernel with \
             namespaces and seccomp; `serve --no-sandbox` does without, and leaves the host to whoever takes a worker over"
        )
    })
}
