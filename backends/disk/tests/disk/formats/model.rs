//! Requests against an image, a vector, and QEMU's reading of the image.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use virtio_disk::{Access, Cache, Config, EngineKind, Format};

use super::rig::{Place, assert_clean, backing, contents, create, qemu_img, run, serve};
use crate::harness::{IOERR, OK, Rig, SECTOR, kind, pattern, segment};
use crate::on_each_pool;

/// Not a whole number of clusters.
const SECTORS: usize = 1000;
const SIZE: usize = SECTORS * SECTOR;

#[derive(Clone, Debug)]
enum Step {
    Read {
        sector: usize,
        sectors: usize,
    },
    Write {
        sector: usize,
        sectors: usize,
        seed: u8,
    },
    Zero {
        sector: usize,
        sectors: usize,
        unmap: bool,
    },
    Discard {
        sector: usize,
        sectors: usize,
    },
    Flush,
    Reset,
    /// The device goes away, and comes back.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let span = || (0..SECTORS, 1..300_usize).prop_map(|(sector, sectors)| (sector, sectors.min(SECTORS - sector)));
    let step = prop_oneof![
        4 => span().prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        6 => (span(), any::<u8>()).prop_map(|((sector, sectors), seed)| Step::Write { sector, sectors, seed }),
        3 => (span(), any::<bool>()).prop_map(|((sector, sectors), unmap)| Step::Zero { sector, sectors, unmap }),
        3 => span().prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reset),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

fn bytes(sector: usize, sectors: usize) -> std::ops::Range<usize> {
    sector * SECTOR..(sector + sectors) * SECTOR
}

fn take(rig: Rig, model: &mut [u8], step: &Step, reopen: &dyn Fn() -> Rig) -> Rig {
    match *step {
        Step::Read { sector, sectors } => {
            let outcome = rig.read(sector as u64, sectors);
            assert_eq!(outcome.status, OK);
            assert!(outcome.data == model[bytes(sector, sectors)], "{step:?} reads something else");
        }
        Step::Write { sector, sectors, seed } => {
            let data = pattern(sectors * SECTOR, seed);
            assert_eq!(rig.write(sector as u64, &data), OK);
            model[bytes(sector, sectors)].copy_from_slice(&data);
        }
        Step::Zero { sector, sectors, unmap } => {
            let segment = segment(sector as u64, sectors as u32, u32::from(unmap));
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment), OK);
            model[bytes(sector, sectors)].fill(0);
        }
        Step::Discard { sector, sectors } => {
            // Each sector is as it was, or zeroes; never what a backing file or another sector holds.
            rig.put(kind::DISCARD, 0, &segment(sector as u64, sectors as u32, 0));
            for sector in sector..sector + sectors {
                let read = rig.read(sector as u64, 1).data;
                assert!(read == model[bytes(sector, 1)] || read == [0; SECTOR], "discarded sector {sector}");
                model[bytes(sector, 1)].copy_from_slice(&read);
            }
        }
        Step::Flush => assert_eq!(rig.flush(), OK),
        Step::Reset => return rig.reset(),
        Step::Reopen => {
            drop(rig);
            return reopen();
        }
    }
    rig
}

/// Takes random steps on images that `prepare` makes, of which it returns the contents.
fn compare(cases: u32, engine: EngineKind, prepare: impl Fn(&Place) -> (Config, Vec<u8>)) {
    compare_in(Place::new, cases, engine, prepare);
}

fn compare_in(somewhere: fn() -> Place, cases: u32, engine: EngineKind, prepare: impl Fn(&Place) -> (Config, Vec<u8>)) {
    let mut runner = TestRunner::new(Runs { cases, ..Runs::default() });
    let outcome = runner.run(&steps(), |steps| {
        let place = somewhere();
        let (config, mut model) = prepare(&place);
        let open = || serve(&config, engine);
        let mut rig = open();
        for step in &steps {
            rig = take(rig, &mut model, step, &open);
        }
        assert_eq!(rig.hearing.fault(), None);
        assert_eq!(rig.counter("errors"), 0);
        drop(rig);
        assert_clean(&config.image);
        prop_assert!(contents(&config.image) == model, "QEMU reads something else");
        Ok(())
    });
    outcome.unwrap();
}

fn empty(options: &'static str) -> impl Fn(&Place) -> (Config, Vec<u8>) {
    move |place| {
        create(&place.image(), SIZE as u64, options);
        (place.config(), vec![0; SIZE])
    }
}

/// A raw file of a pattern, of `len` bytes.
fn base(place: &Place, len: usize) -> (String, Vec<u8>) {
    let path = place.file("base.raw");
    let contents = pattern(len, 7);
    fs::write(&path, &contents).unwrap();
    (path.to_str().unwrap().to_owned(), contents)
}

