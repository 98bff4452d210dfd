//! What each sector of the disk may hold, and whether what was found is that.
//!
//! A sector holds what was written to it last. While writes to it are in flight it may hold what was there before, or what
//! any of them brings; when one is done, what had been there before it began is gone for good. So it would be on a disk
//! that never stops, and a disk whose process is killed has to be the same.

use std::ops::Range;

use anyhow::{Result, ensure};

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;

/// Bytes of a sector that say which write they are of, and to which sector; all of it is made of them.
const WORD: usize = 8;

/// Which write; 0 stands for zeroes, which many bring.
pub(crate) type Writer = u64;

/// Zeroes.
pub(crate) const ZEROES: Writer = 0;

/// Moments, by their number.
type Time = u64;

/// A piece of the disk: sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) sectors: usize,
}

impl Span {
    /// Bytes.
    pub(crate) fn len(self) -> usize {
        self.sectors * SECTOR
    }

    fn range(self) -> Range<usize> {
        self.start..self.start + self.sectors
    }
}

/// What a request does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It looks.
    Read(Span),
    /// Sectors are this writer's when it is done.
    Write(Span, Writer),
    /// Sectors may be zeroes when it is done, or what they were (§5.2.6.2: after a discard, who knows?).
    Discard(Span),
    /// None.
    Flush,
}

impl Effect {
    fn written(self) -> Option<(Span, Writer)> {
        match self {
            Self::Write(span, writer) => Some((span, writer)),
            Self::Discard(span) => Some((span, ZEROES)),
            Self::Read(_) | Self::Flush => None,
        }
    }
}

/// A request that is in flight.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) effect: Effect,
    since: Time,
    /// Of a read, for each sector: what it may find.
    may_find: Vec<Candidates>,
}

/// What a sector may hold.
#[derive(Clone, Debug, Default)]
struct Candidates {
    writers: Vec<Writer>,
    /// A write is under way: the sector may be of more than one writer.
    is_torn: bool,
}

impl Candidates {
    fn include(&self, sector: &[u8], at: usize) -> bool {
        let may_be = |word: &[u8]| self.writers.iter().any(|writer| word_of(*writer, at) == word);
        let words = sector.chunks(WORD);
        if self.is_torn { words.clone().all(may_be) } else { is_whole(sector) && words.take(1).all(may_be) }
    }
}

#[derive(Clone, Debug)]
struct Sector {
    /// Writers that were done, and when. One of them is what the sector holds if nothing is in flight.
    settled: Vec<(Writer, Time)>,
    in_flight: Vec<Writer>,
}

/// Of a whole disk, which begins with zeroes.
pub(crate) struct Oracle {
    sectors: Vec<Sector>,
    now: Time,
    writers: Writer,
}

impl Oracle {
    /// Of a disk of so many sectors, less than 2^16.
    pub(crate) fn new(sectors: usize) -> Self {
        let sector = Sector { settled: vec![(ZEROES, 0)], in_flight: Vec::new() };
        Self { sectors: vec![sector; sectors], now: 0, writers: ZEROES }
    }

    /// Sectors of the disk.
    pub(crate) fn capacity(&self) -> usize {
        self.sectors.len()
    }

    /// A writer that there has not been yet.
    pub(crate) fn new_writer(&mut self) -> Writer {
        self.writers += 1;
        self.writers
    }

    /// A request begins. `others` are in flight.
    pub(crate) fn begin<'a>(&mut self, effect: Effect, others: impl Iterator<Item = &'a mut Asked>) -> Asked {
        self.now += 1;
        if let Some((span, writer)) = effect.written() {
            self.of(span).for_each(|sector| sector.in_flight.push(writer));
            others.for_each(|other| other.meet(span, writer));
        }
        let may_find = match effect {
            Effect::Read(span) => self.of(span).map(|sector| sector.candidates()).collect(),
            _ => Vec::new(),
        };
        Asked { effect, since: self.now, may_find }
    }

    /// A request is done.
    pub(crate) fn end(&mut self, asked: &Asked) {
        self.now += 1;
        let now = self.now;
        if let Some((span, writer)) = asked.effect.written() {
            let replaces = matches!(asked.effect, Effect::Write(..));
            self.of(span).for_each(|sector| {
                sector.settle(writer, now);
                // What was done while this was in flight may have come after it.
                sector.settled.retain(|&(_, when)| !replaces || when > asked.since);
            });
        }
    }

    /// A request was taken back: it was done, or it was not, and never will be.
    pub(crate) fn abandon(&mut self, asked: &Asked) {
        self.now += 1;
        let now = self.now;
        if let Some((span, writer)) = asked.effect.written() {
            self.of(span).for_each(|sector| sector.settle(writer, now));
        }
    }

    /// Compares the whole disk, with nothing in flight.
    ///
    /// # Errors
    /// A sector holds what it may not.
    pub(crate) fn check_all(&mut self, disk: &[u8]) -> Result<()> {
        let all = Span { start: 0, sectors: self.capacity() };
        let asked = self.begin(Effect::Read(all), std::iter::empty());
        asked.check(disk)
    }

    fn of(&mut self, span: Span) -> impl Iterator<Item = &mut Sector> {
        self.sectors.iter_mut().skip(span.start).take(span.sectors)
    }
}

impl Sector {
    fn candidates(&self) -> Candidates {
        let settled = self.settled.iter().map(|(writer, _)| *writer);
        Candidates {
            writers: settled.chain(self.in_flight.iter().copied()).collect(),
            is_torn: !self.in_flight.is_empty(),
        }
    }

    fn settle(&mut self, writer: Writer, now: Time) {
        if let Some(at) = self.in_flight.iter().position(|other| *other == writer) {
            self.in_flight.swap_remove(at);
        }
        self.settled.push((writer, now));
    }
}

