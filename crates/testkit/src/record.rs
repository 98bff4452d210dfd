//! What is left of a device when its process is killed.

use std::os::fd::AsFd;

use rustix::fs::fstat;
use rustix::io::{pread, pwrite};
use virtio_backend::Record;

/// A copy of a record: what the process that follows would find if this one were killed now. A device that is stopped in
/// a test, as a process that is killed is not, then changes the original alone.
///
/// # Panics
/// The host has no memory.
#[must_use]
pub fn left_behind(record: &Record) -> Record {
    let copy = Record::new().expect("a record");
    let len = u64::try_from(fstat(record.as_fd()).expect("its length").st_size).expect("a length");
    let mut page = [0; 4096];
    for at in (0..len).step_by(page.len()) {
        let count = pread(record.as_fd(), &mut page, at).expect("reading a record");
        // Pages that nothing was written to take no memory.
        if page[..count] != [0; 4096][..count] {
            pwrite(copy.as_fd(), &page[..count], at).expect("writing a record");
        }
    }
    copy
}
