//! Row E07: the host fails requests, and the device goes on.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;

use testkit::device::eventually;
use testkit::driver::Descriptor;
use virtio_disk::{Access, EngineKind, Image, ImageError};

use crate::harness::{Builder, DATA, IOERR, OK, Rig, SECTOR, kind, pattern, segment};
use crate::on_each_engine;
use crate::scripted;

on_each_engine! {
    fn e07_reading_what_was_cut_off_under_us_is_an_error_of_the_request(engine) {
        let rig = Rig::new(engine);
        let file = OpenOptions::new().write(true).open(&rig.path).unwrap();
        file.set_len(10 * SECTOR as u64 + 100).unwrap();

        let outcome = rig.read(8, 4);

        assert_eq!((outcome.status, outcome.written), (IOERR, 0));
        assert_eq!(rig.read(200, 1).status, IOERR);
        assert_eq!(rig.counter("errors"), 2);
        rig.assert_alive();
    }

    fn e07_a_full_file_system_is_an_error_of_the_request(engine) {
        // Writes to it fail with ENOSPC, reads give zeroes: a sparse file on a full file system, in small.
        let Some(folder) = tiny_tmpfs() else { return };
        let path = folder.path().join("disk.img");
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let image = Image::open(&path, Access::default()).unwrap();
        let rig = Builder::new(engine).start_over(image);

        let statuses: Vec<u8> = (0..8).map(|at| rig.write(at * 1024, &vec![1; 1024 * SECTOR])).collect();

        assert!(statuses.contains(&IOERR), "{statuses:?}");
        assert_eq!(statuses[0], OK);
        rig.assert_alive();
        drop(rig);
    }

    fn e07_whatever_the_host_says_it_is_an_error_of_the_request_alone(engine) {
        let (rig, script) = scripted::start(Builder::new(engine));
        let errors = [
            libc::EIO,
            libc::ENOSPC,
            libc::EFBIG,
            libc::EDQUOT,
            libc::EROFS,
            libc::ESTALE,
            libc::ETIMEDOUT,
            libc::ENOMEM,
            libc::EINVAL,
            libc::EBADF,
        ];
        let one = segment(0, 8, 0);
        for errno in errors {
            for what in ["read", "write", "discard", "zeroes"] {
                script.fail(what, errno, 1);
            }
            assert_eq!(rig.read(0, 1).status, IOERR, "{errno}");
            assert_eq!(rig.write(0, &[1; SECTOR]), IOERR, "{errno}");
            assert_eq!(rig.put(kind::DISCARD, 0, &one), IOERR, "{errno}");
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &one), IOERR, "{errno}");
            rig.assert_alive();
        }
        assert_eq!(rig.counter("host_failures"), 4 * errors.len() as u64);
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
    }

    fn e07_storage_that_stalls_holds_up_its_own_requests_and_completes_them_when_it_is_back(engine) {
        if engine != EngineKind::Plain {
            // What stalls is the script; one engine is enough.
            return;
        }
        let (rig, script) = scripted::start(Builder::new(engine));
        script.stall();
        for head in [0, 3, 6] {
            rig.offer(head, &[
                Descriptor::readable(rig.header(head, kind::IN, u64::from(head)), 16),
                Descriptor::writable(DATA + u64::from(head) * 4096, SECTOR as u32),
                Descriptor::writable(rig.status_byte(head), 1),
            ]);
        }
        rig.kick();
        eventually("all are asked for", || script.asked().len() == 3);
        assert_eq!(rig.queue.used_idx(), 0);

        script.unstall();

        rig.queue.wait_used(3);
        assert!([0, 3, 6].iter().all(|&head| rig.status(head) == OK));
    }

    fn a_disk_that_goes_away_is_flushed_once_when_nothing_is_in_flight_any_more(engine) {
        for (read_only, flushes) in [(false, 1), (true, 0)] {
            let (mut rig, script) = scripted::start(Builder::new(engine).config(|config| config.read_only = read_only));
            assert_eq!(rig.read(0, 1).status, OK);
            rig.stop();
            let rig = rig.reset();
            assert_eq!(script.closing_flushes.load(SeqCst), 0, "not at a reset");

            drop(rig);

            assert_eq!(script.closing_flushes.load(SeqCst), flushes);
        }
    }

    fn e07_a_file_that_refuses_writes_is_an_error_of_the_request(engine) {
        let builder = Builder::new(engine);
        std::fs::write(builder.path(), &builder.contents).unwrap();
        // A descriptor that promises more than the kernel keeps: sealed against writing.
        let memfd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&memfd, &builder.contents).unwrap();
        rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::WRITE).unwrap();
        let image = Image::from_file(memfd.into(), "sealed").unwrap();
        let rig = builder.start_over(image);

        assert_eq!(rig.write(0, &[1; SECTOR]), IOERR);

        rig.assert_alive();
    }
}

/// A file system of two megabytes, unmounted at the end.
pub struct TinyFs(tempfile::TempDir);

impl TinyFs {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for TinyFs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

pub fn tiny_tmpfs() -> Option<TinyFs> {
    let folder = tempfile::tempdir().unwrap();
    let options = std::ffi::CString::new("size=2m").unwrap();
    match rustix::mount::mount("none", folder.path(), "tmpfs", rustix::mount::MountFlags::empty(), Some(&*options)) {
        Ok(()) => Some(TinyFs(folder)),
        Err(error) => {
            eprintln!("skipped: no tmpfs can be mounted here ({error})");
            None
        }
    }
}

#[test]
fn e14_a_missing_image_is_named() {
    let error = Image::open(Path::new("/nowhere/disk.img"), Access::default()).unwrap_err();
    assert!(matches!(error, ImageError::Open { .. }));
    assert_eq!(error.to_string(), "Cannot open the image /nowhere/disk.img");
}
