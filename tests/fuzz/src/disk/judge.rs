//! Whether a device did what any driver may expect of it, seen from outside: by memory and image before and after a pass.
//!
//! Where a driver has tied its own shoelaces, and has had the device write over rings and tables, less can be expected.

use std::ops::Range;

use virtio_backend::Fault;
use virtio_disk::Plan;

use crate::chain::{Chain, are_tangled, meet, untouched_memory_is_untouched};
use crate::disk::machine::{CAPACITY, SECTOR};
use crate::disk::memory::{AVAILABLE, DATA, DESCRIPTORS, QUEUE, USED, USED_LEN};
use crate::disk::moves::Kind;
use crate::guest::{u16_at, u32_at, u64_at};

/// Statuses (virtio 1.2 §5.2.6).
const OK: u8 = 0;
const UNSUPPORTED: u8 = 2;

/// An honest request: where its parts are, as offsets, and what it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Honest {
    pub(crate) head: u16,
    pub(crate) kind: Kind,
    pub(crate) sector: u64,
    /// Of a discard or write-zeroes.
    pub(crate) sectors: u32,
    pub(crate) data: usize,
    pub(crate) len: usize,
    pub(crate) status: usize,
    pub(crate) flags: u8,
}

/// A pass of the device, and all that is to be seen of it.
pub(crate) struct Pass<'a> {
    /// Memory and image.
    pub(crate) before: (Vec<u8>, Vec<u8>),
    pub(crate) after: (Vec<u8>, Vec<u8>),
    /// The driver's index at the pass before.
    pub(crate) told: u16,
    /// What the chains are, if the driver is honest.
    pub(crate) honest: Option<&'a [Honest]>,
    pub(crate) fault: Option<Fault>,
    pub(crate) plan: &'a Plan,
}

/// An element of the used ring.
struct Used {
    head: u32,
    len: u32,
}

/// Panics if the device did something wrong.
pub(crate) fn judge(pass: &Pass<'_>) {
    match &pass.fault {
        None => {}
        Some(Fault::Guest(_)) => assert!(pass.honest.is_none(), "an honest driver is blamed: {:?}", pass.fault),
        Some(fault) => panic!("nobody but the driver can be at fault: {fault:?}"),
    }
    let chains = pass.chains();
    if !is_tangled(&chains) {
        let writable = chains.iter().flat_map(|chain| chain.writable.iter().cloned());
        let used = std::iter::once(USED..USED + USED_LEN);
        untouched_memory_is_untouched(&pass.before.0, &pass.after.0, used.chain(writable));
        chains_come_back_once(pass, &chains);
    }
    untouched_image_is_untouched(pass, &chains);
    if let Some(requests) = pass.honest {
        requests.iter().for_each(|request| is_answered(pass, request, requests.len() == 1));
    }
}

impl Pass<'_> {
    /// The chains that the driver made available, those of a ring that is overfull among them.
    fn chains(&self) -> Vec<Chain> {
        let memory = &self.before.0;
        let count = u16_at(memory, AVAILABLE + 2).wrapping_sub(self.told).min(QUEUE);
        let heads = (0..count).map(|at| self.told.wrapping_add(at) % QUEUE);
        let table = DESCRIPTORS..DESCRIPTORS + 16 * usize::from(QUEUE);
        let head = |slot: u16| u16_at(memory, AVAILABLE + 4 + 2 * usize::from(slot));
        heads.map(|slot| Chain::walk(memory, table.clone(), head(slot))).collect()
    }

    fn used(&self) -> Vec<Used> {
        let (before, after) = (u16_at(&self.before.0, USED + 2), u16_at(&self.after.0, USED + 2));
        let element = |at: u16| {
            let place = USED + 4 + 8 * usize::from(before.wrapping_add(at) % QUEUE);
            Used { head: u32_at(&self.after.0, place), len: u32_at(&self.after.0, place + 4) }
        };
        let count = after.wrapping_sub(before);
        assert!(count <= QUEUE, "the used index went from {before} to {after}");
        (0..count).map(element).collect()
    }
}

/// The spans of the image, in bytes, that the chain could be about to change.
fn spans(chain: &Chain, memory: &[u8]) -> Vec<Range<u64>> {
    let bytes: Vec<u8> = chain.readable.iter().flat_map(|part| memory[part.clone()].iter().copied()).collect();
    let Some((header, rest)) = bytes.split_at_checked(16) else { return Vec::new() };
    let span = |sector: u64, sectors: u64| {
        let start = sector.saturating_mul(SECTOR as u64);
        start..start.saturating_add(sectors.saturating_mul(SECTOR as u64))
    };
    match u32_at(header, 0) {
        1 => vec![span(u64_at(header, 8), rest.len() as u64 / SECTOR as u64)],
        11 | 13 => rest.chunks_exact(16).map(|part| span(u64_at(part, 0), u32_at(part, 8).into())).collect(),
        _ => Vec::new(),
    }
}

