//! A process that is confined as a worker is, does one thing, and says how that went.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::thread;

use rustix::io::Errno;
use tokio::process::{Child, Command};
use xen_virtio::confine::{self, UID_BASE};

/// The domain whose worker the process plays.
pub(crate) const DOMID: u16 = 5;

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was done.
    Done,
    /// The kernel said no.
    Refused(Errno),
    /// The process was killed for a system call that is not let through.
    Killed,
    /// In none of these ways.
    Strange(ExitStatus),
}

/// Exit code of a process that could not be confined; no error has this number.
const NOT_CONFINED: i32 = 200;
const PANICKED: i32 = 201;

/// Has a thread of a confined process make an attempt. What it needs to be open has to be before.
pub(crate) fn attempt(what: impl Fn() -> Result<(), Errno> + Send + Sync + 'static) -> End {
    let status = in_runtime(async {
        let mut child = start(move || match thread::scope(|scope| scope.spawn(&what).join()) {
            Ok(Ok(())) => 0,
            Ok(Err(errno)) => errno.raw_os_error(),
            Err(_) => PANICKED,
        });
        child.wait().await.unwrap()
    });
    match (status.code(), status.signal()) {
        (Some(0), _) => End::Done,
        (Some(NOT_CONFINED), _) => panic!("the process could not be confined: {}", why_not()),
        (Some(code), _) if code != PANICKED => End::Refused(Errno::from_raw_os_error(code)),
        (_, Some(libc::SIGSYS)) => End::Killed,
        _ => End::Strange(status),
    }
}

fn why_not() -> &'static str {
    if rustix::process::geteuid().is_root() { "its standard error says why" } else { "these tests take root" }
}

/// Starts a confined process that ends with the exit code that `body` gives. It has what this process has open.
pub(crate) fn start(body: impl Fn() -> i32 + Send + Sync + 'static) -> Child {
    let mut command = Command::new("/nonexistent");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let confined = move || -> io::Result<()> {
        let code = match confine::enter(confine::uid_of(DOMID, UID_BASE)) {
            Ok(()) => body(),
            Err(error) => {
                eprintln!("{error:#}");
                NOT_CONFINED
            }
        };
        // SAFETY: the process ends here; nothing of its parent's is tidied away.
        unsafe { libc::_exit(code) }
    };
    // SAFETY: the process goes on with a copy of its parent's memory and one thread. The allocator is made for that; no lock
    // of anything else that it uses is held by a thread that is not there any more.
    unsafe { command.pre_exec(confined) };
    // The parent waits for an exec, which does not come before the end.
    confine::spawn(command).unwrap()
}

/// Runs something that needs a tokio runtime.
pub(crate) fn in_runtime<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}

/// A system call by its number.
pub(crate) fn call(number: i64, arguments: [usize; 6]) -> Result<(), Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the tests that come here pass numbers and addresses that the kernel may use, or do not come to live with it.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap()),
        _ => Ok(()),
    }
}

/// A confined process that lives until it is dropped.
pub(crate) fn living() -> Child {
    start(|| {
        // The parent waits for an exec, which it would see as the end of a pipe.
        for descriptor in 3..1024 {
            // SAFETY: this process uses none.
            unsafe { libc::close(descriptor) };
        }
        loop {
            thread::park();
        }
    })
}
