//! A process that knows nothing of this, and goes on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use taken_over::{Borrowed, Outcome};

/// Something that waits for input.
struct Cat(Child);

impl Cat {
    fn start() -> Self {
        Self(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn id(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// Says what it is told.
    fn repeats(&mut self, word: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{word}").unwrap();
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), word);
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_makes_the_call_and_goes_on_where_it_was() {
    let mut cat = Cat::start();
    cat.repeats("before");
    for _ in 0..100 {
        let borrowed = Borrowed::take(cat.id()).unwrap();
        assert_eq!(borrowed.call(libc::SYS_getpid, [0; 6]).unwrap(), Outcome::Returned(cat.id().into()));
    }
    cat.repeats("after");
}

#[test]
fn what_it_is_to_read_is_in_its_memory() {
    let mut cat = Cat::start();
    cat.repeats("before");
    let borrowed = Borrowed::take(cat.id()).unwrap();
    let missing = borrowed.place(b"/nowhere/at/all\0").unwrap();
    assert_eq!(borrowed.call(libc::SYS_chdir, [missing, 0, 0, 0, 0, 0]).unwrap(), Outcome::Refused(Errno::ENOENT));
    let there = borrowed.place(b"/\0").unwrap();
    assert_eq!(borrowed.call(libc::SYS_chdir, [there, 0, 0, 0, 0, 0]).unwrap(), Outcome::Returned(0));
    drop(borrowed);
    cat.repeats("after");
}

#[test]
fn an_end_of_the_process_is_told() {
    let cat = Cat::start();
    let borrowed = Borrowed::take(cat.id()).unwrap();
    let own = cat.id().cast_unsigned().into();
    let killed = borrowed.call(libc::SYS_kill, [own, libc::SIGKILL as u64, 0, 0, 0, 0]).unwrap();
    assert_eq!(killed, Outcome::Killed(Signal::SIGKILL));
    assert!(Borrowed::take(cat.id()).is_err());
}
