//! Random requests against a disk that is a vector, on every way in which a server can answer them.

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use virtio_disk::{Cache, Config};

use crate::disk::{config, rig};
use crate::harness::{SECTOR, pattern};
use crate::played::{CAPABLE, Export, FUA, Played, WRITE_ZEROES};
use crate::servers::Server;
use crate::steps::{Step, take};

const SECTORS: u64 = 2048;

/// Now and then more than a socket takes at once.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    crate::steps::steps(SECTORS, prop_oneof![8 => 1..64_usize, 1 => 512..1024_usize], 1..200)
}

/// Takes random steps; `start` gives the disk's address, whose contents are the pattern with seed 7, and what keeps it.
fn compare<T>(cache: Cache, start: impl Fn() -> (String, T)) {
    let mut runner = TestRunner::new(Runs { cases: 24, ..Runs::default() });
    let outcome = runner.run(&steps(), |steps| {
        let (image, _server) = start();
        let mut model = pattern(SECTORS as usize * SECTOR, 7);
        let mut rig = rig(&Config { cache, ..config(&image) });
        for step in &steps {
            rig = take(rig, &mut model, step);
        }
        let whole = crate::disk::read_large(&rig, 0, model.len());
        prop_assert!(whole == model);
        prop_assert_eq!(rig.hearing.fault(), None);
        prop_assert_eq!(rig.counter("nbd_losses"), 0);
        Ok(())
    });
    outcome.unwrap();
}

fn compare_with(cache: Cache, export: Export) {
    compare(cache, || {
        let server = Played::honest(export);
        (server.image(), server)
    });
}

#[test]
fn with_structured_replies() {
    compare_with(Cache::Writeback, Export::default());
}

#[test]
fn with_simple_replies_and_little_data_at_once() {
    compare_with(Cache::Writeback, Export { structured: false, blocks: Some([1, 512, 4096]), ..Export::default() });
}

#[test]
fn with_writes_made_durable_by_flushes_and_zeroes_written() {
    let export =
        Export { flags: CAPABLE & !FUA & !WRITE_ZEROES, blocks: Some([512, 4096, 70_000]), ..Export::default() };
    compare_with(Cache::Writethrough, export);
}

#[test]
fn with_nbdkit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    compare(Cache::Writeback, || {
        std::fs::write(&path, pattern(SECTORS as usize * SECTOR, 7)).unwrap();
        let server = Server::nbdkit(&["file", path.to_str().unwrap()]);
        (server.image(""), server)
    });
}

#[test]
fn with_qemu_nbd() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    compare(Cache::Writethrough, || {
        std::fs::write(&path, pattern(SECTORS as usize * SECTOR, 7)).unwrap();
        let server = Server::qemu_nbd(&["--format=raw", path.to_str().unwrap()]);
        (server.image("web"), server)
    });
}
