//! All layouts of the frames of a chunk, and all edges of the address space, against what is there frame by frame.
#![allow(clippy::cast_possible_truncation, reason = "numbers of frames are small here")]

use std::sync::Arc;

use testkit::cases;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::{
    AnonymousMapping, Budget, CHUNK_SIZE, MapCache, MapError, Mapping, PAGE_SIZE, PageSource, Route, View,
    address::{CHUNK_FRAMES, PAGE_LEN},
    budget::Account,
    chunk::Chunk,
    stats::Counters,
};

/// Memory of a guest which is nothing but some frames from `first` on: bit i of `frames` stands for the i-th. Each begins
/// with its number.
struct Frames {
    first: u64,
    frames: u32,
    /// The most frames that one mapping shows.
    longest: usize,
    memory: Arc<AnonymousMapping>,
}

impl Frames {
    fn new(first: u64, memory: &Arc<AnonymousMapping>) -> Self {
        Self { first, frames: 0, longest: usize::MAX, memory: Arc::clone(memory) }
    }

    fn has(&self, frame: u64) -> bool {
        frame.checked_sub(self.first).is_some_and(|nth| nth < 32 && self.frames >> nth & 1 == 1)
    }
}

/// Memory for frames that lie as they are numbered, so that a mapping of several is a piece of it.
fn memory() -> Arc<AnonymousMapping> {
    let memory = AnonymousMapping::new(64 * PAGE_LEN).unwrap();
    (0..64_u64).for_each(|frame| memory.memory().write_obj(frame, (frame * PAGE_SIZE) as usize).unwrap());
    Arc::new(memory)
}

impl PageSource for Frames {
    fn map(&self, frames: &[u64]) -> Result<Box<dyn Mapping>, MapError> {
        let holes = frames.iter().enumerate().filter(|(_, frame)| !self.has(**frame));
        let holes = holes.fold(0, |mask, (nth, _)| mask | 1 << nth);
        if holes != 0 {
            return Err(MapError::Holes(holes));
        }
        let in_a_row = frames.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count() + 1;
        let len = in_a_row.min(self.longest) * PAGE_LEN;
        let start = (frames[0] - self.first) as usize * PAGE_LEN;
        Ok(Box::new(Piece { memory: Arc::clone(&self.memory), start, len }))
    }
}

struct Piece {
    memory: Arc<AnonymousMapping>,
    start: usize,
    len: usize,
}

impl Mapping for Piece {
    fn memory(&self) -> VolatileSlice<'_> {
        self.memory.memory().subslice(self.start, self.len).unwrap()
    }
}

/// What is around a frame, found by walking from it.
fn neighbours(source: &Frames, frame: u64) -> Option<(u64, u64)> {
    source.has(frame).then_some(())?;
    let first = (0..=frame).rev().take_while(|frame| source.has(*frame)).last()?;
    let last = (frame..CHUNK_FRAMES).take_while(|frame| source.has(*frame)).last()?;
    Some((first, last))
}

#[test]
fn b03_of_every_set_of_frames_that_a_chunk_can_have_each_page_is_found_and_no_other() {
    let memory = memory();
    let account = Account::new(Budget::default());
    for longest in [usize::MAX, 3] {
        cases::each(0..=u32::from(u16::MAX), |frames| {
            let source = Frames { frames, longest, ..Frames::new(0, &memory) };
            let reservation = account.reserve(CHUNK_FRAMES).unwrap();
            let chunk = Chunk::map(&source, 0, 1, reservation, &Counters::default()).unwrap();
            assert_eq!(account.bytes(), u64::from(frames.count_ones()) * PAGE_SIZE);
            for frame in 0..CHUNK_FRAMES {
                let address = frame * PAGE_SIZE + 5;
                let run = chunk.run(address);
                assert_eq!((chunk.covers(address), run.is_some()), (source.has(frame), source.has(frame)));
                let (Some(run), Some((first, last))) = (run, neighbours(&source, frame)) else { continue };
                let start = run.address / PAGE_SIZE;
                let end = start + run.memory.len() as u64 / PAGE_SIZE - 1;
                assert!(first <= start && start <= frame && frame <= end && end <= last);
                assert!(longest != usize::MAX || (start, end) == (first, last), "{start} to {end}");
                let place = ((frame - start) * PAGE_SIZE) as usize;
                assert_eq!(run.memory.read_obj::<u64>(place).unwrap(), frame, "another page in its place");
            }
        });
    }
    assert_eq!(account.bytes(), 0);
}

/// Where an access to eight frames around the end of a chunk may start.
fn starts(first: u64) -> impl Iterator<Item = u64> + Clone {
    let edges = (0..=8).map(move |frame| (first + frame) * PAGE_SIZE);
    edges.flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)])
}

#[test]
fn b03_in_every_layout_of_frames_around_a_chunks_end_an_access_gets_what_is_there_or_nothing() {
    let memory = memory();
    // At the start of the address space, where chunks meet, and at the end of what frames have.
    for first in [0, CHUNK_FRAMES - 4, (1 << 51) - 8] {
        cases::each(0..=u32::from(u8::MAX), |frames| {
            let source = Frames { frames, ..Frames::new(first, &memory) };
            let view = View::new(MapCache::new(Frames { frames, ..Frames::new(first, &memory) }, Budget::default()));
            for (start, len) in starts(first).flat_map(|start| [1, 2, 4096, 4097, 9000].map(|len| (start, len))) {
                let mut got = vec![0xff; len];
                let last = start.checked_add(len as u64 - 1);
                let is_there =
                    last.is_some_and(|last| (start / PAGE_SIZE..=last / PAGE_SIZE).all(|frame| source.has(frame)));
                let read = view.read_slice(&mut got, GuestAddress(start));
                assert_eq!(read.is_ok(), is_there, "{len} bytes at {start:#x}");
                if is_there && start % PAGE_SIZE == 0 {
                    assert_eq!(got[0], (start / PAGE_SIZE - first) as u8);
                }
            }
        });
    }
}

#[test]
fn b02_every_address_at_an_edge_has_one_route_that_leads_back_to_it() {
    let powers = (0..64).map(|bit| 1_u64 << bit);
    let edges = powers.flat_map(|power| [power - 1, power, power + 1, power.wrapping_sub(PAGE_SIZE), power | 0xfff]);
    cases::each(edges.chain([u64::MAX - 4095, u64::MAX]), |address| match Route::of(address) {
        Route::Frame { chunk, offset } => {
            assert!(offset < CHUNK_SIZE && address < 1 << 63);
            assert_eq!(chunk * CHUNK_SIZE + offset, address);
        }
        Route::Grant { reference, offset } => {
            assert!(offset < PAGE_SIZE && address >= 1 << 63);
            assert_eq!((reference * PAGE_SIZE + offset) | 1 << 63, address);
        }
    });
}
