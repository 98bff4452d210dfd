//! Rows E01 to E06 as a table: whatever a driver asks, of any disk, cut into any pieces, gets the answer that the
//! specification has for it, once, and changes nothing else.

use std::fmt;

use testkit::cases;
use testkit::driver::{Descriptor, Way};
use virtio_disk::{Cache, Config, EngineKind};

use crate::harness::{
    Builder, DATA, F_FLUSH, IOERR, OK, Reach, Rig, SECTOR, UNSUPP, UNTOUCHED, kind, pattern, segment,
};

const SECTORS: u64 = 64;
const SECURE_ERASE: u32 = 14;

/// VIRTIO_BLK_F_CONFIG_WCE, DISCARD and WRITE_ZEROES.
const F_OTHERS: u64 = 1 << 11 | 1 << 13 | 1 << 14;

/// What a driver asks: a header, what lies behind it for the device to read, and how much room there is before the status.
#[derive(Clone)]
struct Asked {
    kind: u32,
    sector: u64,
    carries: Vec<u8>,
    room: usize,
    pieces: Pieces,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, sector, carries, room, pieces } = self;
        write!(f, "type {kind:#x} at sector {sector:#x} with {} bytes (", carries.len())?;
        write!(f, "{:02x?}...) and room for {room}, {pieces:?}", &carries[..carries.len().min(16)])
    }
}

/// How the two parts of a chain are cut into buffers, each of which lies by itself.
#[derive(Clone, Copy, Debug)]
enum Pieces {
    /// Header, data and status, as most drivers have them.
    Usual,
    /// One buffer to read and one to write.
    Two,
    /// Thirteen bytes at a time, so that none ends where a field does.
    Thirteens,
    /// The usual ones, with empty buffers around each.
    AmongEmpties,
    /// The usual ones in an indirect table.
    InTable,
}

const PIECES: [Pieces; 5] = [Pieces::Usual, Pieces::Two, Pieces::Thirteens, Pieces::AmongEmpties, Pieces::InTable];

/// A disk that is asked, and what its driver negotiated.
struct Variant {
    what: &'static str,
    change: fn(&mut Config),
    features: u64,
    way: Way,
}

const DISKS: [Variant; 6] = [
    Variant { what: "with a cache", ..USUAL },
    Variant { what: "of a driver that took no feature", features: 0, ..USUAL },
    Variant { what: "write-through", change: |config| config.cache = Cache::Writethrough, features: F_OTHERS, ..USUAL },
    Variant { what: "read-only", change: |config| config.read_only = true, features: 0, ..USUAL },
    Variant { what: "without discards", change: |config| config.discard = false, features: F_FLUSH, ..USUAL },
    Variant { what: "of a guest that grants its memory", way: Way::Grants, ..USUAL },
];

const USUAL: Variant = Variant { what: "", change: |_| {}, features: F_FLUSH | F_OTHERS, way: Way::Frames };

/// What comes of a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Read(usize),
    Written,
    Zeroed(usize, usize),
    Discarded(usize, usize),
    Id,
    Flushed,
    Refused(u8),
}

/// The answer that virtio 1.2 §5.2.6 has, worked out in numbers that cannot overflow.
fn answer(config: &Config, asked: &Asked) -> Answer {
    let within = |sector: u64, sectors: usize| u128::from(sector) + sectors as u128 <= u128::from(SECTORS);
    let whole = |len: usize| len > 0 && len.is_multiple_of(SECTOR) && within(asked.sector, len / SECTOR);
    let changes = [kind::OUT, kind::DISCARD, kind::WRITE_ZEROES].contains(&asked.kind);
    match asked.kind {
        _ if changes && config.read_only => Answer::Refused(IOERR),
        kind::IN if whole(asked.room) => Answer::Read(asked.sector as usize * SECTOR),
        kind::OUT if whole(asked.carries.len()) => Answer::Written,
        kind::IN | kind::OUT => Answer::Refused(IOERR),
        kind::FLUSH => Answer::Flushed,
        kind::GET_ID if asked.room == 20 => Answer::Id,
        kind::GET_ID => Answer::Refused(IOERR),
        kind::DISCARD if !config.discard => Answer::Refused(UNSUPP),
        kind::DISCARD | kind::WRITE_ZEROES => {
            let Ok(bytes) = <[u8; 16]>::try_from(&asked.carries[..]) else { return Answer::Refused(IOERR) };
            let bits = u128::from_le_bytes(bytes);
            let (sector, sectors, flags) = (bits as u64, (bits >> 64) as u32, bits >> 96);
            let known = u128::from(asked.kind == kind::WRITE_ZEROES);
            match sectors as usize {
                _ if flags & !known != 0 => Answer::Refused(UNSUPP),
                0 => Answer::Refused(IOERR),
                sectors if !within(sector, sectors) => Answer::Refused(IOERR),
                sectors if asked.kind == kind::DISCARD => Answer::Discarded(sector as usize, sectors),
                sectors => Answer::Zeroed(sector as usize, sectors),
            }
        }
        _ => Answer::Refused(UNSUPP),
    }
}