fn on_top(of: &Path, format: &str, place: &Place, options: &str) {
    let (below, image) = (of.to_str().unwrap(), place.image());
    let size = SIZE.to_string();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        options,
        "-b",
        below,
        "-F",
        format,
        image.to_str().unwrap(),
        &size,
    ]);
}

on_each_pool! {
    fn an_image_of_any_cluster_size_is_what_was_written_to_it(engine) {
        for options in ["cluster_size=512", "cluster_size=4096", "cluster_size=65536", "cluster_size=2M"] {
            compare(3, engine, empty(options));
        }
    }

    fn an_image_of_version_2_is_what_was_written_to_it(engine) {
        compare(5, engine, empty("compat=0.10,cluster_size=4096"));
    }

    fn an_image_with_any_width_of_refcounts_is_what_was_written_to_it(engine) {
        for options in ["refcount_bits=1,cluster_size=512", "refcount_bits=64,cluster_size=4096"] {
            compare(3, engine, empty(options));
        }
    }

    fn a_preallocated_image_is_what_was_written_to_it(engine) {
        compare(5, engine, empty("preallocation=metadata,cluster_size=4096"));
    }

    fn a_write_through_image_is_what_was_written_to_it(engine) {
        compare(4, engine, |place| {
            let (config, model) = empty("cluster_size=4096")(place);
            (Config { cache: Cache::Writethrough, ..config }, model)
        });
    }

    fn an_image_past_the_page_cache_is_what_was_written_to_it(engine) {
        let place = Place::on_disk();
        std::fs::write(place.image(), [0; SECTOR]).unwrap();
        if virtio_disk::Image::open(&place.image(), Access { read_only: false, direct: true }).is_err() {
            eprintln!("skipped: there is no direct I/O here");
            return;
        }
        compare_in(Place::on_disk, 4, engine, |place| {
            let (config, model) = empty("cluster_size=512")(place);
            (Config { cache: Cache::None, ..config }, model)
        });
    }

    fn a_compressed_image_is_what_was_written_over_it(engine) {
        compare(5, engine, |place| {
            let (raw, model) = base(place, SIZE);
            let image = place.image();
            qemu_img(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", &raw, image.to_str().unwrap()]);
            (place.config(), model)
        });
    }

    fn an_image_over_a_shorter_raw_file_is_what_was_written_over_it(engine) {
        compare(5, engine, |place| {
            let (raw, mut model) = base(place, SIZE / 2 / SECTOR * SECTOR);
            model.resize(SIZE, 0);
            on_top(Path::new(&raw), "raw", place, "cluster_size=4096");
            (Config { backing: vec![backing(Path::new(&raw), Format::Raw)], ..place.config() }, model)
        });
    }

    fn an_image_over_a_chain_is_what_was_written_over_it(engine) {
        compare(5, engine, |place| {
            let (raw, mut model) = base(place, SIZE);
            let middle = place.file("middle.qcow2");
            let name = middle.to_str().unwrap();
            qemu_img(&["create", "-q", "-f", "qcow2", "-b", &raw, "-F", "raw", name]);
            run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 77 65536 131072", name]);
            model[65536..196_608].fill(77);
            on_top(&middle, "qcow2", place, "cluster_size=64k");
            let chain = vec![backing(&middle, Format::Qcow2), backing(Path::new(&raw), Format::Raw)];
            (Config { backing: chain, ..place.config() }, model)
        });
    }
}

on_each_pool! {
    fn beyond_the_end_of_the_disk_there_is_nothing(engine) {
        let place = Place::with_image(SIZE as u64, "");
        let rig = place.start(engine);
        assert_eq!(rig.read(SECTORS as u64, 1).status, IOERR);
        assert_eq!(rig.write(SECTORS as u64 - 1, &pattern(2 * SECTOR, 1)), IOERR);
        rig.assert_alive();
    }

    fn an_internal_snapshot_keeps_what_it_holds(engine) {
        let place = Place::with_image(SIZE as u64, "");
        let image = place.image();
        let name = image.to_str().unwrap();
        let before = pattern(SIZE, 3);
        let rig = place.start(engine);
        assert_eq!(rig.write(0, &before), OK);
        drop(rig);
        qemu_img(&["snapshot", "-c", "before", name]);

        let rig = place.start(engine);
        let after = pattern(300 * SECTOR, 9);
        assert_eq!(rig.write(100, &after), OK);
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(512, 256, 0)), OK);
        assert_eq!(rig.read(100, 300).data, after);
        drop(rig);

        assert_clean(&image);
        qemu_img(&["snapshot", "-a", "before", name]);
        assert!(contents(&image) == before);
    }
}
