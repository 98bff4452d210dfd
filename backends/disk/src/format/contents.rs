//! What an image holds, as its helpers reach it: imago's calls, fenced in.
//!
//! Reads and writes go side by side. Giving clusters back would pull them away from under a write, so it has the image
//! for itself for the moment that it takes.

use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use imago::FormatAccess;
use imago::file::File;

use super::ordered::Ordered;
use crate::engine::Span;
use crate::engine::pool::Blocking;

/// An image and all that is below it.
pub(super) type Access = FormatAccess<Ordered<File>>;

/// Bytes of zeroes written at a time, where there is no other way.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// An image at work.
pub(super) struct Contents {
    name: String,
    /// `None` only while it is dropped.
    access: RwLock<Option<Access>>,
    /// Bytes of the disk.
    size: u64,
    /// In pieces of so many bytes, at such multiples, it can note zeroes; `None` if it cannot.
    zero_unit: Option<u64>,
    /// imago panicked. What it holds in memory may contradict what it wrote; nothing of it is used any more.
    is_broken: AtomicBool,
}

impl Contents {
    pub(super) fn new(name: &str, access: Access, zero_unit: Option<u64>) -> Self {
        let size = access.size();
        let (access, is_broken) = (RwLock::new(Some(access)), AtomicBool::new(false));
        Self { name: name.to_owned(), access, size, zero_unit, is_broken }
    }

    fn shared<T>(&self, call: impl FnOnce(&Access) -> io::Result<T>) -> io::Result<T> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        self.fenced(|| call(access.as_ref().ok_or(io::ErrorKind::NotFound)?))
    }

    fn alone<T>(&self, call: impl FnOnce(&mut Access) -> io::Result<T>) -> io::Result<T> {
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

impl Blocking for Contents {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.shared(|access| access.read(into, offset))
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.shared(|access| access.write(from, offset))
    }

    fn flush(&self) -> io::Result<()> {
        self.shared(|access| {
            access.flush()?;
            access.sync()
        })
    }

    fn discard(&self, span: Span) -> io::Result<()> {
        match self.units(span) {
            Some(Span { offset, len }) => self.alone(|access| access.discard_to_any(offset, len)),
            None => Ok(()),
        }
    }

    fn write_zeroes(&self, span: Span, may_unmap: bool) -> io::Result<()> {
        let Some(units) = self.units(span) else { return self.write_out_zeroes(span) };
        let Span { offset, len } = units;
        if may_unmap {
            self.alone(|access| access.discard_to_zero(offset, len))?;
        } else {
            self.shared(|access| access.write_zeroes(offset, len))?;
        }
        self.write_out_zeroes(Span { offset: span.offset, len: offset - span.offset })?;
        self.write_out_zeroes(Span { offset: offset + len, len: span.offset + span.len - offset - len })
    }
}

impl Drop for Contents {
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
