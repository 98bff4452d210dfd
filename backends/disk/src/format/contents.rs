//! What an image holds, as its helpers reach it: imago's calls, fenced in.
//!
//! Reads and writes go side by side. Giving clusters back would pull them away from under a write, so it has the image
//! for itself for the moment that it takes.
//!
//! A write is done when the kernel has all that leads to its bytes, tables too: then nothing is lost with this process. What
//! overwrites clusters that are there needs no more than itself. Where tables change, they are handed over after the write,
//! for all writes at a time that have come so far. A discard is not handed over: nobody relies on what it leaves.

use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{PoisonError, RwLock};

use imago::{FormatAccess, ShallowMapping, Storage};

use super::ordered::{Order, Ordered};
use crate::engine::Span;
use crate::engine::pool::Blocking;

/// An image and all that is below it.
pub(super) type Access<S> = FormatAccess<Ordered<S>>;

/// What a write does to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// Nothing: its clusters are there.
    None,
    /// They know more clusters.
    Adds,
    /// They know others, and give some up.
    Replaces,
}

/// What writing `len` bytes at `offset` will do.
fn change<S: Storage>(access: &Access<S>, mut offset: u64, mut len: u64) -> io::Result<Change> {
    let mut most = Change::None;
    while len > 0 {
        let (mapping, mapped) = access.get_shallow_mapping(offset, len)?;
        let change = match mapping {
            _ if mapped == 0 => return Ok(Change::Replaces),
            ShallowMapping::Raw { writable: true, .. } => Change::None,
            ShallowMapping::Zero { .. } | ShallowMapping::Indirect { .. } => Change::Adds,
            _ => Change::Replaces,
        };
        most = most.max(change);
        (offset, len) = (offset + mapped, len - mapped);
    }
    Ok(most)
}

/// Bytes of zeroes written at a time, where there is no other way.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An image at work.
pub(super) struct Contents<S: Storage + 'static> {
    name: String,
    /// `None` only while it is dropped.
    access: RwLock<Option<Access<S>>>,
    order: Order<S>,
    /// Bytes of the disk.
    size: u64,
    /// In pieces of so many bytes, at such multiples, it can note zeroes; `None` if it cannot.
    zero_unit: Option<u64>,
    /// Held by who writes; by who hands tables over, for itself alone, as they belong together only then.
    writing: RwLock<()>,
    /// Writes that were to change tables, and how many of them are known to be handed over.
    begun: AtomicU64,
    handed_over: AtomicU64,
    /// imago panicked. What it holds in memory may contradict what it wrote; nothing of it is used any more.
    is_broken: AtomicBool,
}

