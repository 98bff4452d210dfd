//! The program itself, started as `serve` starts a worker.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, dup, fcntl_setfd};
use tokio::process::{Child, Command};
use xen_virtio::channel::{Channel, Received};
use xen_virtio::confine::{self, UID_BASE, uid_of};
use xen_virtio::protocol::{Answer, Order, VERSION};

use crate::harness::{DOMID, in_runtime};

const PROGRAM: &str = env!("CARGO_BIN_EXE_xen-virtio");

/// What a worker says first that has nothing but /dev/null for each of Xen's devices, and that is started by `spawn`.
fn first_words(spawn: impl FnOnce(Command) -> anyhow::Result<Child>) -> String {
    let (here, there) = Channel::pair().unwrap();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let order = Order::Start { version: VERSION, domid: DOMID, former: None };
    here.send(&order, &[null.as_fd(), null.as_fd(), null.as_fd()]).unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(["worker", "--user", &uid_of(DOMID, UID_BASE).to_string()])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(there)))
        .stdout(Stdio::null());
    in_runtime(async {
        let mut child = spawn(command).unwrap();
        child.wait().await.unwrap();
    });
    poll(&mut [PollFd::new(&here, PollFlags::IN)], None).unwrap();
    let (answer, _): Received<Answer> = here.try_receive().unwrap().expect("it says something before it ends");
    let Answer::Unable { reason } = answer else { panic!("{answer:?}") };
    reason
}

#[test]
fn it_is_confined_before_it_asks_xen_for_anything_and_still_says_what_is_wrong() {
    let reason = first_words(confine::spawn);

    assert!(reason.contains("Asking for the number of vCPUs"), "{reason}");
}

#[test]
fn it_does_not_confine_itself_among_the_mounts_and_processes_of_the_host() {
    let reason = first_words(|mut command| Ok(command.spawn()?));

    assert!(reason.contains("namespaces of its own"), "{reason}");
}

#[test]
fn it_is_started_with_no_descriptor_that_its_broker_was_started_with() {
    let leaked = dup(File::open("/dev/null").unwrap()).unwrap();
    fcntl_setfd(&leaked, FdFlags::empty()).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo /proc/self/fd/*"]).stdin(Stdio::null()).stdout(Stdio::piped());

    let output = in_runtime(async { confine::spawn(command).unwrap().wait_with_output().await.unwrap() });

    let listed = String::from_utf8(output.stdout).unwrap();
    let leaked = format!("/proc/self/fd/{}", leaked.as_raw_fd());
    assert!(listed.contains("/proc/self/fd/2"), "{listed}");
    assert!(!listed.split_whitespace().any(|name| name == leaked), "{leaked} is among {listed}");
}
