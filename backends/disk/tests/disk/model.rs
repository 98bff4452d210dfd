//! Random requests against a disk that is a vector.

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use testkit::driver::Way;
use virtio_disk::{Cache, EngineKind};

use crate::harness::{Builder, IOERR, OK, Reach, Rig, SECTOR, kind, pattern, segment};
use crate::on_each_engine;

const SECTORS: u64 = 64;

#[derive(Clone, Debug)]
enum Step {
    Read { sector: u64, sectors: usize },
    Write { sector: u64, sectors: usize, seed: u8 },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Flush,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // A little beyond the end, too.
    let (sector, sectors) = (0..SECTORS + 2, 1..20_usize);
    let step = prop_oneof![
        4 => (sector.clone(), sectors.clone()).prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        4 => (sector.clone(), sectors, any::<u8>())
            .prop_map(|(sector, sectors, seed)| Step::Write { sector, sectors, seed }),
        2 => (sector, 1..20_u32, any::<bool>())
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

fn take(mut rig: Rig, model: &mut [u8], step: &Step) -> Rig {
    match *step {
        Step::Read { sector, sectors } => {
            let outcome = rig.read(sector, sectors);
            match part(model, sector, sectors) {
                Some(expected) => assert_eq!((outcome.status, &outcome.data[..]), (OK, &*expected)),
                None => assert_eq!(outcome.status, IOERR),
            }
        }
        Step::Write { sector, sectors, seed } => {
            let data = pattern(sectors * SECTOR, seed);
            let status = rig.write(sector, &data);
            match part(model, sector, sectors) {
                Some(place) => place.copy_from_slice(&data),
                None => return check(rig, status, IOERR),
            }
            rig = check(rig, status, OK);
        }
        Step::Zero { sector, sectors, unmap } => {
            let status = rig.put(kind::WRITE_ZEROES, 0, &segment(sector, sectors, u32::from(unmap)));
            match part(model, sector, sectors as usize) {
                Some(place) => place.fill(0),
                None => return check(rig, status, IOERR),
            }
            rig = check(rig, status, OK);
        }
        Step::Flush => assert_eq!(rig.flush(), OK),
        Step::Reset => rig = rig.reset(),
    }
    rig
}

fn check(rig: Rig, status: u8, expected: u8) -> Rig {
    assert_eq!(status, expected);
    rig
}

fn compare(engine: EngineKind, cache: Cache, reach: Reach) {
    let mut runner = TestRunner::new(Runs { cases: 24, ..Runs::default() });
    let outcome = runner.run(&steps(), |steps| {
        let mut model = pattern(SECTORS as usize * SECTOR, 1);
        let builder = Builder::new(engine).contents(model.clone()).config(|config| config.cache = cache);
        let mut rig = builder.reach(reach).start();
        for step in &steps {
            rig = take(rig, &mut model, step);
        }
        prop_assert_eq!(rig.on_disk(), model);
        prop_assert_eq!(rig.hearing.fault(), None);
        Ok(())
    });
    outcome.unwrap();
}

on_each_engine! {
    fn a_cached_disk_is_what_was_written_to_it(engine) {
        compare(engine, Cache::Writeback, Reach::By(Way::Frames));
    }

    fn a_write_through_disk_is_what_was_written_to_it(engine) {
        compare(engine, Cache::Writethrough, Reach::By(Way::Frames));
    }

    fn a_disk_whose_guest_grants_its_memory_is_what_was_written_to_it(engine) {
        [Way::Grants, Way::Mixed].into_iter().for_each(|way| compare(engine, Cache::Writeback, Reach::By(way)));
    }
}
