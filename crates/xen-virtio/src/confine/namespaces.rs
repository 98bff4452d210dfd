//! Namespaces: a worker begins in its own of mounts, networks, processes, System V objects and host names.
//!
//! They are of a thread, and a process that the thread starts begins in them. So a thread of a moment's life makes them and
//! starts the worker: the broker itself stays where it is, and no process stands between it and its worker. The worker is
//! process 1 of its namespace. It sees no other process, and what ends it from within is a fault or its own exit, as signals
//! to process 1 need a handler; the broker sees it by its number outside, and its SIGKILL is obeyed.
#![expect(unsafe_code, reason = "unshare(2) can take descriptors from other threads, if it is told to")]

use std::panic;
use std::thread;

use anyhow::Context;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::inherited;

const OWN: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS);

/// Starts a process in namespaces of its own, in each of which there is nothing yet; that of mounts is a copy of ours. Has to
/// be called in a tokio runtime, to which the process then belongs.
///
/// # Errors
/// The kernel has no such namespaces or lets us make none, or the program cannot be started.
pub fn spawn(mut command: Command) -> anyhow::Result<Child> {
    let runtime = Handle::current();
    let spawned = thread::scope(|scope| {
        let spawner = thread::Builder::new().name("spawner".into()).spawn_scoped(scope, || {
            let _in_runtime = runtime.enter();
            // SAFETY: the table of descriptors stays shared.
            unsafe { unshare_unsafe(OWN) }.context(
                "A worker cannot have namespaces of its own. `serve` has to be root with all capabilities, on a kernel with \
                 CONFIG_NAMESPACES and all of its kinds but user namespaces; `serve --no-sandbox` does without, and leaves the \
                 host to whoever takes a worker over",
            )?;
            inherited::close_at_exec().context("Cannot keep what is open from a worker, which takes Linux 5.11")?;
            command.spawn().context("Cannot start a worker process")
        });
        anyhow::Ok(spawner?.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    });
    spawned.context("Cannot make a thread to start a worker from")?
}
