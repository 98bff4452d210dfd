//! What a process that serves arranges with the kernel.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getrlimit, setrlimit, waitpid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// SIGTERM and SIGINT, caught: they no longer end the process by themselves.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Catches them. Has to be called in a tokio runtime with I/O.
    ///
    /// # Errors
    /// The host does not allow it.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub(crate) async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// SIGUSR1, caught.
pub(crate) struct UserSignal(Signal);

impl UserSignal {
    /// Catches it, as [`StopSignals::catch`] does its own.
    ///
    /// # Errors
    /// The host does not allow it.
    pub(crate) fn catch() -> io::Result<Self> {
        signal(SignalKind::user_defined1()).map(Self)
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Has a write beyond the limit of file sizes (RLIMIT_FSIZE, systemd's LimitFSIZE=) fail like any other. By default the
/// kernel ends the process, and with it all devices of a guest. Where that cannot be had, so it is.
pub(crate) fn survive_file_size_limit() {
    let catch = || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _in_runtime = runtime.enter();
        // A signal that was caught once stays so until the process ends; that it came is no news, as the write fails.
        signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
    };
    if let Err(error) = catch() {
        tracing::warn!(name: "process.signals", %error, "A limit of file sizes, if there is one, ends this process");
    }
}

/// Raises the limit of open descriptors as far as we are let: a socket device may have a thousand connections. Where that
/// fails, fewer do.
pub(crate) fn allow_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Reaps the children that this process had before it became this program, when they end: nobody else knows of them. Has to
/// be called in a tokio runtime with I/O, on the process's first thread.
///
/// # Errors
/// The host does not allow signals to be caught.
pub(crate) fn reap_inherited() -> io::Result<()> {
    // A kernel that does not tell leaves them dead until we end, which costs a number each.
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let mut inherited: Vec<_> = text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
    let mut one_ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        loop {
            inherited.retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
            if inherited.is_empty() {
                return;
            }
            one_ended.recv().await;
        }
    });
    Ok(())
}

/// A descriptor of our own for one by its number, which need not be open. We send it to ourselves: so it is the kernel
/// that looks, and gives one that is owned.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let (here, there) = UnixStream::pair()?;
    here.send_with_fd(&[0_u8][..], number)?;
    let (_, received) = there.recv_with_fd(&mut [0])?;
    let descriptor = OwnedFd::from(received.ok_or(ErrorKind::NotFound)?);
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}
