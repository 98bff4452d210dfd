//! A storage that logs what is asked of its engines, and what they have done.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use guest_memory::Buffers;
use virtio_disk::engine::{Done, Engine, Op, Transfer};
use virtio_disk::{EngineKind, Geometry, Image, Storage};

use crate::log::{Change, Log};

/// An image whose engines are the real ones, each behind one that writes down what passes.
///
/// A request is in the log before the engine has it, and its end is in the log before the guest hears of it: what the
/// guest knows when it asks for something stands before that in the log.
pub struct Recorder {
    image: Image,
    log: Arc<Log>,
}

impl Recorder {
    /// Records what is done to `image`, which is all zeroes.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn new(image: Image, log: Log) -> io::Result<Self> {
        log.opened(image.geometry().size)?;
        Ok(Self { image, log: Arc::new(log) })
    }
}

impl Storage for Recorder {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn size(&self) -> io::Result<u64> {
        self.image.size()
    }

    /// No part of the log: the guest that might have waited for it is gone.
    fn flush(&self) -> io::Result<()> {
        self.image.flush()
    }

    fn open_engine(&self, kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>> {
        let engine = self.image.open_engine(kind, depth)?;
        let ids = vec![None; usize::from(depth)];
        Ok(Box::new(RecordingEngine { engine, log: Arc::clone(&self.log), ids }))
    }
}

struct RecordingEngine {
    engine: Box<dyn Engine>,
    log: Arc<Log>,
    /// By tag: what the log knows the operation as.
    ids: Vec<Option<u64>>,
}

impl Engine for RecordingEngine {
    fn submit(&mut self, tag: u16, op: Op) -> io::Result<()> {
        if let Some(what) = change_of(&op)
            && let Some(place) = self.ids.get_mut(usize::from(tag))
        {
            *place = Some(self.log.asked(&what)?);
        }
        self.engine.submit(tag, op)
    }

    fn kick(&mut self) -> io::Result<()> {
        self.engine.kick()
    }

    fn reap(&mut self) -> Option<Done> {
        let mut done = self.engine.reap()?;
        let id = self.ids.get_mut(usize::from(done.tag)).and_then(Option::take);
        if let Some(id) = id
            && done.result.is_ok()
        {
            done.result = self.log.done(id);
        }
        Some(done)
    }

    fn wait(&mut self) -> io::Result<()> {
        self.engine.wait()
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.engine.source()
    }

    fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }
}

/// What of the disk an operation changes; nothing if it is a read.
fn change_of(op: &Op) -> Option<Change> {
    Some(match op {
        Op::Read(_) => return None,
        Op::Write { transfer: Transfer { memory, at, span }, stable } => {
            Change::Write { offset: span.offset, data: contents(memory, *at, span.len), stable: *stable }
        }
        Op::Flush => Change::Flush,
        Op::Discard(span) => Change::Zeroes { offset: span.offset, len: span.len, stable: false },
        Op::WriteZeroes { span, may_unmap: _, stable } => {
            Change::Zeroes { offset: span.offset, len: span.len, stable: *stable }
        }
    })
}

fn contents(memory: &Buffers, at: usize, len: u64) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
    let read = memory.read(at, &mut data);
    data.truncate(read);
    data
}