/// A disk, and what must be on it.
struct Table {
    way: Way,
    config: Config,
    rig: Rig,
    contents: Vec<u8>,
}

impl Table {
    fn new(&Variant { change, features, way, .. }: &Variant) -> Self {
        let contents = pattern(SECTORS as usize * SECTOR, 5);
        let builder = Builder::new(EngineKind::Plain).contents(contents.clone()).features(features).config(change);
        let config = Config { serial: "vol-0815".into(), ..builder.config.clone() };
        let rig = builder.config(|config| config.serial = "vol-0815".into()).reach(Reach::By(way)).start();
        Self { way, config, rig, contents }
    }

    /// Variant, and compares everything that can be told apart with what is right.
    fn ask(&mut self, asked: &Asked) {
        let header = [&asked.kind.to_le_bytes()[..], &[0; 4], &asked.sector.to_le_bytes()].concat();
        let (readable, end) = self.lay_out(DATA, &header, &asked.carries, asked.pieces, Descriptor::readable);
        let room = vec![0xaa; asked.room];
        let (writable, _) = self.lay_out(end, &room, &[UNTOUCHED], asked.pieces, Descriptor::writable);
        let refusals = self.rig.counter("refusals");

        let used = self.rig.run(&self.chain(asked.pieces, &[readable, writable.clone()].concat()));

        let mut written: Vec<u8> =
            writable.iter().flat_map(|piece| self.rig.bytes(piece.addr, piece.len as usize)).collect();
        let status = written.pop().unwrap();
        let answer = answer(&self.config, asked);
        let (expected_status, expected_bytes) = self.take(&answer, asked);
        assert_eq!((status, &answer), (expected_status, &answer));
        assert!(written == expected_bytes, "the buffer holds {:02x?}...", &written[..written.len().min(32)]);
        // What was written without a gap from the first byte on.
        let told = if written == room && !written.is_empty() { 0 } else { written.len() + 1 };
        assert_eq!(used.len as usize, told);
        let refused = matches!(answer, Answer::Refused(_));
        assert_eq!(self.rig.counter("refusals") - refusals, u64::from(refused));
        assert!(self.rig.on_disk() == self.contents, "the disk holds something else");
        assert_eq!(self.rig.hearing.fault(), None);
    }