impl<S: Storage + 'static> Contents<S> {
    pub(super) fn new(name: &str, access: Access<S>, order: Order<S>, zero_unit: Option<u64>) -> Self {
        let size = access.size();
        let access = RwLock::new(Some(access));
        let (writing, begun, handed_over, is_broken) = Default::default();
        Self { name: name.to_owned(), access, order, size, zero_unit, writing, begun, handed_over, is_broken }
    }

    fn shared<T>(&self, call: impl FnOnce(&Access<S>) -> io::Result<T>) -> io::Result<T> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        self.fenced(|| call(access.as_ref().ok_or(io::ErrorKind::NotFound)?))
    }

    fn alone<T>(&self, call: impl FnOnce(&mut Access<S>) -> io::Result<T>) -> io::Result<T> {
        let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
        self.fenced(|| call(access.as_mut().ok_or(io::ErrorKind::NotFound)?))
    }

    fn fenced<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.is_broken.load(Relaxed) {
            return Err(io::Error::other("The image was given up after a bug"));
        }
        fenced(call).inspect_err(|error| {
            if error.get_ref().is_some_and(|inner| inner.is::<Panicked>()) {
                self.is_broken.store(true, Relaxed);
                tracing::error!(name: "disk.format_bug", image = self.name, "A bug was met in an image's code; the image is given up");
            }
        })
    }

    /// Writes by `call`, which does `change` to tables, and hands over what leads to the bytes written.
    fn changing(
        &self,
        change: impl FnOnce(&Access<S>) -> io::Result<Change>,
        call: impl FnOnce(&Access<S>) -> io::Result<()>,
    ) -> io::Result<()> {
        let writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        self.shared(|access| {
            let change = change(access)?;
            if change == Change::Replaces {
                self.order.gives_up();
            }
            if change != Change::None {
                self.begun.fetch_add(1, SeqCst);
            }
            call(access)
        })?;
        drop(writing);
        // Those, too, by whom clusters have come that were there for this write.
        self.hand_over(self.begun.load(SeqCst))
    }

    /// Hands tables to the kernel with all changes of the first `begun` writes.
    fn hand_over(&self, begun: u64) -> io::Result<()> {
        if self.handed_over.load(SeqCst) >= begun {
            return Ok(());
        }
        let _alone = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        if self.handed_over.load(SeqCst) >= begun {
            return Ok(());
        }
        // None is under way.
        let begun = self.begun.load(SeqCst);
        self.shared(|access| {
            access.flush()?;
            self.order.forget_given_up()
        })?;
        self.handed_over.store(begun, SeqCst);
        Ok(())
    }

    fn write_out_zeroes(&self, span: Span) -> io::Result<()> {
        let Span { mut offset, len } = span;
        let end = offset + len;
        while offset < end {
            let piece = usize::try_from(end - offset).map_or(&ZEROES[..], |len| ZEROES.get(..len).unwrap_or(&ZEROES));
            self.write(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// The part of `span` whose zeroes can be noted: whole units, of which the disk's last may be cut short.
    fn units(&self, span: Span) -> Option<Span> {
        let unit = self.zero_unit?;
        let end = span.offset + span.len;
        let start = span.offset.checked_next_multiple_of(unit)?;
        let end = if end == self.size { end } else { end - end % unit };
        (start < end).then(|| Span { offset: start, len: end - start })
    }
}

impl<S: Storage + 'static> Blocking for Contents<S> {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.shared(|access| access.read(into, offset))
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.changing(|access| change(access, offset, from.len() as u64), |access| access.write(from, offset))
    }

    fn flush(&self) -> io::Result<()> {
        // Discards are not counted.
        self.hand_over(self.begun.fetch_add(1, SeqCst) + 1)?;
        self.shared(|access| access.sync())
    }

    fn discard(&self, span: Span) -> io::Result<()> {
        match self.units(span) {
            Some(Span { offset, len }) => {
                let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
                self.order.gives_up();
                self.alone(|access| access.discard_to_any(offset, len))
            }
            None => Ok(()),
        }
    }

    fn write_zeroes(&self, span: Span, may_unmap: bool) -> io::Result<()> {
        let Some(units) = self.units(span) else { return self.write_out_zeroes(span) };
        let Span { offset, len } = units;
        if may_unmap {
            let writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
            self.order.gives_up();
            self.begun.fetch_add(1, SeqCst);
            self.alone(|access| access.discard_to_zero(offset, len))?;
            drop(writing);
            self.hand_over(self.begun.load(SeqCst))?;
        } else {
            self.changing(|_| Ok(Change::Replaces), |access| access.write_zeroes(offset, len))?;
        }
        self.write_out_zeroes(Span { offset: span.offset, len: offset - span.offset })?;
        self.write_out_zeroes(Span { offset: offset + len, len: span.offset + span.len - offset - len })
    }
}

impl<S: Storage + 'static> Drop for Contents<S> {
    fn drop(&mut self) {
        let access = self.access.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.is_broken.load(Relaxed) {
            // It would write what it has in memory.
            mem::forget(access);
        } else if let Err(error) = fenced(|| {
            drop(access);
            Ok(())
        }) {
            tracing::error!(name: "disk.format_bug", image = self.name, %error, "An image was not closed as it should be");
        }
    }
}

/// What became of a call that panicked.
#[derive(Debug, thiserror::Error)]
#[error("A bug was met in the code for the image's format")]
struct Panicked;

/// Makes an error of a panic.
pub(super) fn fenced<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_panic| Err(io::Error::other(Panicked)))
}

#[cfg(test)]
mod tests {
    use imago::file::File;
    use imago::raw::Raw;

    use super::*;

    #[test]
    fn an_image_in_whose_code_a_bug_was_met_is_given_up() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (_, data) = Ordered::pair(File::try_from(file).unwrap(), || Ok(()));
        let order = data.order();
        let contents = Contents::new("disk", Access::new(Raw::open_image(data, true).unwrap()), order, None);
        contents.write(0, &[1; 512]).unwrap();

        let bug = contents.shared(|_access| -> io::Result<()> { panic!("as a bug would") }).unwrap_err();

        assert!(bug.to_string().contains("A bug was met"), "{bug}");
        for outcome in [contents.read(0, &mut [0; 512]), contents.write(0, &[2; 512]), contents.flush()] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("given up after a bug"), "{error}");
        }
    }
}