/// The driver has the device write where chains and rings are.
fn is_tangled(chains: &[Chain]) -> bool {
    are_tangled(chains, |part| part.start < DATA)
}

/// The driver has the device write where requests say what they are.
fn is_muddled(chains: &[Chain]) -> bool {
    let readable: Vec<_> = chains.iter().flat_map(|chain| &chain.readable).collect();
    chains.iter().flat_map(|chain| &chain.writable).any(|part| readable.iter().any(|other| meet(other, part)))
}

fn chains_come_back_once(pass: &Pass<'_>, chains: &[Chain]) {
    let mut waiting: Vec<&Chain> = chains.iter().collect();
    for Used { head, len } in pass.used() {
        let Some(place) = waiting.iter().position(|chain| u32::from(chain.head) == head) else {
            panic!("chain {head} comes back and was not given");
        };
        let chain = waiting.remove(place);
        let room = chain.writable_len();
        assert!(len as usize <= room, "chain {head} has room for {room} bytes, and {len} are said to be written");
    }
    let left: Vec<u16> = waiting.iter().map(|chain| chain.head).collect();
    assert!(left.is_empty() || pass.fault.is_some(), "chains {left:?} do not come back");
}

fn untouched_image_is_untouched(pass: &Pass<'_>, chains: &[Chain]) {
    let (before, after) = (&pass.before.1, &pass.after.1);
    assert_eq!(before.len(), after.len(), "the image has another size");
    let spans: Vec<_> = chains.iter().flat_map(|chain| spans(chain, &pass.before.0)).collect();
    let is_open = !pass.plan.read_only && (is_tangled(chains) || is_muddled(chains));
    for (sector, (before, after)) in before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate() {
        let at = (sector * SECTOR) as u64;
        let may_change = !pass.plan.read_only && (is_open || spans.iter().any(|span| span.contains(&at)));
        assert!(may_change || before == after, "sector {sector} of the image was written");
    }
}

/// What an honest request gets (§5.2.6). If it is `alone`, nothing else can have changed what it is about.
fn is_answered(pass: &Pass<'_>, request: &Honest, alone: bool) {
    let Honest { kind, data, len, status, .. } = *request;
    let status = pass.after.0[status];
    let used = pass.used().into_iter().find(|used| used.head == u32::from(request.head));
    let Some(used) = used else { panic!("{request:?} does not come back") };
    assert!(status <= UNSUPPORTED, "{request:?} has status {status:#x}");
    let expected = is_possible(pass.plan, request);
    if let Some(possible) = expected {
        assert_eq!(status == OK, possible, "{request:?} has status {status}");
    }
    let read = &pass.after.0[data..data + len];
    let start = (request.sector as usize).saturating_mul(SECTOR);
    match kind {
        Kind::In | Kind::GetId if status == OK => assert_eq!(used.len as usize, len + 1, "{request:?}"),
        Kind::In | Kind::GetId => assert!(read.iter().all(|byte| *byte == 0xee), "{request:?} failed, and wrote"),
        Kind::Other(kind) if !(0..=13).contains(&kind) => assert_eq!(status, UNSUPPORTED, "{request:?}"),
        _ => {}
    }
    match kind {
        Kind::In if status == OK && alone => assert_eq!(read, &pass.before.1[start..start + len], "{request:?}"),
        Kind::Out if status == OK && alone => assert_eq!(read, &pass.after.1[start..start + len], "{request:?}"),
        Kind::WriteZeroes if status == OK && alone => {
            let zeroed = &pass.after.1[start..start + request.sectors as usize * SECTOR];
            assert!(zeroed.iter().all(|byte| *byte == 0), "{request:?} left something");
        }
        Kind::GetId if status == OK => assert_eq!(read, [0; 20], "the serial is empty"),
        _ => {}
    }
    assert!(status == OK || !alone || pass.before.1 == pass.after.1, "{request:?} failed, and changed the image");
}

/// Whether a request has to succeed or to fail, where the specification says so.
fn is_possible(plan: &Plan, request: &Honest) -> Option<bool> {
    let fits = |sectors: u64| request.sector.checked_add(sectors).is_some_and(|end| end <= CAPACITY);
    let is_transfer = request.len > 0 && request.len.is_multiple_of(SECTOR) && fits((request.len / SECTOR) as u64);
    let is_segment = request.sectors > 0 && fits(request.sectors.into());
    match request.kind {
        Kind::In => Some(is_transfer),
        Kind::Out => Some(is_transfer && !plan.read_only),
        Kind::Flush | Kind::GetId => Some(true),
        Kind::Discard => Some(is_segment && plan.discard && request.flags == 0),
        Kind::WriteZeroes => Some(is_segment && !plan.read_only && request.flags <= 1),
        Kind::Other(_) => None,
    }
}
