//! A confined process can do its work, and ends when it has to, although it is process 1 of its namespace.

use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc;
use std::{process, thread};

use rustix::io::Errno;

use crate::harness::{End, attempt, in_runtime, living, start};

#[test]
fn it_makes_threads_and_takes_memory_until_it_has_enough() {
    let end = attempt(|| {
        let (sent, received) = mpsc::channel();
        let workers: Vec<_> = (0..32)
            .map(|number| {
                let sent = sent.clone();
                // Beyond what malloc keeps in arenas, grown step by step, and given back.
                let work = move || {
                    let mut bytes = Vec::new();
                    for byte in 0..200_000_usize {
                        bytes.push(byte as u8);
                        if byte % 50_000 == 0 {
                            bytes.reserve(1 << 20);
                        }
                    }
                    let _ = sent.send(bytes.len() + number);
                };
                thread::Builder::new().name(format!("lane {number}")).spawn(work).unwrap()
            })
            .collect();
        drop(sent);
        let sum: usize = received.iter().sum();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        if sum == 32 * 200_000 + 496 { Ok(()) } else { Err(Errno::IO) }
    });
    assert_eq!(end, End::Done);
}

#[test]
fn an_abort_ends_it() {
    let status = in_runtime(async { start(|| process::abort()).wait().await.unwrap() });
    assert!(status.signal().is_some() && !status.core_dumped(), "{status}");
}

#[test]
fn a_fault_ends_it() {
    let end = attempt(|| {
        // SAFETY: it is not to live with it.
        unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() };
        Ok(())
    });
    assert!(matches!(end, End::Strange(status) if status.signal() == Some(libc::SIGSEGV)), "{end:?}");
}

#[test]
fn its_broker_can_kill_it() {
    in_runtime(async {
        let mut child = living();
        child.start_kill().unwrap();
        assert_eq!(child.wait().await.unwrap().signal(), Some(libc::SIGKILL));
    });
}
