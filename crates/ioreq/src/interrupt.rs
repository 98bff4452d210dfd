//! Getting a thread out of a read that blocks.
//!
//! A signal whose handler does nothing makes the read fail with `EINTR`, the way VMMs get a thread
//! out of a running vCPU. It costs nothing until it is used, where a second descriptor to wait for
//! would cost a system call per wait. A signal that arrives just before the read starts is lost, so
//! the sender repeats it until the thread reacts.

use std::ffi::{c_int, c_void};
use std::thread::JoinHandle;

use rustix::io::Errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Has the signal interrupt, for the whole process, rather than kill. May be called again.
pub(crate) fn prepare() -> Result<(), Errno> {
    // The handler is not set to restart system calls.
    register_signal_handler(SIGRTMIN(), ignore).map_err(|error| Errno::from_raw_os_error(error.errno()))
}

/// Interrupts whatever `thread` waits for in the kernel.
pub(crate) fn interrupt(thread: &JoinHandle<()>) -> Result<(), Errno> {
    thread.kill(SIGRTMIN()).map_err(|error| Errno::from_raw_os_error(error.errno()))
}

extern "C" fn ignore(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_blocking_read_ends_with_eintr() {
        prepare().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let waiter = thread::spawn(move || {
            let mut byte = [0; 1];
            assert_eq!(rustix::io::read(&reader, &mut byte), Err(Errno::INTR));
        });
        while !waiter.is_finished() {
            interrupt(&waiter).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        waiter.join().unwrap();
        drop(writer);
    }
}
