//! What an image may lie on: a file system that is full (row E07), a block device with room for it or without.

use std::fs;

use super::rig::{Place, assert_clean, contents, create, qcow2, serve};
use crate::failures::tiny_tmpfs;
use crate::harness::{IOERR, OK, SECTOR, kind, pattern, segment};
use crate::images::LoopDevice;
use crate::on_each_pool;

/// Sectors of a write; a cluster.
const PIECE: usize = 128;

on_each_pool! {
    fn e07_a_full_file_system_fails_requests_until_there_is_room(engine) {
        let Some(small) = tiny_tmpfs() else { return };
        let (image, filler) = (small.path().join("disk.qcow2"), small.path().join("filler"));
        create(&image, 64 << 20, "");
        fs::write(&filler, vec![1; 1 << 20]).unwrap();
        let rig = serve(&qcow2(&image), engine);
        let piece = |number: usize| pattern(PIECE * SECTOR, number as u8);
        let at = |number: usize| (number * PIECE) as u64;

        let fitted = (0..64).find(|&number| rig.write(at(number), &piece(number)) != OK).expect("2 MiB hold no 4 MiB");
        rig.flush();
        assert!(fitted > 4, "{fitted}");
        assert!((0..fitted).all(|number| rig.read(at(number), PIECE).data == piece(number)));
        assert_eq!(rig.write(at(900), &piece(1)), IOERR);
        rig.assert_alive();

        fs::remove_file(filler).unwrap();
        // A flush that failed counts until the driver has reset the device.
        let rig = rig.reset();
        assert_eq!(rig.write(at(fitted), &piece(fitted)), OK);
        assert_eq!(rig.flush(), OK);
        drop(rig);
        assert_clean(&image);
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("disk.qcow2");
        fs::copy(&image, &copy).unwrap();
        let expected: Vec<u8> = (0..=fitted).flat_map(piece).collect();
        assert!(contents(&copy)[..expected.len()] == expected);
    }

    fn an_image_on_a_block_device_is_served_as_far_as_that_reaches(engine) {
        let place = Place::on_disk();
        let file = place.file("device");
        fs::File::create(&file).unwrap().set_len(4 << 20).unwrap();
        let Some(device) = LoopDevice::attach(&file) else { return };
        create(&device.0, 64 << 20, "");
        let rig = serve(&qcow2(&device.0), engine);
        let piece = |number: usize| pattern(PIECE * SECTOR, number as u8);
        let at = |number: usize| (number * PIECE) as u64;

        // Part of a cluster, whose rest is zeroes.
        assert_eq!(rig.write(at(500) + 3, &pattern(SECTOR, 7)), OK);
        let fitted = (0..100).find(|&number| rig.write(at(number), &piece(number)) != OK).expect("4 MiB hold no 6 MiB");
        assert!(fitted > 32, "{fitted}");
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(0, PIECE as u32, 0)), OK);
        // What was given back is taken again.
        assert_eq!(rig.write(at(fitted), &piece(fitted)), OK);
        assert_eq!(rig.flush(), OK);
        assert_eq!(rig.read(at(500), 8).data[3 * SECTOR..4 * SECTOR], pattern(SECTOR, 7));
        assert_eq!(rig.read(at(500) + 4, 100).data, [0; 100 * SECTOR]);
        assert!((1..=fitted).all(|number| rig.read(at(number), PIECE).data == piece(number)));
        drop(rig);
        assert_clean(&device.0);
        drop(device);
    }
}
