//! The file under an image, with its writes in an order that survives a power cut.
//!
//! imago writes tables in the right order: refcounts before what uses their clusters, and nothing that points to a
//! cluster before its data. But between two writes it does not wait for the first to be durable, and a host that loses
//! power may have kept the second alone. So there are two views of the file, one for tables and one for data. A table is
//! written when all before it is durable; data, when all tables before them are. What is durable already is not synced
//! again, and data among themselves have no order.
//!
//! What that costs is spared where nothing can come of it. As long as no cluster was given up since all was durable, none
//! that the medium knows is used for anything else: then data wait for nothing, and no more do blocks of refcounts, which
//! only ever count more.
#![expect(unsafe_code, reason = "imago's trait has unsafe calls, which are handed on with the same promises")]

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

use super::header::Header;
use super::layout::Tables;

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
    layout: OnceLock<Layout>,
    /// A cluster may have been given up, and nobody has seen since that all is durable.
    gave_up: AtomicBool,
    /// One at a time, so that whoever waits finds his own writes durable as well.
    syncing: Mutex<()>,
    /// A sync has failed. The kernel tells so once, so no later one can be believed.
    failed: AtomicBool,
}

/// What is known of where an image's tables are.
struct Layout {
    /// Bytes from the file's start, sorted. Those that come later are not among them.
    refcount_blocks: Vec<u64>,
    /// Bytes that the header's cluster and the L1 table take. Who changes something there may give up another table.
    roots: [Range<u64>; 2],
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
        let (tables, data, layout, syncing, failed) = Default::default();
        // Until the layout is known.
        let gave_up = AtomicBool::new(true);
        let file =
            Arc::new(Shared { inner, persist: Box::new(persist), tables, data, layout, gave_up, syncing, failed });
        (Self { file: Arc::clone(&file), role: Role::Tables }, Self { file, role: Role::Data })
    }

    /// Says where the image's tables are, of which nothing has changed yet.
    pub(super) fn know(&self, header: &Header, tables: &Tables) {
        let mut refcount_blocks = tables.refcount_blocks.clone();
        refcount_blocks.sort_unstable();
        let roots = [0..header.cluster_size, header.l1_offset..header.l1_offset + header.l1_entries * 8];
        // A second image there is not.
        if self.file.layout.set(Layout { refcount_blocks, roots }).is_ok() {
            self.file.gave_up.store(false, SeqCst);
        }
    }

    /// The way to tell of clusters that are given up.
    pub(super) fn order(&self) -> Order<S> {
        Order(Arc::clone(&self.file))
    }

    /// Makes a write at `offset`, behind what has to be durable before it.
    fn in_order(&self, offset: u64, write: impl FnOnce(&S) -> io::Result<()>) -> io::Result<()> {
        let Shared { inner, tables, data, layout, gave_up, .. } = &*self.file;
        let layout = layout.get();
        if self.role == Role::Tables
            && layout.is_some_and(|layout| layout.roots.iter().any(|root| root.contains(&offset)))
        {
            gave_up.store(true, SeqCst);
        }
        let is_strict = gave_up.load(SeqCst);
        let is_refcounts = || layout.is_some_and(|layout| layout.refcount_blocks.binary_search(&offset).is_ok());
        let own = match self.role {
            Role::Tables => {
                if is_strict || !is_refcounts() {
                    self.file.settle(&[tables, data])?;
                }
                tables
            }
            Role::Data => {
                if is_strict {
                    self.file.settle(&[tables])?;
                }
                data
            }
        };
        self.file.check()?;
        let outcome = write(inner);
        // A write that failed may have done a part.
        own.written.fetch_add(1, SeqCst);
        outcome
    }
}

/// Both views of a file, for who knows what is done to the image in it.
pub(super) struct Order<S>(Arc<Shared<S>>);

impl<S: Storage> Order<S> {
    /// The image may give up clusters from here on, which others take.
    pub(super) fn gives_up(&self) {
        self.0.gave_up.store(true, SeqCst);
    }

    /// Nothing is written now, and no table is kept back: makes all durable if clusters were given up.
    ///
    /// # Errors
    /// The medium fails.
    pub(super) fn forget_given_up(&self) -> io::Result<()> {
        let Shared { tables, data, gave_up, layout, .. } = &*self.0;
        if layout.get().is_some() && gave_up.load(SeqCst) {
            self.0.settle(&[tables, data])?;
            gave_up.store(false, SeqCst);
        }
        Ok(())
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
        self.in_order(offset, |inner| unsafe { inner.pure_writev(bufv, offset) })
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as for `pure_writev`.
        self.in_order(offset, |inner| unsafe { inner.pure_write_zeroes(offset, length) })
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as for `pure_writev`.
        self.in_order(offset, |inner| unsafe { inner.pure_write_allocated_zeroes(offset, length) })
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as for `pure_writev`.
        self.in_order(offset, |inner| unsafe { inner.pure_discard(offset, length) })
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
