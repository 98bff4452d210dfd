//! A process and a network of its own for each test, and the words they share.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;
use virtio_backend::{Kind, Owner};
use virtio_net::{Config, Net};

/// Names the test in its own process.
const INSIDE: &str = "VIRTIO_NET_TEST_INSIDE";

/// Far more than anything here takes; a test that waits so long has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `body` of the test `name` (with its module) alone in its network.
pub(crate) fn isolated(name: &str, body: impl FnOnce()) {
    isolated_by(name, &[], |_| {}, body);
}

/// As [`isolated`], started by the program `wrapper`, in a process that `prepare` completes. Mounts are its own as well.
pub(crate) fn isolated_by(name: &str, wrapper: &[&str], prepare: impl FnOnce(&mut Command), body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    assert!(rustix::process::geteuid().is_root(), "Making network namespaces and taps takes root; run this as root");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--"]).args(wrapper).arg(env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, name);
    prepare(&mut command);
    let output = command.output().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A misspelt name would run no test, and succeed.
    let has_run = said.contains("1 passed");
    assert!(output.status.success() && has_run, "{name} in its own network: {}\n{said}\n{complained}", output.status);
}

/// The first device of the guest `web`.
pub(crate) fn owner() -> Owner {
    owner_of("web", 0)
}

/// A device of a guest.
pub(crate) fn owner_of(guest: &str, index: usize) -> Owner {
    Owner {
        guest: guest.into(),
        identity: format!("identity of {guest}"),
        index,
        vcpus: 1,
        directory: PathBuf::from("/run"),
    }
}

/// What an operator wrote.
pub(crate) fn config(text: &str) -> Config {
    toml::from_str(text).unwrap()
}

/// Opens the host's end for the guest `web`.
pub(crate) fn open(text: &str) -> (Config, Vec<OwnedFd>) {
    let mut config = config(text);
    let descriptors = Net::open(&mut config, &owner()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    (config, descriptors)
}

/// Why it cannot be opened, as a log would print it.
pub(crate) fn refusal(text: &str) -> String {
    refusal_for(text, &owner())
}

/// As [`refusal`], for someone else.
pub(crate) fn refusal_for(text: &str, owner: &Owner) -> String {
    chain(&Net::open(&mut config(text), owner).expect_err("it opened"))
}

fn chain(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs a program that has to succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} does not run: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs ip(8) on words between spaces.
pub(crate) fn ip(words: &str) -> String {
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

/// What ip(8) says of an interface, if there is one.
pub(crate) fn link(name: &str) -> Option<Value> {
    let all: Value = serde_json::from_str(&ip("-d -j link show")).unwrap();
    all.as_array().unwrap().iter().find(|link| link["ifname"] == name).cloned()
}

/// The state of a flag of an interface.
pub(crate) fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"].as_array().unwrap().iter().any(|set| set == flag)
}

/// Reads from a non-blocking descriptor until `wanted` finds what it looks for in what was read last.
pub(crate) fn read_until(descriptor: &OwnedFd, mut wanted: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 70_000];
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        match rustix::io::read(descriptor, &mut buffer) {
            Ok(length) if wanted(&buffer[..length]) => return,
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
                poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&limit)).unwrap();
            }
            Err(errno) => panic!("reading failed: {errno}"),
        }
    }
    panic!("what was expected did not come");
}

/// Tries until it works.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if let Some(result) = attempt() {
            return result;
        }
        thread::yield_now();
    }
    panic!("{what}: not within {LIMIT:?}");
}

/// A program that ends with the test.
pub(crate) struct Running(std::process::Child);

impl Running {
    /// Starts it.
    pub(crate) fn new(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("{program} does not run, is its package installed? {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A path as words of a command.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
