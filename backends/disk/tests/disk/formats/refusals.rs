//! Row E12: headers that nobody should serve, one field at a time, and what is said of them.

use std::fs;
use std::os::unix::fs::FileExt;

use testkit::cases;
use virtio_disk::{Cache, Config};

use super::rig::{Place, create, make, qemu_img, serve, why_not};
use crate::harness::{SECTOR, pattern};

/// A field of the header: offset, length, value.
type Field = (u64, usize, u64);

const VERSION: u64 = 4;
const BACKING_OFFSET: u64 = 8;
const BACKING_SIZE: u64 = 16;
const CLUSTER_BITS: u64 = 20;
const SIZE: u64 = 24;
const CRYPT_METHOD: u64 = 32;
const L1_SIZE: u64 = 36;
const L1_OFFSET: u64 = 40;
const REFCOUNT_OFFSET: u64 = 48;
const REFCOUNT_CLUSTERS: u64 = 56;
const INCOMPATIBLE: u64 = 72;
const REFCOUNT_ORDER: u64 = 96;
const HEADER_LENGTH: u64 = 100;

/// Where `qemu-img` puts the tables of an image with clusters of 64 KiB.
const CLUSTER: u64 = 64 << 10;

fn put(place: &Place, fields: &[Field]) {
    let file = fs::OpenOptions::new().write(true).open(place.image()).unwrap();
    for &(offset, len, value) in fields {
        file.write_all_at(&value.to_be_bytes()[8 - len..], offset).unwrap();
    }
}

/// Spoils a good image and asks why it is refused; the file must not have been written to.
fn refused(fields: &[Field]) -> String {
    let place = Place::with_image(1 << 20, "");
    put(&place, fields);
    let before = fs::read(place.image()).unwrap();
    let said = why_not(&place.config());
    assert_eq!(fs::read(place.image()).unwrap(), before, "{said}");
    assert!(said.contains(place.image().to_str().unwrap()), "{said}");
    said
}

#[test]
fn e12_a_header_out_of_bounds_is_refused_with_the_field() {
    let spoiled: &[(&[Field], &str)] = &[
        (&[(0, 4, 0)], "does not begin as qcow2"),
        (&[(VERSION, 4, 1)], "says 1 for the version"),
        (&[(VERSION, 4, 4)], "says 4 for the version"),
        (&[(CLUSTER_BITS, 4, 0)], "says 0 for the bits of a cluster"),
        (&[(CLUSTER_BITS, 4, 8)], "says 8 for the bits of a cluster"),
        (&[(CLUSTER_BITS, 4, 22)], "says 22 for the bits of a cluster"),
        (&[(CLUSTER_BITS, 4, 31)], "says 31 for the bits of a cluster"),
        (&[(CLUSTER_BITS, 4, 63)], "says 63 for the bits of a cluster"),
        (&[(CLUSTER_BITS, 4, u64::from(u32::MAX))], "for the bits of a cluster"),
        (&[(SIZE, 8, 0)], "says 0 for the disk's size"),
        (&[(SIZE, 8, 1000)], "says 1000 for the disk's size"),
        (&[(SIZE, 8, 1 << 63)], "for the disk's size"),
        (&[(SIZE, 8, u64::MAX - 511)], "for the disk's size"),
        (&[(CRYPT_METHOD, 4, 1)], "is encrypted"),
        (&[(CRYPT_METHOD, 4, 2)], "is encrypted"),
        (&[(CRYPT_METHOD, 4, 77)], "is encrypted"),
        (&[(L1_SIZE, 4, 0)], "says 0 for the L1 table's length"),
        (&[(L1_SIZE, 4, u64::from(u32::MAX))], "for the L1 table's length"),
        (&[(L1_OFFSET, 8, 0)], "for the L1 table's offset"),
        (&[(L1_OFFSET, 8, 512)], "says 512 for the L1 table's offset"),
        (&[(L1_OFFSET, 8, u64::MAX << 16)], "for the L1 table's offset"),
        (&[(REFCOUNT_OFFSET, 8, 0)], "for the refcount table's offset"),
        (&[(REFCOUNT_OFFSET, 8, 77)], "for the refcount table's offset"),
        (&[(REFCOUNT_CLUSTERS, 4, 0)], "for the refcount table's clusters"),
        (&[(REFCOUNT_CLUSTERS, 4, u64::from(u32::MAX))], "for the refcount table's clusters"),
        (&[(REFCOUNT_ORDER, 4, 7)], "says 7 for the refcounts' order"),
        (&[(REFCOUNT_ORDER, 4, u64::from(u32::MAX))], "for the refcounts' order"),
        (&[(HEADER_LENGTH, 4, 0)], "for its own length"),
        (&[(HEADER_LENGTH, 4, 103)], "for its own length"),
        (&[(HEADER_LENGTH, 4, CLUSTER + 8)], "for its own length"),
        (&[(INCOMPATIBLE, 8, 1)], "was not closed as it should be"),
        (&[(INCOMPATIBLE, 8, 2)], "marked as corrupt"),
        (&[(INCOMPATIBLE, 8, 4)], "keeps its data in another file"),
        (&[(INCOMPATIBLE, 8, 8)], "compressed with something else"),
        (&[(INCOMPATIBLE, 8, 16)], "extended L2 entries"),
        (&[(INCOMPATIBLE, 8, 32)], "features that nobody knew of"),
        (&[(INCOMPATIBLE, 8, 1 << 63)], "features that nobody knew of"),
        (&[(BACKING_OFFSET, 8, 512), (BACKING_SIZE, 4, 1024)], "Its backing file's name, 1024 bytes at 512"),
        (&[(BACKING_OFFSET, 8, 512), (BACKING_SIZE, 4, u64::from(u32::MAX))], "Its backing file's name"),
        (&[(BACKING_OFFSET, 8, u64::MAX), (BACKING_SIZE, 4, 9)], "Its backing file's name"),
        (&[(BACKING_OFFSET, 8, CLUSTER), (BACKING_SIZE, 4, 9)], "Its backing file's name"),
        (&[(BACKING_OFFSET, 8, 8), (BACKING_SIZE, 4, 9)], "Its backing file's name"),
    ];
    cases::each(spoiled, |(fields, words)| {
        let said = refused(fields);
        assert!(said.contains(words), "{said}");
    });
}

