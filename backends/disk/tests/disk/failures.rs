//! Row E07: the host fails requests, and the device goes on.

use std::fs::OpenOptions;
use std::path::Path;

use virtio_disk::{Access, Image, ImageError};

use crate::harness::{Builder, IOERR, OK, Rig, SECTOR};
use crate::on_each_engine;

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
struct TinyFs(tempfile::TempDir);

impl TinyFs {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for TinyFs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn tiny_tmpfs() -> Option<TinyFs> {
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
