//! Requests of pieces that are named by frames and by grants, in any mixture, against what the guest's own CPU sees.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod fixture;

use fixture::{BANK, contents, pattern};
use guest_memory::{Access, AccessError, Budget, Buffers, MapCache, PAGE_SIZE, Sources, View};
use proptest::prelude::*;
use testkit::grants::FakeGrants;
use testkit::memory::FakeForeignMemory;
use vm_memory::GuestAddress;

/// Each piece has so many pages for itself.
const ROOM: u64 = 8 * PAGE_SIZE;

/// What the guest's memory holds before a device writes there.
const UNTOUCHED: u8 = 0xee;

#[derive(Clone, Debug)]
struct Piece {
    is_granted: bool,
    /// From the first byte of its first page.
    offset: u64,
    len: usize,
}

#[derive(Clone, Debug)]
struct Write {
    at: usize,
    len: usize,
    byte: u8,
}

fn piece() -> impl Strategy<Value = Piece> {
    let len = prop_oneof![0..20_usize, 500..530_usize, 4000..4200_usize, 0..24_000_usize];
    (any::<bool>(), 0..PAGE_SIZE, len).prop_map(|(is_granted, offset, len)| Piece { is_granted, offset, len })
}

fn write() -> impl Strategy<Value = Write> {
    let len = prop_oneof![1..20_usize, 1..9000_usize];
    // Zero and `UNTOUCHED` are what memory holds that was not written.
    (0..60_000_usize, len, 1..UNTOUCHED).prop_map(|(at, len, byte)| Write { at, len, byte })
}

struct Guest {
    memory: FakeForeignMemory,
    grants: FakeGrants,
    view: View,
    /// Where the driver has each piece, and where the device finds it.
    places: Vec<(u64, u64)>,
    pieces: Vec<Piece>,
}

impl Guest {
    fn new(pieces: &[Piece], access: Access, copying_up_to: usize) -> Self {
        let memory = FakeForeignMemory::new(&[(BANK, 8 * ROOM)]);
        let grants = FakeGrants::new(memory.clone());
        let cache = MapCache::new(
            Sources::from(memory.clone()).with_grants(grants.clone()).copying_up_to(copying_up_to),
            Budget::default(),
        );
        let place = |(nth, piece): (u64, &Piece)| {
            let address = BANK + nth * ROOM + piece.offset;
            (address, if piece.is_granted { grants.grant(address, piece.len, access) } else { address })
        };
        let places = (0..).zip(pieces).map(place).collect();
        Self { view: View::new(cache), memory, grants, places, pieces: pieces.to_vec() }
    }

    fn pin(&self, access: Access) -> Result<Buffers, AccessError> {
        let pieces = self.places.iter().zip(&self.pieces);
        let pieces: Vec<_> = pieces.map(|(&(_, found), piece)| (GuestAddress(found), piece.len)).collect();
        let mut buffers = Buffers::new();
        self.view.pin(&pieces, access, &mut buffers).map(|()| buffers)
    }

    /// All pieces, as the guest's CPU sees them, one behind the other.
    fn bytes(&self) -> Vec<u8> {
        let piece = |(&(address, _), piece): (&(u64, u64), &Piece)| {
            let mut bytes = vec![0; piece.len];
            self.memory.read(address, &mut bytes);
            bytes
        };
        self.places.iter().zip(&self.pieces).flat_map(piece).collect()
    }

    /// The request is over: the guest takes back what it granted.
    fn finish(&self, buffers: Buffers) {
        drop(buffers);
        for (&(_, granted), piece) in self.places.iter().zip(&self.pieces).filter(|(_, piece)| piece.is_granted) {
            self.grants.end_access(granted, piece.len).unwrap();
        }
        assert_eq!((self.grants.counts().live, self.grants.counts().granted), (0, 0));
    }
}

/// Little, as much as a page, and all of most requests.
fn copying() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(4096), Just(65_536)]
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    prop::collection::vec(piece(), 0..8)
}

proptest! {
    #[test]
    fn a_device_reads_what_the_guest_wrote(pieces in pieces(), copying in copying()) {
        let guest = Guest::new(&pieces, Access::Read, copying);
        let mut sent = pattern(pieces.iter().map(|piece| piece.len).sum());
        for (&(address, _), piece) in guest.places.iter().zip(&pieces) {
            let rest = sent.split_off(piece.len);
            guest.memory.write(address, &sent);
            sent = rest;
        }
        let buffers = guest.pin(Access::Read).unwrap();
        guest.view.copy_in([&buffers]).unwrap();

        prop_assert_eq!(contents(&buffers), guest.bytes());
        let counts = guest.grants.counts();
        prop_assert!(counts.maps <= 1 && counts.copies <= 1, "{:?}", counts);
        guest.finish(buffers);
    }

    #[test]
    fn the_guest_reads_what_a_device_wrote_and_nothing_of_ours(
        pieces in pieces(),
        writes in prop::collection::vec(write(), 0..4),
        written in 0..70_000_usize,
        copying in copying(),
    ) {
        let guest = Guest::new(&pieces, Access::Write, copying);
        guest.memory.write(BANK, &vec![UNTOUCHED; usize::try_from(8 * ROOM).unwrap()]);
        let buffers = guest.pin(Access::Write).unwrap();
        let written = written.min(buffers.len());
        let mut expected = vec![UNTOUCHED; buffers.len()];
        // Behind the last byte that was written.
        let mut end = written;
        for Write { at, len, byte } in writes {
            let done = buffers.fill(at, len, byte);
            prop_assert_eq!(done, buffers.len().saturating_sub(at).min(len));
            expected.iter_mut().skip(at).take(done).for_each(|expected| *expected = byte);
            end = end.max(if done > 0 { at + done } else { 0 });
        }
        guest.view.copy_out([(&buffers, written)]).unwrap();

        for (at, (seen, expected)) in guest.bytes().into_iter().zip(expected).enumerate() {
            // Of what is copied, all that lies between what was written comes along, and was zero.
            let may_be_zero = expected == UNTOUCHED && at < end;
            prop_assert!(seen == expected || may_be_zero && seen == 0, "{at}: {seen:#x}, not {expected:#x}");
        }
        // What lies around the pieces is as it was.
        for (&(address, _), piece) in guest.places.iter().zip(&pieces) {
            for beside in [address.wrapping_sub(1), address + piece.len as u64].into_iter().filter(|at| *at >= BANK) {
                prop_assert_eq!(guest.memory.load::<u8>(beside), UNTOUCHED);
            }
        }
        guest.finish(buffers);
    }
}
