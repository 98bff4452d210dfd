//! A file in memory that remembers what was done to it, and when.
#![expect(unsafe_code, reason = "imago's trait has unsafe calls; memory of the test's own stands behind them")]

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

/// What happened to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Write(usize, Vec<u8>),
    Sync,
}

/// A file in memory that remembers.
#[derive(Default)]
pub(super) struct Reel {
    pub(super) bytes: Vec<u8>,
    pub(super) events: Vec<Event>,
}

impl Reel {
    fn write(&mut self, at: usize, data: &[u8]) {
        apply(&mut self.bytes, at, data);
        self.events.push(Event::Write(at, data.to_vec()));
    }
}

pub(super) fn apply(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

#[derive(Clone, Default)]
pub(super) struct Tape {
    pub(super) reel: Arc<Mutex<Reel>>,
    helper: Arc<CommonStorageHelper>,
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tape")
    }
}

impl fmt::Display for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tape")
    }
}

impl Storage for Tape {
    fn size(&self) -> io::Result<u64> {
        Ok(self.reel.lock().unwrap().bytes.len() as u64)
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let reel = self.reel.lock().unwrap();
        let mut data = vec![0; usize::try_from(bufv.len()).unwrap()];
        let there = reel.bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let len = data.len().min(there.len());
        data[..len].copy_from_slice(&there[..len]);
        bufv.copy_from_slice(&data);
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut data = vec![0; usize::try_from(bufv.len()).unwrap()];
        bufv.copy_into_slice(&mut data);
        self.reel.lock().unwrap().write(usize::try_from(offset).unwrap(), &data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.reel.lock().unwrap().events.push(Event::Sync);
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
