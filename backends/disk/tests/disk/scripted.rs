//! A disk whose host does as a test says: what its engines are asked is written down, and fails or stalls as told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use guest_memory::Buffers;
use virtio_backend::Bell;
use virtio_disk::engine::{Done, Engine, Op};
use virtio_disk::{Disk, EngineKind, Geometry, Image, Storage};

use crate::harness::{Builder, Rig};

/// What the engines of a disk were asked, and what is to become of it.
pub struct Script {
    pub asked: Mutex<Vec<&'static str>>,
    /// What storage says of its size; zero: the truth.
    pub size: AtomicU64,
    /// How often the storage was flushed for good.
    pub closing_flushes: AtomicU64,
    failing: Mutex<Vec<Failure>>,
    is_stalled: Mutex<bool>,
    moves: Condvar,
    bell: Bell,
}

struct Failure {
    what: &'static str,
    errno: i32,
    times: u32,
}

impl Script {
    fn new() -> Self {
        Self {
            asked: Mutex::default(),
            size: AtomicU64::new(0),
            closing_flushes: AtomicU64::new(0),
            failing: Mutex::default(),
            is_stalled: Mutex::new(false),
            moves: Condvar::new(),
            bell: Bell::new().unwrap(),
        }
    }

    pub fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().clone()
    }

    /// The next so many of this kind fail.
    pub fn fail(&self, what: &'static str, errno: i32, times: u32) {
        self.failing.lock().unwrap().push(Failure { what, errno, times });
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        self.failing.lock().unwrap().clear();
    }

    /// What is asked from now on is not begun.
    pub fn stall(&self) {
        *self.is_stalled.lock().unwrap() = true;
    }

    pub fn unstall(&self) {
        *self.is_stalled.lock().unwrap() = false;
        self.moves.notify_all();
        self.bell.ring();
    }

    fn failure(&self, what: &str) -> Option<io::Error> {
        let mut failing = self.failing.lock().unwrap();
        let failure = failing.iter_mut().find(|failure| failure.what == what && failure.times > 0)?;
        failure.times -= 1;
        Some(io::Error::from_raw_os_error(failure.errno))
    }
}

/// An engine that follows a script.
struct Scripted {
    engine: Box<dyn Engine>,
    script: Arc<Script>,
    stalled: Vec<(u16, Op)>,
    failed: Vec<Done>,
}

fn word_for(op: &Op) -> &'static str {
    match op {
        Op::Read(_) => "read",
        Op::Write { stable: false, .. } => "write",
        Op::Write { stable: true, .. } => "stable write",
        Op::Flush => "flush",
        Op::Discard(_) => "discard",
        Op::WriteZeroes { stable: false, .. } => "zeroes",
        Op::WriteZeroes { stable: true, .. } => "stable zeroes",
    }
}

impl Scripted {
    fn begin(&mut self, tag: u16, op: Op) -> io::Result<()> {
        let Some(error) = self.script.failure(word_for(&op)) else { return self.engine.submit(tag, op) };
        let memory = match op {
            Op::Read(transfer) | Op::Write { transfer, .. } => transfer.memory,
            _ => Buffers::new(),
        };
        self.failed.push(Done { tag, memory, result: Err(error) });
        Ok(())
    }

    fn begin_all(&mut self) -> io::Result<()> {
        for (tag, op) in std::mem::take(&mut self.stalled) {
            self.begin(tag, op)?;
        }
        Ok(())
    }
}

impl Engine for Scripted {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        self.script.asked.lock().unwrap().push(word_for(&op));
        self.stalled.push((tag, op));
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        if !*self.script.is_stalled.lock().unwrap() {
            self.begin_all()?;
        }
        self.engine.kick()
    }

    fn reap(&mut self) -> Option<Done> {
        self.failed.pop().or_else(|| self.engine.reap())
    }

    fn wait(&mut self) -> io::Result<()> {
        let script = Arc::clone(&self.script);
        drop(script.moves.wait_while(script.is_stalled.lock().unwrap(), |is_stalled| *is_stalled).unwrap());
        self.begin_all()?;
        if self.failed.is_empty() { self.engine.wait() } else { self.engine.kick() }
    }

    /// That of the script where things stall, which they do on an engine that has none of its own.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.engine.source().or(Some(self.script.bell.as_fd()))
    }

    fn in_flight(&self) -> usize {
        self.engine.in_flight() + self.failed.len() + self.stalled.len()
    }
}

/// A storage whose engines follow a script.
struct ScriptedImage {
    image: Image,
    geometry: Geometry,
    script: Arc<Script>,
}

impl Storage for ScriptedImage {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn size(&self) -> io::Result<u64> {
        match self.script.size.load(SeqCst) {
            0 => self.image.size(),
            size => Ok(size),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.script.closing_flushes.fetch_add(1, SeqCst);
        self.image.flush()
    }

    fn open_engine(&self, kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>> {
        let engine = self.image.open_engine(kind, depth)?;
        Ok(Box::new(Scripted { engine, script: Arc::clone(&self.script), stalled: Vec::new(), failed: Vec::new() }))
    }
}

/// A disk that follows a script.
pub fn disk(builder: &Builder) -> (Disk, Arc<Script>) {
    disk_of(builder, |geometry| geometry)
}

/// The same over a storage with other measures than its image's.
pub fn disk_of(builder: &Builder, measure: impl FnOnce(Geometry) -> Geometry) -> (Disk, Arc<Script>) {
    let script = Arc::new(Script::new());
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let image = Image::open(&builder.path(), builder.config.access()).unwrap();
    let geometry = measure(image.geometry());
    let image = ScriptedImage { image, geometry, script: Arc::clone(&script) };
    (Disk::new(&builder.config, image).unwrap(), script)
}

/// The same at work.
pub fn start(builder: Builder) -> (Rig, Arc<Script>) {
    let (disk, script) = disk(&builder);
    (builder.start_device(Arc::new(disk)), script)
}
