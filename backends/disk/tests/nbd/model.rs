//! Random requests against a disk that is a vector, on every way in which a server can answer them.

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use virtio_disk::{Cache, Config};

use crate::disk::{config, rig};
use crate::harness::{IOERR, OK, Rig, SECTOR, kind, pattern, segment};
use crate::played::{CAPABLE, Export, FUA, Played, WRITE_ZEROES};
use crate::servers::Server;

const SECTORS: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    Read { sector: u64, sectors: usize },
    Write { sector: u64, sectors: usize, seed: u8 },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Flush,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // A little beyond the end, too, and now and then more than a socket takes at once.
    let (sector, sectors) = (0..SECTORS + 2, prop_oneof![8 => 1..64_usize, 1 => 512..1024_usize]);
    let step = prop_oneof![
        4 => (sector.clone(), sectors.clone()).prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        4 => (sector.clone(), sectors, any::<u8>())
            .prop_map(|(sector, sectors, seed)| Step::Write { sector, sectors, seed }),
        2 => (sector, 1..200_u32, any::<bool>())
            .prop_map(|(sector, sectors, unmap)| Step::Zero { sector, sectors, unmap }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..24)
}

/// The part of the model that a step is about, if it is a part of it.
fn part(model: &mut [u8], sector: u64, sectors: usize) -> Option<&mut [u8]> {
    let start = sector as usize * SECTOR;
    model.get_mut(start..start + sectors * SECTOR)
}

fn take(rig: Rig, model: &mut [u8], step: &Step) -> Rig {
    match *step {
        Step::Read { sector, sectors } => {
            let outcome = rig.read(sector, sectors);
            match part(model, sector, sectors) {
                Some(expected) => assert!((outcome.status, &outcome.data[..]) == (OK, &*expected), "{step:?}"),
                None => assert_eq!(outcome.status, IOERR),
            }
        }
        Step::Write { sector, sectors, seed } => {
            let data = pattern(sectors * SECTOR, seed);
            let status = rig.write(sector, &data);
            let place = part(model, sector, sectors);
            assert_eq!(status, if place.is_some() { OK } else { IOERR });
            if let Some(place) = place {
                place.copy_from_slice(&data);
            }
        }
        Step::Zero { sector, sectors, unmap } => {
            let status = rig.put(kind::WRITE_ZEROES, 0, &segment(sector, sectors, u32::from(unmap)));
            let place = part(model, sector, sectors as usize);
            assert_eq!(status, if place.is_some() { OK } else { IOERR });
            if let Some(place) = place {
                place.fill(0);
            }
        }
        Step::Flush => assert_eq!(rig.flush(), OK),
        Step::Reset => return rig.reset(),
    }
    rig
}

/// Takes random steps; `start` gives the disk's address, whose contents are the pattern with seed 7, and what keeps it.
fn compare<T>(cache: Cache, start: impl Fn() -> Option<(String, T)>) {
    let mut runner = TestRunner::new(Runs { cases: 24, ..Runs::default() });
    let outcome = runner.run(&steps(), |steps| {
        let Some((image, _server)) = start() else { return Ok(()) };
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
        Some((server.image(), server))
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
        let server = Server::nbdkit(&["file", path.to_str().unwrap()])?;
        Some((server.image(""), server))
    });
}

#[test]
fn with_qemu_nbd() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    compare(Cache::Writethrough, || {
        std::fs::write(&path, pattern(SECTORS as usize * SECTOR, 7)).unwrap();
        let server = Server::qemu_nbd(&["--format=raw", path.to_str().unwrap()])?;
        Some((server.image("web"), server))
    });
}
