//! What of granted memory a view has at hand: rings, mapped as long as the view lives, and copies of indirect tables.

use std::sync::Arc;

use vm_memory::{GuestAddress, VolatileSlice};

use crate::{
    Access, AccessError, GrantCopy, MapCache, PAGE_SIZE,
    grants::{GrantedPages, cut, is_grant, pages_of},
    scratch::{Scratch, place},
};

/// Granted memory that can be read by its guest address.
#[derive(Default)]
pub(crate) struct Granted {
    rings: Vec<Ring>,
    tables: Tables,
}

/// A granted area that stays mapped.
struct Ring {
    address: u64,
    len: usize,
    /// Where in the pages it starts.
    offset: usize,
    pages: GrantedPages,
}

/// Granted areas that were copied for a while.
#[derive(Default)]
struct Tables {
    areas: Vec<Area>,
    memory: Option<Scratch>,
}

struct Area {
    address: u64,
    len: usize,
    /// Where in the memory it starts.
    offset: usize,
}

impl Granted {
    /// Keeps the area mapped, readable and writable; one of frames needs no keeping.
    pub(crate) fn keep(&mut self, cache: &MapCache, address: u64, len: usize) -> Result<(), AccessError> {
        let Some((references, offset)) = pages_of(address, len)? else { return Ok(()) };
        let references: Vec<u32> = references.collect();
        let (grants, reservation) = cache.grants(references.len() as u64)?;
        let pages = grants.map(&references, Access::Write, reservation)?;
        self.rings.push(Ring { address, len, offset, pages });
        Ok(())
    }

    /// Copies granted areas from the guest, in one call, in the place of those copied before.
    pub(crate) fn copy(&mut self, cache: &MapCache, areas: &[(GuestAddress, usize)]) -> Result<(), AccessError> {
        self.tables = Tables::default();
        let mut used = 0;
        for &(GuestAddress(address), len) in areas.iter().filter(|(GuestAddress(address), _)| is_grant(*address)) {
            let offset = place(used, len);
            self.tables.areas.push(Area { address, len, offset });
            used = offset + len;
        }
        if used == 0 {
            return Ok(());
        }
        let (grants, reservation) = cache.grants((used as u64).div_ceil(PAGE_SIZE))?;
        let memory = Scratch::new(used, reservation)?;
        let mut copies = Vec::<GrantCopy<'_>>::new();
        for area in &self.tables.areas {
            if let Ok(ours) = memory.memory().subslice(area.offset, area.len) {
                cut(area.address, ours, Access::Read, &mut copies)?;
            }
        }
        Arc::clone(grants).copy(&copies)?;
        drop(copies);
        self.tables.memory = Some(memory);
        Ok(())
    }

    /// The granted memory at `address`, up to `len` bytes of it, if it is at hand.
    #[inline]
    pub(crate) fn find(&self, address: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let ring = self.rings.iter().find_map(|ring| {
            let (at, len) = within(ring.address, ring.len, address, len)?;
            ring.pages.memory().subslice(ring.offset + at, len).ok()
        });
        ring.or_else(|| {
            let memory = self.tables.memory.as_ref()?.memory();
            self.tables.areas.iter().find_map(|area| {
                let (at, len) = within(area.address, area.len, address, len)?;
                memory.subslice(area.offset + at, len).ok()
            })
        })
    }
}

/// Where in an area the address is, and how many of `wanted` bytes are there.
fn within(start: u64, len: usize, address: u64, wanted: usize) -> Option<(usize, usize)> {
    let at = usize::try_from(address.checked_sub(start)?).ok()?;
    let left = len.checked_sub(at).filter(|&left| left > 0)?;
    Some((at, wanted.min(left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_answers_for_its_own_bytes_only() {
        assert_eq!(within(100, 10, 100, 4), Some((0, 4)));
        assert_eq!(within(100, 10, 108, 4), Some((8, 2)));
        assert_eq!(within(100, 10, 110, 4), None);
        assert_eq!(within(100, 10, 99, 4), None);
        assert_eq!(within(u64::MAX - 3, 4, u64::MAX, 9), Some((3, 1)));
    }
}
