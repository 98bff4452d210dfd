//! The file under an image, with its writes in an order that survives a power cut.
//!
//! imago writes tables in the right order: refcounts before what uses their clusters, and nothing that points to a
//! cluster before its data. But between two writes it does not wait for the first to be durable, and a host that loses
//! power may have kept the second alone. So there are two views of the file, one for tables and one for data. A table is
//! written when all before it is durable; data, when all tables before them are. What is durable already is not synced
//! again, and data among themselves have no order.
#![expect(unsafe_code, reason = "imago's trait has unsafe calls, which are handed on with the same promises")]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

/// One view of a file.
#[derive(Debug)]
pub(super) struct Ordered<S> {
    file: Arc<Shared<S>>,
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Tables,
    Data,
}

/// Makes all that was written to a file durable.
type Persist = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

struct Shared<S> {
    inner: S,
    persist: Persist,
    tables: Tally,
    data: Tally,
    /// One at a time, so that whoever waits finds his own writes durable as well.
    syncing: Mutex<()>,
    /// A sync has failed. The kernel tells so once, so no later one can be believed.
    failed: AtomicBool,
}

impl<S: fmt::Debug> fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Writes that have ended, and how many of them are known to be durable.
#[derive(Default)]
struct Tally {
    written: AtomicU64,
    durable: AtomicU64,
}

impl Tally {
    fn is_durable(&self) -> bool {
        self.durable.load(SeqCst) >= self.written.load(SeqCst)
    }
}

impl<S: Storage> Shared<S> {
    fn are_durable(&self, tallies: &[&Tally]) -> bool {
        tallies.iter().all(|tally| tally.is_durable())
    }

    /// Waits until what `tallies` count is durable.
    fn settle(&self, tallies: &[&Tally]) -> io::Result<()> {
        if self.are_durable(tallies) {
            return self.check();
        }
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.are_durable(tallies) {
            return self.check();
        }
        self.check()?;
        let (tables, data) = (self.tables.written.load(SeqCst), self.data.written.load(SeqCst));
        (self.persist)().inspect_err(|_| self.failed.store(true, SeqCst))?;
        self.tables.durable.store(tables, SeqCst);
        self.data.durable.store(data, SeqCst);
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(SeqCst) {
            return Err(io::Error::other("An earlier write never reached the medium"));
        }
        Ok(())
    }
}

impl<S: Storage> Ordered<S> {
    /// The view for tables and the one for data. `persist` has to make durable all that was written.
    pub(super) fn pair(inner: S, persist: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> (Self, Self) {
        let (tables, data, syncing, failed) = Default::default();
        let file = Arc::new(Shared { inner, persist: Box::new(persist), tables, data, syncing, failed });
        (Self { file: Arc::clone(&file), role: Role::Tables }, Self { file, role: Role::Data })
    }

    /// Makes a write, behind what has to be durable before it.
    fn in_order(&self, write: impl FnOnce(&S) -> io::Result<()>) -> io::Result<()> {
        let Shared { inner, tables, data, .. } = &*self.file;
        let own = match self.role {
            Role::Tables => {
                self.file.settle(&[tables, data])?;
                tables
            }
            Role::Data => {
                self.file.settle(&[tables])?;
                data
            }
        };
        let outcome = write(inner);
        // A write that failed may have done a part.
        own.written.fetch_add(1, SeqCst);
        outcome
    }
}

impl<S: Storage> fmt::Display for Ordered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.inner)
    }
}

impl<S: Storage> Storage for Ordered<S> {
    fn mem_align(&self) -> usize {
        self.file.inner.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.inner.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.inner.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.inner.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.inner.size()
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: as our caller promises; alignments are those of the inner storage.
        unsafe { self.file.inner.pure_readv(bufv, offset) }
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: as our caller promises; both views share the helper that keeps writes apart.
        self.in_order(|inner| unsafe { inner.pure_writev(bufv, offset) })
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as for `pure_writev`.
        self.in_order(|inner| unsafe { inner.pure_write_zeroes(offset, length) })
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as for `pure_writev`.
        self.in_order(|inner| unsafe { inner.pure_write_allocated_zeroes(offset, length) })
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as for `pure_writev`.
        self.in_order(|inner| unsafe { inner.pure_discard(offset, length) })
    }

    /// There is no buffer here.
    fn flush(&self) -> io::Result<()> {
        self.file.check()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.settle(&[&self.file.tables, &self.file.data])
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: as our caller promises.
        unsafe { self.file.inner.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.inner.get_storage_helper()
    }
}
