//! Output into files.

use std::fs;
use std::path::Path;
use std::thread;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::harness::{Rig, pattern, wait_until};

#[test]
fn output_is_appended_to_what_is_there() {
    let rig = Rig::classic("sink = \"file\"\npath = \"DIR/log\"");
    let path = rig.directory.path().join("log");
    rig.print(0, b"one\n");
    wait_until("it is written", || fs::read(&path).unwrap() == b"one\n");
    rig.print(0, b"two\n");
    wait_until("it is written", || fs::read(&path).unwrap() == b"one\ntwo\n");
    assert_eq!(fs::read_link(rig.place("0")).unwrap(), path);
}

#[test]
fn a_full_file_begins_anew_and_its_former_part_is_kept() {
    const LIMIT: usize = 64 << 10;
    let rig = Rig::classic("sink = \"file\"\npath = \"DIR/log\"\nlimit = 65536");
    let path = rig.directory.path().join("log");
    let bytes = pattern(5 * LIMIT + 1234);

    rig.print(0, &bytes);
    wait_until("all is written", || rig.counter("bytes_out") == bytes.len() as u64);

    let (old, new) = (fs::read(rig.directory.path().join("log.1")).unwrap(), fs::read(path).unwrap());
    assert!(old.len() <= LIMIT && old.len() > LIMIT - 4096 && new.len() <= LIMIT, "{} {}", old.len(), new.len());
    let both = [old, new].concat();
    assert!(both == bytes[bytes.len() - both.len()..], "the end of the output, without a gap");
    assert_eq!(rig.counter("bytes_dropped"), 0);
}

/// In a mount namespace of this thread's own.
fn on_a_small_file_system(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = thread::spawn(|| {
        let directory = tempfile::tempdir().unwrap();
        unshare(UnshareFlags::NEWNS | UnshareFlags::FS);
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=128k")).unwrap();
        test(directory.path());
    });
    thread.join().unwrap();
}

#[expect(unsafe_code, reason = "the thread is a new one, and shares no file descriptors by it")]
fn unshare(flags: UnshareFlags) {
    // SAFETY: neither the table of descriptors nor anything that the standard library relies on is unshared.
    unsafe { unshare_unsafe(flags) }.expect("these tests mount file systems, so they need root");
}

#[test]
fn g01_a_full_disk_loses_output_and_nothing_else() {
    on_a_small_file_system(|directory| {
        let path = directory.join("log");
        let rig = Rig::classic(&format!("sink = \"file\"\npath = \"{}\"", path.display()));
        let bytes = pattern(512 << 10);

        rig.print(0, &bytes);
        wait_until("all is dealt with", || {
            rig.counter("bytes_out") + rig.counter("bytes_dropped") == bytes.len() as u64
        });

        assert!(rig.counter("host_failures") > 0 && rig.counter("bytes_dropped") > 0);
        rig.assert_healthy();
        let fitted = fs::read(&path).unwrap();
        assert!(!fitted.is_empty() && fitted == bytes[..fitted.len()]);

        // Somebody makes room.
        fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        rig.print(0, b"on we go\n");
        wait_until("it is written", || fs::read(&path).unwrap() == b"on we go\n");
    });
}

#[test]
fn a_device_that_goes_has_written_what_was_printed() {
    let rig = Rig::classic("sink = \"file\"\npath = \"DIR/log\"");
    let bytes = pattern(60_000);
    rig.print(0, &bytes);
    let Rig { transport, directory, .. } = rig;
    drop(transport);
    wait_until("it is written", || fs::read(directory.path().join("log")).unwrap() == bytes);
}