    /// Does to the contents what `answer` says. Returns the status, and what is before it.
    fn take(&mut self, answer: &Answer, asked: &Asked) -> (u8, Vec<u8>) {
        let untouched = vec![0xaa; asked.room];
        let bytes = |sector: usize, sectors: usize| sector * SECTOR..(sector + sectors) * SECTOR;
        match answer {
            Answer::Refused(status) => (*status, untouched),
            Answer::Flushed => (OK, untouched),
            Answer::Id => (OK, b"vol-0815\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
            Answer::Read(offset) => (OK, self.contents[*offset..*offset + asked.room].to_vec()),
            Answer::Written => {
                self.contents[asked.sector as usize * SECTOR..][..asked.carries.len()].copy_from_slice(&asked.carries);
                (OK, untouched)
            }
            Answer::Zeroed(sector, sectors) => {
                self.contents[bytes(*sector, *sectors)].fill(0);
                (OK, untouched)
            }
            // What is there now is the storage's affair, there and nowhere else.
            Answer::Discarded(sector, sectors) => {
                let span = bytes(*sector, *sectors);
                self.contents[span.clone()].copy_from_slice(&self.rig.on_disk()[span]);
                (OK, untouched)
            }
        }
    }

    /// Puts two fields into buffers from `start` on. Returns them, and where there is room behind them.
    fn lay_out(
        &self,
        start: u64,
        first: &[u8],
        second: &[u8],
        pieces: Pieces,
        buffer: impl Fn(u64, u32) -> Descriptor,
    ) -> (Vec<Descriptor>, u64) {
        let both = [first, second].concat();
        let parts: Vec<&[u8]> = match pieces {
            Pieces::Usual | Pieces::InTable => [first, second].into_iter().filter(|part| !part.is_empty()).collect(),
            Pieces::Two => vec![&both],
            Pieces::Thirteens => both.chunks(13).collect(),
            Pieces::AmongEmpties => vec![&[], first, &[], second, &[]],
        };
        let mut at = start;
        let buffers = parts.into_iter().map(|part| {
            self.rig.memory.write(at, part);
            let here = buffer(at, part.len() as u32);
            at += part.len() as u64 + 100;
            here
        });
        (buffers.collect(), at)
    }

    /// What goes into the ring. What a table holds is for the driver to grant; here it is left to the ring's own.
    fn chain(&self, pieces: Pieces, buffers: &[Descriptor]) -> Vec<Descriptor> {
        if self.way != Way::Frames || !matches!(pieces, Pieces::InTable) {
            return buffers.to_vec();
        }
        let last = buffers.len() - 1;
        let linked =
            (1..).zip(buffers).map(|(next, buffer)| if usize::from(next) > last { *buffer } else { buffer.then(next) });
        vec![self.rig.queue.write_indirect(DATA + (1 << 20), &linked.collect::<Vec<_>>())]
    }
}

/// Variant each disk for all of it, in pieces of each kind by turns. How many pieces there are has no common divisor with
/// how many inputs the tables below vary in their innermost loop.
fn on_each_disk(asked: impl Fn() -> Vec<Asked>) {
    for variant in &DISKS {
        eprintln!("a disk {}", variant.what);
        let mut table = Table::new(variant);
        cases::each(asked(), |asked| table.ask(&asked));
        table.rig.assert_alive();
    }
}

fn in_pieces(asked: impl IntoIterator<Item = Asked>) -> Vec<Asked> {
    asked.into_iter().zip(PIECES.into_iter().cycle()).map(|(asked, pieces)| Asked { pieces, ..asked }).collect()
}

fn ask(kind: u32, sector: u64, carries: usize, room: usize) -> Asked {
    Asked { kind, sector, carries: pattern(carries, sector as u8 ^ 0x5a), room, pieces: Pieces::Usual }
}

/// Where requests begin: in the disk, at its end, and where sectors, bytes, or the sum with a length overflow.
const PLACES: [u64; 11] = [
    0,
    1,
    SECTORS - 2,
    SECTORS - 1,
    SECTORS,
    1 << 23,
    u64::MAX / 512 - 1,
    u64::MAX / 512,
    u64::MAX / 512 + 1,
    u64::MAX - 1,
    u64::MAX,
];

#[test]
fn e01_what_is_within_the_end_is_done_and_what_is_not_is_refused() {
    on_each_disk(|| {
        let lengths = [1, 2, 3, SECTORS as usize / 8].map(|sectors| sectors * SECTOR);
        in_pieces(PLACES.into_iter().flat_map(|place| {
            lengths.into_iter().flat_map(move |len| [ask(kind::IN, place, 0, len), ask(kind::OUT, place, len, 0)])
        }))
        .into_iter()
        // So many pieces as a chain has room for.
        .map(|asked| {
            let is_long = asked.carries.len() + asked.room > 6 * SECTOR;
            Asked { pieces: if is_long { Pieces::Two } else { asked.pieces }, ..asked }
        })
        .collect()
    });
}

#[test]
fn e02_a_transfer_is_of_whole_sectors_in_the_part_that_its_type_is_about() {
    on_each_disk(|| {
        let lengths = [0, 1, 15, 511, 512, 513, 1023, 1024, 1025];
        let both = lengths.into_iter().flat_map(|carries| lengths.map(|room| (carries, room)));
        in_pieces(both.flat_map(|(carries, room)| [kind::IN, kind::OUT].map(|kind| ask(kind, 1, carries, room))))
    });
}

#[test]
fn e03_types_that_there_are_not_are_unsupported_whatever_comes_with_them() {
    let known = [kind::IN, kind::OUT, kind::FLUSH, kind::GET_ID, kind::DISCARD, kind::WRITE_ZEROES];
    let low = 0..32;
    let high = (5..32).map(|bit| 1 << bit);
    // Bit 31 was a barrier before virtio 1.0, bit 0 of a SCSI command its direction.
    let barriers = known.map(|kind| kind | 1 << 31);
    let unknown: Vec<u32> = low
        .chain(high)
        .chain(barriers)
        .chain([SECURE_ERASE | 1 << 16, 0x7fff_ffff, u32::MAX])
        .filter(|kind| !known.contains(kind))
        .collect();
    on_each_disk(|| {
        let shapes = [(0, 0), (0, 512), (512, 0), (16, 20)];
        in_pieces(unknown.iter().flat_map(|&kind| shapes.map(|(carries, room)| ask(kind, 0, carries, room))))
    });
}

#[test]
fn e03_the_serial_is_for_a_buffer_of_its_length() {
    on_each_disk(|| {
        let rooms = (0..64).chain([511, 512, 1024]);
        in_pieces(rooms.flat_map(|room| [0, 1, 20].map(|carries| ask(kind::GET_ID, u64::MAX, carries, room))))
    });
}

#[test]
fn e04_a_read_only_disk_is_as_it_was_whatever_its_driver_negotiated() {
    const RO: u64 = 1 << 5;
    for features in [0, RO, F_FLUSH, RO | F_FLUSH | F_OTHERS] {
        let mut table = Table::new(&Variant { change: |config| config.read_only = true, features, ..USUAL });
        let kinds = [kind::OUT, kind::DISCARD, kind::WRITE_ZEROES];
        let changes = PLACES.into_iter().flat_map(|place| {
            [segment(0, 1, 0), segment(place, 1, 1), segment(0, 1, 8), vec![0; SECTOR], vec![]]
                .into_iter()
                .flat_map(move |carries| kinds.map(|kind| Asked { carries: carries.clone(), ..ask(kind, place, 0, 0) }))
        });
        cases::each(in_pieces(changes), |asked| {
            table.ask(&asked);
            assert!(table.rig.on_disk() == pattern(SECTORS as usize * SECTOR, 5));
        });
    }
}

#[test]
fn e05_a_segment_is_judged_by_its_place_its_length_and_its_flags() {
    on_each_disk(|| {
        let lengths = [0, 1, 2, SECTORS as u32, SECTORS as u32 + 1, 1 << 17, u32::MAX];
        let flags = [0, 1, 2, 3, 1 << 16, 1 << 31, u32::MAX];
        let places = [0, SECTORS - 1, SECTORS, 1 << 55, u64::MAX];
        let mut all = Vec::new();
        for (place, len) in places.into_iter().flat_map(|place| lengths.map(|len| (place, len))) {
            all.extend(flags.into_iter().flat_map(|flags| {
                [kind::DISCARD, kind::WRITE_ZEROES]
                    .map(|kind| Asked { carries: segment(place, len, flags), ..ask(kind, 0, 0, 0) })
            }));
        }
        in_pieces(all)
    });
}

#[test]
fn e05_a_request_has_one_segment_and_no_byte_more_or_less() {
    on_each_disk(|| {
        let segments = segment(0, 1, 0).repeat(20);
        let lens = (0..34).chain((48..=segments.len()).step_by(16).flat_map(|len| [len - 1, len]));
        in_pieces(lens.flat_map(|len| {
            [kind::DISCARD, kind::WRITE_ZEROES].map(|kind| {
                let room = len % 3;
                Asked { carries: segments[..len].to_vec(), ..ask(kind, u64::MAX, 0, room) }
            })
        }))
    });
}

#[test]
fn e06_a_flush_is_done_whoever_asks_and_whatever_it_carries() {
    on_each_disk(|| {
        let shapes = [(0, 0), (0, 1), (1, 0), (512, 0), (0, 512), (16, 20)];
        in_pieces(
            PLACES.into_iter().flat_map(|place| shapes.map(|(carries, room)| ask(kind::FLUSH, place, carries, room))),
        )
    });
}
