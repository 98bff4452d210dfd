//! Programs on the host that have a port open.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::harness::PATIENCE;

/// Opens a terminal as `screen` would.
pub fn terminal(path: &Path) -> File {
    let flags = i32::try_from((OFlags::NOCTTY | OFlags::NONBLOCK).bits()).unwrap();
    File::options().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

pub fn connection(path: &Path) -> UnixStream {
    let connection = UnixStream::connect(path).unwrap();
    connection.set_nonblocking(true).unwrap();
    connection
}

/// What is there within the tests' patience, up to `len` bytes or the end.
pub fn read_up_to(mut from: impl Read + AsFd, len: usize) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
        let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&left)).unwrap();
        assert!(ready > 0, "only {done} of {len} bytes came: {:?}", String::from_utf8_lossy(&bytes[..done]));
        match from.read(&mut bytes[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error} after {done} bytes"),
        }
    }
    bytes.truncate(done);
    bytes
}

/// Whether there is anything to read now.
pub fn has_more(from: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
}

/// Writes everything, waiting where the device does not read.
pub fn write_all(mut to: impl Write + AsFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        poll(&mut [PollFd::new(&to, PollFlags::OUT)], None).unwrap();
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}