#[test]
fn e12_tables_on_each_other_or_beyond_the_end_are_refused() {
    let refcounts = CLUSTER;
    let (block, l1) = (2 * CLUSTER, 3 * CLUSTER);
    let spoiled: &[(&[Field], &str)] = &[
        (&[(L1_OFFSET, 8, refcounts)], "lie on the cluster at 0x10000"),
        (&[(L1_OFFSET, 8, block)], "An L2 table at"),
        (&[(L1_OFFSET, 8, 100 * CLUSTER)], "The L1 table at 0x640000"),
        (&[(REFCOUNT_OFFSET, 8, 100 * CLUSTER)], "The refcount table at 0x640000"),
        (&[(REFCOUNT_CLUSTERS, 4, 2)], "counts clusters behind the end"),
        // An L2 table that is the header's field bits, the L1 table itself, the refcounts, or nowhere.
        (&[(l1, 8, (1 << 63) | l1)], "lie on the cluster at 0x30000"),
        (&[(l1, 8, (1 << 63) | refcounts)], "lie on the cluster at 0x10000"),
        (&[(l1, 8, (1 << 63) | block)], "lie on the cluster at 0x20000"),
        (&[(l1, 8, (1 << 63) | 512)], "An L2 table at 0x200"),
        (&[(l1, 8, (1 << 63) | (100 * CLUSTER))], "An L2 table at 0x640000"),
        (&[(l1, 8, 0x00ff_ffff_ffff_0000)], "An L2 table at 0xffffffffff0000"),
        (&[(refcounts, 8, 0)], "The first refcount block is missing"),
        (&[(refcounts, 8, refcounts)], "lie on the cluster at 0x10000"),
        (&[(refcounts, 8, l1)], "lie on the cluster at 0x30000"),
        (&[(refcounts, 8, 100 * CLUSTER)], "A refcount block at 0x640000"),
        (&[(refcounts + 8, 8, block)], "Refcount block 1 counts clusters behind the end"),
        (&[(refcounts + 8 * 8191, 8, block)], "Refcount block 8191 counts clusters behind the end"),
    ];
    cases::each(spoiled, |(fields, words)| {
        let said = refused(fields);
        assert!(said.contains(words) && said.contains("qemu-img check"), "{said}");
    });
}

#[test]
fn what_qemu_makes_and_is_not_served_is_refused_with_what_to_do() {
    for (options, words) in [
        ("compression_type=zstd", "qemu-img convert"),
        ("extended_l2=on", "qemu-img convert"),
        ("encrypt.format=aes,encrypt.key-secret=s", "is encrypted"),
    ] {
        let place = Place::new();
        let image = place.image();
        let arguments = ["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", options];
        qemu_img(&[&arguments[..], &[image.to_str().unwrap(), "1M"]].concat());
        let said = why_not(&place.config());
        assert!(said.contains(words), "{options}: {said}");
    }
    let place = Place::new();
    let options = format!("data_file={}", place.file("data").display());
    create(&place.image(), 1 << 20, &options);
    assert!(why_not(&place.config()).contains("another file"));
}

#[test]
fn a_raw_image_is_no_qcow2_image_and_a_file_too_short_is_none() {
    let place = Place::new();
    for contents in [pattern(SECTOR, 1), Vec::new(), b"QFI\xfb".to_vec(), b"QFI\xfb\0\0\0\x03".to_vec()] {
        fs::write(place.image(), contents).unwrap();
        let said = why_not(&place.config());
        assert!(said.contains("cannot be served as qcow2"), "{said}");
    }
}

/// Row E11: what a guest writes to its raw disk never makes it another kind of disk.
#[test]
fn e11_a_raw_image_that_begins_as_qcow2_does_is_raw() {
    let place = Place::with_image(1 << 30, "");
    let len = fs::metadata(place.image()).unwrap().len().next_multiple_of(512);
    fs::OpenOptions::new().write(true).open(place.image()).unwrap().set_len(len).unwrap();
    let disk = make(&Config { image: place.image(), ..Config::default() }).unwrap();
    let mut capacity = [0; 8];
    disk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), len / 512);
}

#[test]
fn a_read_only_image_is_left_as_it_is() {
    let place = Place::with_image(1 << 20, "");
    // A bit that a writer has to clear.
    put(&place, &[(88, 8, 1 << 40)]);
    let before = fs::read(place.image()).unwrap();
    for cache in [Cache::Writeback, Cache::Writethrough] {
        let config = Config { read_only: true, cache, ..place.config() };
        let rig = serve(&config, Default::default());
        assert_eq!(rig.read(0, 8).data, [0; 8 * SECTOR]);
        assert_eq!(rig.write(0, &pattern(SECTOR, 1)), crate::harness::IOERR);
        drop(rig);
    }
    assert_eq!(fs::read(place.image()).unwrap(), before);
}
