//! What a device leaves to the process that follows if its own dies: a piece of memory that outlives it.
//!
//! Whoever may have to start that process keeps the descriptor. All of it is written in place, and in such an order that it
//! is readable and true wherever the writer was stopped: a [`Memo`] is replaced as a whole, a [`Ledger`] changes by single
//! words. The process that reads it believes nothing of it: the one that died may have been its guest's by then.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use guest_memory::{Mapping, SharedMemory};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_memory::Bytes;

use crate::Ledger;

/// "xvrecord", in the first word.
const MAGIC: u64 = u64::from_le_bytes(*b"xvrecord");

/// Bytes of a record; pages that nothing is written to take no memory.
const LEN: usize = 16 << 20;

/// Bytes of one of the two sides of a memo: its length, and what it says.
const SIDE: usize = 32 << 10;

// Where things are.
const VERSION_AT: usize = 8;
const TRANSPORT: usize = 4096;
const DEVICE: usize = TRANSPORT + MEMO;
const LEDGERS: usize = DEVICE + MEMO;

/// Bytes of a memo: a page with the word that says which side counts, and the sides.
const MEMO: usize = 4096 + 2 * SIDE;

/// One device's.
#[derive(Clone)]
pub struct Record {
    memory: Arc<SharedMemory>,
}

/// Why there is no record where one should be.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The kernel refuses memory.
    #[error("Cannot map the record of a device")]
    Io(#[from] io::Error),
    /// Somebody could make it end under whoever reads it, or it is something else.
    #[error("What is said to be the record of a device is none")]
    Foreign,
    /// Another version of this program has written it.
    #[error("The record of a device is of version {0}, and this program knows version {known}", known = Record::VERSION)]
    Version(u64),
}

impl Record {
    /// Changes whenever something in a record changes its place or its meaning.
    pub const VERSION: u64 = 1;

    /// An empty one, for a device that is new.
    ///
    /// # Errors
    /// The host has no memory or no descriptor left.
    pub fn new() -> io::Result<Self> {
        let memory = SharedMemory::new("virtio-record", LEN)?;
        let record = Self { memory: Arc::new(memory) };
        record.store(VERSION_AT, Self::VERSION);
        record.store(0, MAGIC);
        Ok(record)
    }

    /// The record that this descriptor is of.
    ///
    /// # Errors
    /// It is not one, or none that this version can read.
    pub fn of(file: OwnedFd) -> Result<Self, RecordError> {
        let seals = fcntl_get_seals(&file).map_err(|_unsealable| RecordError::Foreign)?;
        let size = fstat(&file).map_err(io::Error::from)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(LEN) {
            return Err(RecordError::Foreign);
        }
        let record = Self { memory: Arc::new(SharedMemory::of(file, 0, LEN)?) };
        match (record.load(0), record.load(VERSION_AT)) {
            (MAGIC, Self::VERSION) => Ok(record),
            (MAGIC, version) => Err(RecordError::Version(version)),
            _ => Err(RecordError::Foreign),
        }
    }