impl Asked {
    /// A write begins while this is in flight.
    fn meet(&mut self, written: Span, writer: Writer) {
        let Effect::Read(span) = self.effect else { return };
        for (_, candidates) in span.range().zip(&mut self.may_find).filter(|(at, _)| written.range().contains(at)) {
            candidates.writers.push(writer);
            candidates.is_torn = true;
        }
    }

    /// Compares what a read has found.
    ///
    /// # Errors
    /// A sector is what it may not be.
    pub(crate) fn check(&self, found: &[u8]) -> Result<()> {
        let Effect::Read(span) = self.effect else { return Ok(()) };
        for ((at, may_be), sector) in span.range().zip(&self.may_find).zip(found.chunks(SECTOR)) {
            ensure!(may_be.include(sector, at), "Sector {at} is {}, and may be {may_be:?}", describe(sector),);
        }
        Ok(())
    }
}

/// What a writer puts into a piece of the disk.
pub(crate) fn contents(span: Span, writer: Writer) -> Vec<u8> {
    span.range().map(|at| word_of(writer, at).repeat(SECTOR / WORD)).collect::<Vec<_>>().concat()
}

fn word_of(writer: Writer, sector: usize) -> [u8; WORD] {
    let word = if writer == ZEROES { 0 } else { writer << 16 | sector as u64 };
    word.to_le_bytes()
}

/// Whether all its words are the same.
fn is_whole(sector: &[u8]) -> bool {
    sector.get(WORD..) == sector.get(..sector.len() - WORD)
}

fn describe(sector: &[u8]) -> String {
    let word = sector.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let all = if is_whole(sector) { "" } else { " and of another" };
    if word == 0 {
        format!("of zeroes{all}")
    } else {
        format!("of write {} to sector {}{all}", word >> 16, word & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Span = Span { start: 3, sectors: 2 };

    fn oracle() -> Oracle {
        Oracle::new(8)
    }

    fn write(oracle: &mut Oracle) -> (Asked, Writer) {
        let writer = oracle.new_writer();
        (oracle.begin(Effect::Write(HERE, writer), std::iter::empty()), writer)
    }

    /// Whether a read that begins now may find what these have left.
    fn may_find(oracle: &mut Oracle, writer: Writer) -> bool {
        let asked = oracle.begin(Effect::Read(HERE), std::iter::empty());
        asked.check(&contents(HERE, writer)).is_ok()
    }

    #[test]
    fn what_was_acknowledged_is_there_and_what_was_before_is_gone() {
        let mut oracle = oracle();
        let (first, a) = write(&mut oracle);
        assert!(may_find(&mut oracle, ZEROES) && may_find(&mut oracle, a));
        oracle.end(&first);
        assert!(!may_find(&mut oracle, ZEROES) && may_find(&mut oracle, a));
        let (second, b) = write(&mut oracle);
        oracle.end(&second);
        assert!(!may_find(&mut oracle, a) && may_find(&mut oracle, b));
    }

    #[test]
    fn of_two_writes_at_a_time_either_may_be_the_last() {
        let mut oracle = oracle();
        let (first, a) = write(&mut oracle);
        let (second, b) = write(&mut oracle);
        oracle.end(&second);
        oracle.end(&first);
        assert!(may_find(&mut oracle, a) && may_find(&mut oracle, b) && !may_find(&mut oracle, ZEROES));
    }

    #[test]
    fn what_was_taken_back_was_done_or_not_and_is_not_done_later() {
        let mut oracle = oracle();
        let (first, a) = write(&mut oracle);
        oracle.abandon(&first);
        assert!(may_find(&mut oracle, ZEROES) && may_find(&mut oracle, a));
        let (second, b) = write(&mut oracle);
        oracle.end(&second);
        assert!(may_find(&mut oracle, b) && !may_find(&mut oracle, a));
    }

    #[test]
    fn a_read_may_find_what_begins_while_it_is_in_flight() {
        let mut oracle = oracle();
        let mut read = oracle.begin(Effect::Read(HERE), std::iter::empty());
        let writer = oracle.new_writer();
        let write = oracle.begin(Effect::Write(HERE, writer), std::iter::once(&mut read));
        oracle.end(&write);
        read.check(&contents(HERE, ZEROES)).unwrap();
        read.check(&contents(HERE, writer)).unwrap();
        read.check(&contents(HERE, writer + 1)).unwrap_err();
    }

    #[test]
    fn a_sector_is_torn_only_under_a_write() {
        let mut oracle = oracle();
        let (first, a) = write(&mut oracle);
        let mut torn = contents(HERE, a);
        torn[..8].fill(0);
        oracle.begin(Effect::Read(HERE), std::iter::empty()).check(&torn).unwrap();
        oracle.abandon(&first);
        oracle.begin(Effect::Read(HERE), std::iter::empty()).check(&torn).unwrap_err();
    }

    #[test]
    fn sectors_in_the_wrong_place_are_found() {
        let mut oracle = oracle();
        let (first, a) = write(&mut oracle);
        oracle.end(&first);
        let elsewhere = Span { start: HERE.start + 1, ..HERE };
        let read = oracle.begin(Effect::Read(HERE), std::iter::empty());
        read.check(&contents(elsewhere, a)).unwrap_err();
    }

    #[test]
    fn after_a_discard_there_are_zeroes_or_what_was_there() {
        let mut oracle = oracle();
        let (first, a) = write(&mut oracle);
        oracle.end(&first);
        let discard = oracle.begin(Effect::Discard(HERE), std::iter::empty());
        oracle.end(&discard);
        assert!(may_find(&mut oracle, ZEROES) && may_find(&mut oracle, a));
    }
}
