//! Whose turn it is with an image that is written past the host's cache.
//!
//! A process that is killed leaves what it has begun by io_uring with O_DIRECT: the kernel ends that some time later. A
//! write of it could so reach the medium behind one that the process which follows has been told is done, and undo it.
//! (Everything else ends before the process does: system calls, and what io_uring gives to threads of its own.)
//!
//! So each process locks the disk's record, of which it was given an open file description of its own, and its rings have that
//! among their files. The kernel
//! lets go of a ring's files when nothing of that ring is in flight any more. Who has the lock is alone.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use virtio_backend::Record;

/// That of one disk, in one process. Others wait for it that have another open file description of the record.
#[derive(Default)]
pub(crate) struct Turn {
    record: OnceLock<Record>,
    taken: Mutex<Option<Arc<File>>>,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}

impl Turn {
    /// There may have been a process before this one: it had the same record.
    pub(crate) fn follow(&self, record: &Record) {
        // A second record there is not.
        let _ = self.record.set(record.clone());
    }

    /// Waits until nothing of a former process is in flight, as long as that takes: the storage answers, or it does not.
    /// Gives what says so to the next one as long as anybody has it; nothing, where nobody can follow.
    ///
    /// # Errors
    /// The host does not give a descriptor.
    pub(crate) fn take(&self, image: &str) -> io::Result<Option<Arc<File>>> {
        let Some(record) = self.record.get() else { return Ok(None) };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.is_none() {
            *taken = Some(Arc::new(lock(record, image)?));
        }
        Ok(taken.clone())
    }
}

fn lock(record: &Record, image: &str) -> io::Result<File> {
    let file = File::from(record.as_fd().try_clone_to_owned()?);
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {}
        outcome => return outcome.map(|()| file).map_err(io::Error::from),
    }
    tracing::info!(name: "disk.waits", image, "Waiting for the storage to end what a former process has begun");
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::engine::{Target, Uring};

    /// That of a process that is given the record.
    fn turn(record: &Record) -> Turn {
        let turn = Turn::default();
        turn.follow(&Record::of(record.reopen().unwrap()).unwrap());
        turn
    }

    fn is_free(record: &Record) -> bool {
        flock(record.reopen().unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    #[test]
    fn without_a_record_there_is_nobody_to_wait_for() {
        assert!(Turn::default().take("disk").unwrap().is_none());
    }

    #[test]
    fn lanes_of_a_process_share_its_turn_and_who_follows_waits_for_the_last_of_them() {
        let record = Record::new().unwrap();
        let former = turn(&record);
        let lanes = [former.take("disk").unwrap(), former.take("disk").unwrap()];
        drop(former);
        let (says, said) = mpsc::channel();
        let follower = thread::spawn({
            let turn = turn(&record);
            move || {
                says.send(()).unwrap();
                turn.take("disk").unwrap()
            }
        });
        said.recv().unwrap();
        let [first, last] = lanes;
        drop(first);
        assert!(!is_free(&record) && !follower.is_finished());
        drop(last);
        assert!(follower.join().unwrap().is_some());
    }

    #[test]
    fn a_ring_has_the_turn_of_its_process_when_nobody_else_has() {
        let record = Record::new().unwrap();
        let target = Target {
            file: Arc::new(File::open("/dev/null").unwrap()),
            is_block_device: false,
            direct_alignment: None,
            turn: turn(&record).take("disk").unwrap(),
        };
        let Ok(engine) = Uring::new(target.clone(), 1) else { return };
        // All but what the kernel has.
        drop(target);
        let engine = engine.without_turn();
        assert!(!is_free(&record));
        drop(engine);
        while !is_free(&record) {
            thread::yield_now();
        }
    }
}
