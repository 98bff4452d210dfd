//! Rows E08 to E10 and §5.2.6.2: when a write counts as done, told by what reaches the engine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use virtio_disk::engine::{Done, Engine, Op};
use virtio_disk::{Cache, Disk, EngineKind, Geometry, Image, Storage};

use crate::harness::{Builder, F_FLUSH, IOERR, OK, Rig, SECTOR, kind, pattern, segment};
use crate::on_each_engine;

/// What the engines of a disk were asked, and which flushes they are to fail.
#[derive(Default)]
struct Script {
    asked: Mutex<Vec<&'static str>>,
    failing_flushes: Mutex<u32>,
}

/// An engine that writes down what it is asked, and fails as a script says.
struct Scripted {
    engine: Box<dyn Engine>,
    script: Arc<Script>,
    failed: Vec<u16>,
}

impl Engine for Scripted {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        self.script.asked.lock().unwrap().push(match op {
            Op::Read(_) => "read",
            Op::Write { stable: false, .. } => "write",
            Op::Write { stable: true, .. } => "stable write",
            Op::Flush => "flush",
            Op::Discard(_) => "discard",
            Op::WriteZeroes { stable: false, .. } => "zeroes",
            Op::WriteZeroes { stable: true, .. } => "stable zeroes",
        });
        let mut failing = self.script.failing_flushes.lock().unwrap();
        if matches!(op, Op::Flush) && *failing > 0 {
            *failing -= 1;
            self.failed.push(tag);
            return Ok(());
        }
        self.engine.submit(tag, op)
    }

    fn kick(&mut self) -> io::Result<()> {
        self.engine.kick()
    }

    fn reap(&mut self) -> Option<Done> {
        let failed = self.failed.pop().map(|tag| Done {
            tag,
            memory: guest_memory::Buffers::new(),
            result: Err(io::Error::from_raw_os_error(libc::EIO)),
        });
        failed.or_else(|| self.engine.reap())
    }

    fn wait(&mut self) -> io::Result<()> {
        self.engine.wait()
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.engine.source()
    }

    fn in_flight(&self) -> usize {
        self.engine.in_flight() + self.failed.len()
    }
}

/// A storage whose engines follow a script.
struct ScriptedImage {
    image: Image,
    script: Arc<Script>,
}

impl Storage for ScriptedImage {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn size(&self) -> io::Result<u64> {
        self.image.size()
    }

    fn flush(&self) -> io::Result<()> {
        self.image.flush()
    }

    fn open_engine(&self, kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>> {
        let engine = self.image.open_engine(kind, depth)?;
        Ok(Box::new(Scripted { engine, script: Arc::clone(&self.script), failed: Vec::new() }))
    }
}

fn scripted(builder: Builder) -> (Rig, Arc<Script>) {
    let script = Arc::new(Script::default());
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let image = Image::open(&builder.path(), builder.config.access()).unwrap();
    let image = ScriptedImage { image, script: Arc::clone(&script) };
    let disk = Disk::new(&builder.config, image).unwrap();
    (builder.start_device(Arc::new(disk)), script)
}

/// What the engine is asked for a write, a write-zeroes and a flush.
fn asked_with(engine: EngineKind, cache: Cache, features: u64) -> Vec<&'static str> {
    let builder = Builder::new(engine).config(|config| config.cache = cache).features(features);
    let (rig, script) = scripted(builder);
    assert_eq!(rig.write(0, &[7; SECTOR]), OK);
    assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(1, 1, 0)), OK);
    assert_eq!(rig.flush(), OK);
    assert_eq!(rig.on_disk()[..SECTOR], [7; SECTOR]);
    assert_eq!(rig.on_disk()[SECTOR..2 * SECTOR], [0; SECTOR]);
    let asked = script.asked.lock().unwrap();
    asked.clone()
}

const CACHED: [&str; 3] = ["write", "zeroes", "flush"];
const STABLE: [&str; 3] = ["stable write", "stable zeroes", "flush"];

on_each_engine! {
    fn e09_with_writeback_a_write_is_durable_when_it_is_flushed(engine) {
        assert_eq!(asked_with(engine, Cache::Writeback, F_FLUSH), CACHED);
    }

    fn e09_with_writethrough_every_write_is_durable_by_itself(engine) {
        assert_eq!(asked_with(engine, Cache::Writethrough, 0), STABLE);
    }

    fn e09_a_driver_that_knows_no_flush_gets_durable_writes(engine) {
        assert_eq!(asked_with(engine, Cache::Writeback, 0), STABLE);
    }

    fn e10_the_cache_mode_cannot_be_toggled_by_the_driver(engine) {
        let (rig, script) = scripted(Builder::new(engine).config(|config| config.cache = Cache::Writethrough));
        rig.disk.write_config(32, &[1]);
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);
        rig.disk.write_config(32, &[0]);
        let mut writeback = [9];
        rig.disk.read_config(32, &mut writeback);
        assert_eq!((writeback, &script.asked.lock().unwrap()[..]), ([0], &["stable write"][..]));
    }

    fn e08_after_a_failed_flush_none_succeeds_until_the_reset(engine) {
        let (rig, script) = scripted(Builder::new(engine));
        *script.failing_flushes.lock().unwrap() = 1;
        assert_eq!(rig.write(0, &[7; SECTOR]), OK);

        assert_eq!(rig.flush(), IOERR);

        // The kernel would say that all is well: it has told of the failure once.
        assert_eq!(rig.flush(), IOERR);
        assert_eq!(rig.write(1, &[8; SECTOR]), OK);
        assert_eq!(rig.flush(), IOERR);
        assert_eq!((rig.counter("errors"), rig.counter("host_failures")), (3, 1));
        assert_eq!(rig.read(0, 1).status, OK);

        let rig = rig.reset();
        assert_eq!(rig.flush(), OK);
    }

    fn e08_a_failed_flush_concerns_all_queues_until_all_are_reset(engine) {
        let (mut first, script) = scripted(Builder::new(engine).config(|config| config.queues = Some(2)));
        let mut second = Builder::new(engine).lane(1).start_device(Arc::clone(&first.disk));
        *script.failing_flushes.lock().unwrap() = 1;

        assert_eq!((first.flush(), second.flush()), (IOERR, IOERR));

        first.stop();
        second.stop();
        assert_eq!((first.reset().flush(), second.reset().flush()), (OK, OK));
    }

    fn zeroes_on_a_read_of_what_was_never_written(engine) {
        let builder = Builder::new(engine).contents(Vec::new());
        std::fs::File::create(builder.path()).unwrap().set_len(1 << 20).unwrap();
        let image = Image::open(&builder.path(), builder.config.access()).unwrap();
        let rig = builder.start_over(image);
        assert_eq!(rig.read(100, 4).data, [0; 4 * SECTOR]);
        assert_eq!(rig.write(2047, &pattern(SECTOR, 3)), OK);
        assert_eq!(rig.on_disk()[2047 * SECTOR..], pattern(SECTOR, 3));
    }
}
