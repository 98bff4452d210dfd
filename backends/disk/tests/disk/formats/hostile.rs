//! Row E12: images whose tables say anything. Whatever they say, requests end, in an error at worst, and the device
//! goes on.

use std::fs;
use std::process::Command;

use virtio_backend::{Kind, reach};
use virtio_disk::{Config, Disk, EngineKind};

use super::lanes::Dice;
use super::rig::{Place, create, make, qemu_img};
use crate::harness::{Builder, IOERR, OK, Rig, SECTOR, UNSUPP, kind, pattern, segment};

const SIZE: usize = 4 << 20;

/// A good image with something of everything in it: written, compressed, zeroed and untouched clusters.
fn good(options: &str) -> Vec<u8> {
    let place = Place::new();
    let (image, raw) = (place.image(), place.file("raw"));
    let (name, raw) = (image.to_str().unwrap(), raw.to_str().unwrap().to_owned());
    let mut contents = vec![0; SIZE];
    contents[..SIZE / 4].copy_from_slice(&pattern(SIZE / 4, 1));
    fs::write(&raw, contents).unwrap();
    qemu_img(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", options, &raw, name]);
    let commands = ["write -q -P 7 1M 512k", "write -q -z 64k 128k", "write -q -P 9 3M 64k", "discard -q 1100k 100k"];
    let commands: Vec<_> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let done = Command::new("qemu-io").args(["-f", "qcow2"]).args(commands).arg(name).status().unwrap();
    assert!(done.success());
    fs::read(image).unwrap()
}

/// Where the tables are: the header, the refcounts, and what the L1 table points to.
fn tables(image: &[u8], cluster: usize) -> Vec<usize> {
    let number = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
    let (l1, refcounts) = (number(40) as usize, number(48) as usize);
    let pointed = [l1, refcounts].map(|table| (table..(table + 64).min(image.len() - 8)).step_by(8).map(number));
    let pointed = pointed.into_iter().flatten().filter(|&at| at != 0).map(|at| at as usize);
    let mut tables: Vec<_> = [0, l1, refcounts].into_iter().chain(pointed).collect();
    tables.retain(|at| at + cluster.min(4096) <= image.len());
    tables
}

/// Spoils one to six numbers in the tables.
fn spoil(image: &mut [u8], cluster: usize, dice: &mut Dice) {
    let tables = tables(image, cluster);
    let clusters = (image.len() / cluster) as u64;
    for _ in 0..=dice.roll(6) {
        let table = tables[dice.roll(tables.len() as u64) as usize];
        let width = if table == 0 { 4 } else { 8 };
        let at =
            table + dice.roll(if table == 0 { 112 } else { cluster.min(512) as u64 } / width) as usize * width as usize;
        let flags = [0, 1, 1 << 63, 1 << 62, 3 << 62, (1 << 63) | 1][dice.roll(6) as usize];
        let value = match dice.roll(6) {
            0 => 0,
            1 => u64::MAX,
            2 => dice.roll(u64::MAX),
            3 => dice.roll(64),
            _ => flags | (dice.roll(clusters + 2) * cluster as u64),
        };
        let bytes = &value.to_be_bytes()[8 - width as usize..];
        if let Some(place) = image.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Whatever becomes of a request, it ends.
fn ended(status: u8) {
    assert!(matches!(status, OK | IOERR | UNSUPP), "{status}");
}

/// What a guest may do with such a disk.
fn use_it(rig: &Rig, sectors: u64, dice: &mut Dice) {
    for sector in (0..sectors.min(SIZE as u64 / 512)).step_by(512) {
        ended(rig.read(sector, 512.min(sectors - sector) as usize).status);
    }
    for _ in 0..12 {
        let len = 1 + dice.roll(200).min(sectors - 1);
        let sector = dice.roll(sectors.min(SIZE as u64 / 512) - len.min(sectors.min(SIZE as u64 / 512)) + 1);
        match dice.roll(4) {
            0 => ended(rig.put(kind::DISCARD, 0, &segment(sector, len as u32, 0))),
            1 => ended(rig.put(kind::WRITE_ZEROES, 0, &segment(sector, len as u32, dice.roll(2) as u32))),
            2 => ended(rig.flush()),
            _ => ended(rig.write(sector, &pattern(len as usize * SECTOR, 5))),
        }
    }
    ended(rig.flush());
    assert_eq!(rig.get(kind::GET_ID, 0, 20).status, OK);
    assert_eq!(rig.hearing.fault(), None);
}

/// Spoils an image in `cases` ways. Returns how many of them could be served at all.
fn spoil_and_use(cases: u64, options: &str, cluster: usize) -> u64 {
    let good = good(options);
    let place = Place::new();
    let mut served = 0;
    for seed in 1..=cases {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut image = good.clone();
        spoil(&mut image, cluster, &mut dice);
        // A file of its own: the one before may be in use for a moment yet.
        let path = place.file(&format!("{seed}.qcow2"));
        fs::write(&path, image).unwrap();
        let config = Config { image: path.clone(), queues: Some(1), ..place.config() };
        if let Ok(disk) = make(&config) {
            served += 1;
            let mut capacity = [0; 8];
            disk.read_config(0, &mut capacity);
            let rig = Builder::new(EngineKind::IoUring).start_device(disk);
            use_it(&rig, u64::from_le_bytes(capacity), &mut dice);
        }
        fs::remove_file(path).unwrap();
    }
    served
}

#[test]
fn e12_a_spoiled_image_fails_requests_and_nothing_else() {
    let shapes = [("cluster_size=64k", 64 << 10), ("cluster_size=4k", 4096), ("cluster_size=512,refcount_bits=1", 512)];
    for (options, cluster) in shapes {
        let served = spoil_and_use(60, options, cluster);
        testkit::cases::count(60);
        // Else the test is of the checks at the start alone.
        assert!(served > 10, "{options}: {served} of 60 served");
    }
}

/// A size that only a table of many entries reaches costs no memory but the table's.
#[test]
fn e12_a_disk_of_2_pib_is_served_without_its_memory() {
    let place = Place::new();
    create(&place.image(), 1 << 51, "cluster_size=2M");
    let rig = place.start(EngineKind::IoUring);
    let last = (1 << 51) / 512 - 8;
    assert_eq!(rig.write(last, &pattern(8 * SECTOR, 3)), OK);
    assert_eq!(rig.read(last, 8).data, pattern(8 * SECTOR, 3));
    assert_eq!(rig.flush(), OK);
}

#[test]
fn a_descriptor_too_few_or_too_many_makes_no_disk() {
    let place = Place::with_image(1 << 20, "");
    for files in [0, 2] {
        let files = (0..files).map(|_| fs::File::open(place.image()).unwrap().into()).collect();
        let config = place.config();
        let error = Disk::make(&config, files, reach::directly::<Disk>(&config)).err().unwrap();
        assert!(error.to_string().contains("instead of 1"), "{error}");
    }
}
