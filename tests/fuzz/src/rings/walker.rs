//! Split rings read as virtio 1.2 §2.7 says, with no thought of speed: from a copy of all memory, one chain at a time.

use std::ops::Range;

use super::{AVAILABLE, DESCRIPTORS, MAX_BYTES, MAX_SIZE};
use crate::guest::{BASE, INDIRECT, NEXT, WRITE, descriptor, u16_at};

/// A chain, as offsets.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) head: u16,
    pub(super) readable: Vec<Range<usize>>,
    pub(super) writable: Vec<Range<usize>>,
}

/// What a driver must not do.
pub(super) type Wrong = &'static str;

/// Where the device stands.
pub(super) struct Walker {
    /// The next entry of the available ring.
    next: u16,
    /// The driver's index as it was last read: a device that knows of more does not read it again.
    available: u16,
    size: u16,
    /// Chains that the driver has not seen come back, in the order in which they were taken.
    held: Vec<(u16, Where)>,
    /// The driver has offered again what it has not seen come back: no account can be kept of that.
    pub(super) is_sloppy: bool,
}

/// Where a chain is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// In the hands of the process of the moment.
    Here,
    /// It was in those of another.
    Away,
    /// In the used ring, whose index does not say so.
    Done,
}

impl Walker {
    /// Both sides begin at `start`.
    pub(super) fn new(start: u16, size: u16) -> Self {
        Self { next: start, available: start, size, held: Vec::new(), is_sloppy: false }
    }

    /// Takes the next chain.
    pub(super) fn next(&mut self, memory: &[u8]) -> Result<Option<Found>, Wrong> {
        if let Some((head, place)) = self.held.iter_mut().find(|(_, place)| *place == Where::Away) {
            let found = walk(memory, *head, self.size)?;
            *place = Where::Here;
            return Ok(Some(found));
        }
        if self.next == self.available {
            self.available = u16_at(memory, AVAILABLE + 2);
            if self.available.wrapping_sub(self.next) > self.size {
                return Err("makes more available than there is room for");
            }
        }
        if self.next == self.available {
            return Ok(None);
        }
        let head = u16_at(memory, AVAILABLE + 4 + 2 * usize::from(self.next % self.size));
        let found = walk(memory, head, self.size)?;
        match self.held.iter().find(|(other, _)| *other == head) {
            Some((_, Where::Done)) => self.is_sloppy = true,
            Some(_) => return Err("offers what it has not got back"),
            None => {}
        }
        self.next = self.next.wrapping_add(1);
        self.held.push((head, Where::Here));
        Ok(Some(found))
    }

    /// The one that was taken last is to be taken again.
    pub(super) fn put_back(&mut self, head: u16, is_replay: bool) {
        if is_replay {
            self.put(head, Where::Away);
        } else {
            self.held.pop();
            self.next = self.next.wrapping_sub(1);
        }
    }

    pub(super) fn give_back(&mut self, head: u16) {
        self.put(head, Where::Done);
    }

    pub(super) fn show(&mut self) {
        self.held.retain(|(_, place)| *place != Where::Done);
    }

    /// The process is gone that held them.
    pub(super) fn start_again(&mut self) {
        self.held.iter_mut().for_each(|(_, place)| *place = Where::Away);
        self.available = self.next;
    }

    fn put(&mut self, head: u16, place: Where) {
        let is_it = |(other, before): &&mut (u16, Where)| *other == head && *before == Where::Here;
        if let Some((_, before)) = self.held.iter_mut().find(is_it) {
            *before = place;
        }
    }
}

fn walk(memory: &[u8], head: u16, size: u16) -> Result<Found, Wrong> {
    let mut found = Found { head, readable: Vec::new(), writable: Vec::new() };
    let (mut table, mut entries, mut index) = (DESCRIPTORS, usize::from(size), usize::from(head));
    let (mut steps, mut bytes, mut is_indirect) = (0, 0u64, false);
    loop {
        if index >= entries || steps >= entries {
            return Err("loops, or leaves its table");
        }
        let at = descriptor(memory, table + 16 * index).ok_or("has a table outside of memory")?;
        steps += 1;
        if at.flags & INDIRECT != 0 {
            if is_indirect || at.len % 16 != 0 || at.len / 16 > 0xffff {
                return Err("refers to what is no table");
            }
            table = usize::try_from(at.addr.wrapping_sub(BASE))
                .ok()
                .filter(|start| *start < memory.len())
                .ok_or("has a table outside of memory")?;
            (entries, index, steps, is_indirect) = (at.len as usize / 16, 0, 0, true);
            continue;
        }
        bytes += u64::from(at.len);
        if found.readable.len() + found.writable.len() >= usize::from(MAX_SIZE) || bytes > MAX_BYTES {
            return Err("is longer than it may be");
        }
        let is_writable = at.flags & WRITE != 0;
        if !is_writable && !found.writable.is_empty() {
            return Err("is to be read behind what is to be written");
        }
        let part = part_of(memory, at.addr, at.len)?;
        if is_writable {
            found.writable.push(part)
        } else {
            found.readable.push(part)
        }
        if at.flags & NEXT == 0 {
            return Ok(found);
        }
        index = at.next.into();
    }
}

/// A piece without bytes may be anywhere.
fn part_of(memory: &[u8], addr: u64, len: u32) -> Result<Range<usize>, Wrong> {
    let end = addr.checked_add(len.into()).ok_or("wraps")?;
    if len == 0 {
        return Ok(0..0);
    }
    if addr < BASE || end > BASE + memory.len() as u64 {
        return Err("is outside of memory");
    }
    Ok((addr - BASE) as usize..(end - BASE) as usize)
}
