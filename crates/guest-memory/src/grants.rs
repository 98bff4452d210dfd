//! Granted pages, as a cache reaches them: mapped for as long as someone needs them, or copied. Nothing is kept for the
//! next time, as a driver grants anew for each request, and is told that its device is broken if it finds a page in use
//! that it wants back.

use std::{io, sync::Arc};

use vm_memory::VolatileSlice;

use crate::{
    Access, AccessError, GrantCopy, GrantError, GrantSource, Mapping, PAGE_SIZE, Route,
    address::PAGE_LEN,
    budget::Reservation,
    stats::{Counter, Counters},
};

/// The way to granted pages, and what goes over it.
pub(crate) struct Grants {
    source: Box<dyn GrantSource>,
    counters: Arc<Counters>,
}

/// Granted pages that are mapped until this is dropped.
pub(crate) struct GrantedPages {
    mapping: Box<dyn Mapping>,
    grants: Arc<Grants>,
    /// Declared last, hence dropped last: the budget has the pages back once they are unmapped.
    _reservation: Reservation,
}

impl Grants {
    pub(crate) fn new(source: Box<dyn GrantSource>, counters: Arc<Counters>) -> Self {
        Self { source, counters }
    }

    /// Maps the pages; `reservation` is theirs.
    pub(crate) fn map(
        self: &Arc<Self>,
        references: &[u32],
        access: Access,
        reservation: Reservation,
    ) -> Result<GrantedPages, AccessError> {
        let mapping = self.source.map(references, access).map_err(|error| self.explain(error))?;
        self.counters.add(Counter::GrantMaps, 1);
        self.counters.add(Counter::GrantsMapped, references.len() as u64);
        if mapping.memory().len() != references.len() * PAGE_LEN {
            let error = io::Error::other("The grant source did not map what it was asked to");
            return Err(AccessError::Host(Arc::new(error)));
        }
        Ok(GrantedPages { mapping, grants: Arc::clone(self), _reservation: reservation })
    }

    /// Copies all pieces in one call.
    pub(crate) fn copy(&self, pieces: &[GrantCopy<'_>]) -> Result<(), AccessError> {
        if pieces.is_empty() {
            return Ok(());
        }
        self.counters.add(Counter::GrantCopies, 1);
        self.source.copy(pieces).map_err(|error| self.explain(error))?;
        self.counters.add(Counter::GrantBytesCopied, pieces.iter().map(|piece| piece.ours.len() as u64).sum());
        Ok(())
    }

    fn explain(&self, error: GrantError) -> AccessError {
        match error {
            GrantError::Refused { reference } => {
                self.counters.add(Counter::GrantsRefused, 1);
                AccessError::Refused { reference: reference.into() }
            }
            GrantError::Busy => {
                self.counters.add(Counter::Busy, 1);
                AccessError::Busy
            }
            GrantError::Host(error) => AccessError::Host(Arc::new(error)),
        }
    }
}

impl GrantedPages {
    pub(crate) fn memory(&self) -> VolatileSlice<'_> {
        self.mapping.memory()
    }
}

impl Drop for GrantedPages {
    fn drop(&mut self) {
        self.grants.counters.add(Counter::GrantUnmaps, 1);
    }
}

/// Whether `address` names a granted page.
pub(crate) fn is_grant(address: u64) -> bool {
    matches!(Route::of(address), Route::Grant { .. })
}

/// The granted pages that `len` bytes at `address` lie in, and where in the first of them they start. `None`: the address
/// names none.
///
/// # Errors
/// There are no such references.
pub(crate) fn pages_of(
    address: u64,
    len: usize,
) -> Result<Option<(impl ExactSizeIterator<Item = u32>, usize)>, AccessError> {
    let Route::Grant { reference, offset } = Route::of(address) else { return Ok(None) };
    let refused = AccessError::Refused { reference };
    let pages = (offset + len as u64).div_ceil(PAGE_SIZE);
    let Ok(first) = u32::try_from(reference) else { return Err(refused) };
    match u32::try_from(pages).ok().and_then(|pages| first.checked_add(pages)) {
        #[expect(clippy::cast_possible_truncation, reason = "below the size of a page")]
        Some(end) => Ok(Some((first..end, offset as usize))),
        None => Err(refused),
    }
}

/// Cuts a copy between `ours` and what lies at `address`, a granted one, where the guest's pages end.
pub(crate) fn cut<'a>(
    address: u64,
    ours: VolatileSlice<'a>,
    access: Access,
    pieces: &mut Vec<GrantCopy<'a>>,
) -> Result<(), AccessError> {
    let Some((references, mut offset)) = pages_of(address, ours.len())? else { return Ok(()) };
    let mut done = 0;
    for reference in references {
        let len = (PAGE_LEN - offset).min(ours.len() - done);
        let Ok(part) = ours.subslice(done, len) else { break };
        #[expect(clippy::cast_possible_truncation, reason = "below the size of a page")]
        pieces.push(GrantCopy { reference, offset: offset as u16, ours: part, access });
        done += len;
        offset = 0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANT: u64 = 1 << 63;

    fn references(address: u64, len: usize) -> Vec<u32> {
        pages_of(address, len).unwrap().unwrap().0.collect()
    }

    #[test]
    fn a_buffer_lies_in_as_many_granted_pages_as_it_touches() {
        assert_eq!(references(GRANT | 7 << 12, 4096), [7]);
        assert_eq!(references(GRANT | 7 << 12 | 0xfff, 2), [7, 8]);
        assert_eq!(references(GRANT | 7 << 12 | 1, 8192), [7, 8, 9]);
        assert!(pages_of(7 << 12, 1).unwrap().is_none());
    }

    #[test]
    fn b11_references_beyond_the_last_are_refused() {
        let last = GRANT | u64::from(u32::MAX - 1) << 12;
        assert_eq!(references(last, 4096), [u32::MAX - 1]);
        for (address, len) in [(last, 8193), (GRANT | 1 << 44, 1), (u64::MAX, 1), (GRANT, usize::MAX)] {
            assert!(matches!(pages_of(address, len), Err(AccessError::Refused { .. })), "{address:#x} {len}");
        }
    }
}