    /// The same once more, by an open file description of its own: what a process locks by one, another can wait for by
    /// the next. Takes the right to open what /proc shows of this process.
    ///
    /// # Errors
    /// The host has no descriptor left, or no /proc.
    pub fn reopen(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.memory.as_fd().as_raw_fd());
        Ok(File::options().read(true).write(true).open(path)?.into())
    }

    /// Where the transport keeps what the driver has set up.
    #[must_use]
    pub fn transport<T>(&self) -> Memo<T> {
        Memo::at(self, TRANSPORT)
    }

    /// Where the device keeps what it alone knows.
    #[must_use]
    pub fn device<T>(&self) -> Memo<T> {
        Memo::at(self, DEVICE)
    }

    /// The ledgers of queues that have at most so many entries, in this order; `None` if there is no room for them.
    #[must_use]
    pub fn ledgers(&self, sizes: &[u16]) -> Option<Vec<Ledger>> {
        let mut at = LEDGERS;
        let ledger = |&size: &u16| {
            let start = at;
            at += Ledger::bytes(size);
            (at <= LEN).then(|| Ledger::new(Arc::clone(&self.memory), start, size))
        };
        sizes.iter().map(ledger).collect()
    }

    fn store(&self, at: usize, word: u64) {
        store(&self.memory, at, word);
    }

    fn load(&self, at: usize) -> u64 {
        load(&self.memory, at)
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// A note in a record, which is replaced as a whole: a writer that dies meanwhile leaves the one before.
pub struct Memo<T> {
    memory: Arc<SharedMemory>,
    at: usize,
    /// Of notes written. Its lowest bit says which side counts; 0: there is none. Guards the sides, too.
    written: Mutex<u64>,
    of: PhantomData<fn(T) -> T>,
}

/// Why a note is not there.
#[derive(Debug, thiserror::Error)]
pub enum MemoError {
    /// It says something else than it should.
    #[error("What is noted of a device makes no sense: {0}")]
    Garbled(#[from] serde_json::Error),
    /// There is no room for it.
    #[error("What is to be noted of a device takes {0} bytes, of at most {room}", room = SIDE - 8)]
    TooLong(usize),
}

impl<T> Memo<T> {
    fn at(record: &Record, at: usize) -> Self {
        let memory = Arc::clone(&record.memory);
        Self { written: Mutex::new(load(&memory, at)), memory, at, of: PhantomData }
    }

    fn side(&self, written: u64) -> usize {
        self.at + 4096 + if written & 1 == 0 { 0 } else { SIDE }
    }

    /// Forgets what is noted.
    pub fn clear(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        *written = 0;
        store(&self.memory, self.at, 0);
    }
}

impl<T: Serialize> Memo<T> {
    /// Notes this instead of what was noted.
    ///
    /// # Errors
    /// It is too long; nothing is noted any more then, as what was is not true.
    pub fn store(&self, value: &T) -> Result<(), MemoError> {
        let text = serde_json::to_vec(value)?;
        if text.len() > SIDE - 8 {
            self.clear();
            return Err(MemoError::TooLong(text.len()));
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        // Never 0 again.
        let next = written.wrapping_add(1).max(1);
        let side = self.side(next);
        store(&self.memory, side, text.len() as u64);
        // Both places are the record's own.
        let _ = self.memory.memory().write_slice(&text, side + 8);
        store(&self.memory, self.at, next);
        *written = next;
        Ok(())
    }
}

impl<T: DeserializeOwned> Memo<T> {
    /// What is noted, if anything is.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn load(&self) -> Result<Option<T>, MemoError> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written == 0 {
            return Ok(None);
        }
        let side = self.side(*written);
        let len = usize::try_from(load(&self.memory, side)).ok().filter(|len| *len <= SIDE - 8);
        let mut text = vec![0; len.ok_or(MemoError::TooLong(usize::MAX))?];
        // The place is the record's own.
        let _ = self.memory.memory().read_slice(&mut text, side + 8);
        Ok(Some(serde_json::from_slice(&text)?))
    }
}

/// A word of a record: an aligned place in it, which nobody can take away.
pub(crate) fn load(memory: &SharedMemory, at: usize) -> u64 {
    memory.memory().load(at, Ordering::Acquire).unwrap_or(0)
}

/// See [`load`]. What was stored before is there whenever this is.
pub(crate) fn store(memory: &SharedMemory, at: usize, word: u64) {
    let _ = memory.memory().store(word, at, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(record: &Record) -> Record {
        Record::of(record.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn a_note_is_what_was_noted_last_and_each_memo_has_its_own() {
        let record = Record::new().unwrap();
        let memo = record.transport::<Vec<u32>>();
        assert_eq!(memo.load().unwrap(), None);
        for round in 0..5 {
            memo.store(&vec![round; 10]).unwrap();
            assert_eq!(followed(&record).transport().load().unwrap(), Some(vec![round; 10]));
        }
        assert_eq!(followed(&record).device::<Vec<u32>>().load().unwrap(), None);
        memo.clear();
        assert_eq!(followed(&record).transport::<Vec<u32>>().load().unwrap(), None);
    }

    #[test]
    fn a_writer_that_dies_leaves_the_note_before() {
        let record = Record::new().unwrap();
        record.device().store(&"first".to_owned()).unwrap();
        // All that a second note changes before the word that makes it count.
        let side = record.device::<String>().side(2);
        store(&record.memory, side, 3);
        record.memory.memory().write_slice(b"\"x\"", side + 8).unwrap();
        assert_eq!(followed(&record).device::<String>().load().unwrap().as_deref(), Some("first"));
    }

    #[test]
    fn what_does_not_fit_leaves_no_note_that_is_not_true() {
        let record = Record::new().unwrap();
        let memo = record.transport();
        memo.store(&"a".to_owned()).unwrap();
        assert!(matches!(memo.store(&"a".repeat(SIDE)), Err(MemoError::TooLong(_))));
        assert_eq!(memo.load().unwrap(), None);
    }

    #[test]
    fn a_note_that_makes_no_sense_is_an_error_and_nothing_else() {
        let record = Record::new().unwrap();
        record.transport().store(&"text").unwrap();
        assert!(matches!(followed(&record).transport::<u32>().load(), Err(MemoError::Garbled(_))));
        for len in [u64::MAX, SIDE as u64, 1 << 40] {
            store(&record.memory, record.transport::<u32>().side(1), len);
            assert!(matches!(followed(&record).transport::<String>().load(), Err(MemoError::TooLong(_))));
        }
    }

    #[test]
    fn what_is_no_record_or_of_another_version_is_refused() {
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert!(matches!(Record::of(pipe), Err(RecordError::Foreign)));
        let short = SharedMemory::new("short", 4096).unwrap();
        assert!(matches!(Record::of(short.as_fd().try_clone_to_owned().unwrap()), Err(RecordError::Foreign)));
        let blank = SharedMemory::new("blank", LEN).unwrap();
        assert!(matches!(Record::of(blank.as_fd().try_clone_to_owned().unwrap()), Err(RecordError::Foreign)));
        let record = Record::new().unwrap();
        record.store(VERSION_AT, Record::VERSION + 1);
        let refused = Record::of(record.as_fd().try_clone_to_owned().unwrap());
        assert!(matches!(refused, Err(RecordError::Version(version)) if version == Record::VERSION + 1));
    }

    #[test]
    fn a_record_that_is_opened_anew_is_the_same_with_locks_of_its_own() {
        use rustix::fs::{FlockOperation, flock};
        let record = Record::new().unwrap();
        let other = Record::of(record.reopen().unwrap()).unwrap();
        record.device().store(&7u32).unwrap();
        assert_eq!(other.device::<u32>().load().unwrap(), Some(7));
        flock(&record, FlockOperation::NonBlockingLockExclusive).unwrap();
        let is_locked = || flock(&other, FlockOperation::NonBlockingLockExclusive).is_err();
        assert!(is_locked());
        drop(record);
        assert!(!is_locked());
    }

    #[test]
    fn there_is_room_for_the_queues_of_any_device_and_no_more_is_given_than_there_is() {
        let record = Record::new().unwrap();
        assert_eq!(record.ledgers(&[1024; 65]).unwrap().len(), 65);
        assert!(record.ledgers(&[32768; 64]).is_none());
    }
}
