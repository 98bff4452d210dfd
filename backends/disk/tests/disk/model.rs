//! Random requests against a disk that is a vector.

use proptest::prelude::prop_assert_eq;
use proptest::test_runner::{Config as Runs, TestRunner};
use testkit::driver::Way;
use virtio_disk::{Cache, EngineKind};

use crate::harness::{Builder, Reach, SECTOR, pattern};
use crate::on_each_engine;
use crate::steps::{steps, take};

const SECTORS: u64 = 64;

fn compare(engine: EngineKind, cache: Cache, reach: Reach) {
    let mut runner = TestRunner::new(Runs { cases: 24, ..Runs::default() });
    let outcome = runner.run(&steps(SECTORS, 1..20_usize, 1..20), |steps| {
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
