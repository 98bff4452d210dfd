//! Power cuts and kills at any moment: what a host that loses power, or its process, may leave of an image, and what QEMU
//! finds in it.
//!
//! A tape under an image keeps each write and each sync. At a power cut, what was synced is there; of what came after, any
//! part may be. A process that is killed leaves all that it wrote.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Storage};

use super::super::contents::Contents;
use super::super::header::Header;
use super::super::ordered::Ordered;
use super::super::{layout, refcounts};
use super::tape::{Event, Tape, apply};
use crate::engine::Span;
use crate::engine::pool::Blocking;

const SIZE: usize = 1 << 20;
const SECTOR: usize = 512;

/// Numbers that look random, and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }
}

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Power,
    Process,
}

/// What the image holds at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nothing, so that each first write to a cluster adds one.
    Empty,
    /// Ones, and a snapshot of them, so that each first write to a cluster copies what was flushed long ago.
    Shared,
}

/// What was written when, by sectors of one byte each.
#[derive(Default)]
struct History {
    contents: Vec<u8>,
    /// For each moment at which all before it was safe: how many events there were then, how many puts, and the disk's
    /// contents. From a power cut all that was flushed is, and from a kill all that was done.
    safe: Vec<(usize, usize, Vec<u8>)>,
    /// Sector and byte.
    puts: Vec<(usize, u8)>,
}

impl History {
    fn put(&mut self, sector: usize, byte: u8) {
        self.contents[sector] = byte;
        self.puts.push((sector, byte));
    }

    fn is_safe(&mut self, events: usize) {
        self.safe.push((events, self.puts.len(), self.contents.clone()));
    }

    /// Whether the sector may hold `byte` after a cut: as it did when all was safe, or as it was to do since.
    fn allows(&self, cut: usize, sector: usize, byte: u8) -> bool {
        let (_, puts, safe) = self.safe.iter().rfind(|(events, ..)| *events <= cut).unwrap();
        safe[sector] == byte || self.puts[*puts..].contains(&(sector, byte))
    }
}

fn qemu_img(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("qemu-img").args(arguments).output().expect("`make deps` installs qemu-img");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn image(path: &Path, start: Start) -> Vec<u8> {
    let raw = path.with_extension("raw");
    fs::write(&raw, vec![start.byte(); SIZE]).unwrap();
    let (name, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", raw, name];
    assert_eq!(qemu_img(&convert).0, Some(0));
    if start == Start::Shared {
        assert_eq!(qemu_img(&["snapshot", "-c", "before", name]).0, Some(0));
    }
    fs::read(path).unwrap()
}

impl Start {
    /// What each of the disk's bytes is.
    fn byte(self) -> u8 {
        u8::from(self == Self::Shared)
    }
}

/// Works on an image of whole sectors of one byte each. Returns what happened to the file.
fn record(start: &[u8], first: u8, dice: &mut Dice, loss: Loss, ordered: bool) -> (Vec<Event>, History) {
    let tape = Tape::default();
    tape.reel.lock().unwrap().bytes = start.to_vec();
    let persisting = tape.clone();
    let persist = move || if ordered { persisting.sync() } else { Ok(()) };
    let (tables, data) = Ordered::pair(tape.clone(), persist);
    let header = Header::read(&tables).unwrap();
    tables.know(&header, &layout::check(&tables, &header).unwrap());
    let order = tables.order();
    let qcow2 = Qcow2::<_, FormatAccess<_>>::builder(tables).write(true).data_file(Some(data)).backing(None);
    let access = FormatAccess::new(qcow2.open(DenyImplicitOpenGate::default()).unwrap());
    let contents = Contents::new("disk", access, order, Some(header.cluster_size));
    let mut history = History { contents: vec![first; SIZE / SECTOR], ..History::default() };
    history.is_safe(0);
    for round in 0..40_u8 {
        let sector = dice.roll(SIZE / SECTOR - 16);
        match dice.roll(8) {
            0 => {
                let first = sector.next_multiple_of(8);
                let span = Span { offset: (first * SECTOR) as u64, len: 8 * SECTOR as u64 };
                contents.write_zeroes(span, dice.roll(2) == 0).unwrap();
                (first..first + 8).for_each(|sector| history.put(sector, 0));
            }
            1 => {
                contents.flush().unwrap();
                let mut reel = tape.reel.lock().unwrap();
                if !ordered {
                    reel.events.push(Event::Sync);
                }
                history.is_safe(reel.events.len());
            }
            _ => {
                let sectors = 1 + dice.roll(16);
                contents.write((sector * SECTOR) as u64, &vec![round + 2; sectors * SECTOR]).unwrap();
                (sector..sector + sectors).for_each(|sector| history.put(sector, round + 2));
            }
        }
        if loss == Loss::Process {
            history.is_safe(tape.reel.lock().unwrap().events.len());
        }
    }
    let events = tape.reel.lock().unwrap().events.clone();
    (events, history)
}

/// The file as a cut after `cut` events may leave it.
fn after_cut(start: &[u8], events: &[Event], cut: usize, dice: &mut Dice, loss: Loss) -> Vec<u8> {
    let mut bytes = start.to_vec();
    let synced = events[..cut].iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |at| at + 1);
    for (at, event) in events[..cut].iter().enumerate() {
        if let Event::Write(offset, data) = event
            && (loss == Loss::Process || at < synced || dice.roll(2) == 0)
        {
            apply(&mut bytes, *offset, data);
        }
    }
    bytes
}

/// What is done before imago sees an image.
fn opened(bytes: Vec<u8>) -> Result<Vec<u8>, Box<dyn Error>> {
    let tape = Tape::default();
    tape.reel.lock().unwrap().bytes = bytes;
    let header = Header::read(&tape)?;
    let tables = layout::check(&tape, &header)?;
    refcounts::mend(&tape, &header, &tables)?;
    let bytes = tape.reel.lock().unwrap().bytes.clone();
    Ok(bytes)
}

/// What is wrong with the file after a cut, if anything is.
fn complaint(path: &Path, bytes: Vec<u8>, history: &History, cut: usize) -> Option<String> {
    match opened(bytes) {
        Ok(bytes) => fs::write(path, bytes).unwrap(),
        Err(error) => return Some(error.to_string()),
    }
    let name = path.to_str().unwrap();
    // Clusters that nothing uses (3) are no harm.
    let (code, said) = qemu_img(&["check", "-f", "qcow2", name]);
    if !matches!(code, Some(0 | 3)) {
        return Some(said);
    }
    let raw = path.with_extension("raw");
    assert_eq!(qemu_img(&["convert", "-f", "qcow2", "-O", "raw", name, raw.to_str().unwrap()]).0, Some(0));
    let contents = fs::read(raw).unwrap();
    contents.chunks(SECTOR).enumerate().find_map(|(sector, bytes)| {
        let whole = bytes.iter().all(|byte| *byte == bytes[0]);
        let fits = whole && history.allows(cut, sector, bytes[0]);
        (!fits).then(|| format!("sector {sector} holds {} instead of what was safe or came after", bytes[0]))
    })
}

/// Cuts off `states` times. Returns what was found wrong.
fn complaints(loss: Loss, start: Start, ordered: bool, states: usize) -> Vec<String> {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_there_is_none| tempfile::tempdir()).unwrap();
    let path = folder.path().join("disk.qcow2");
    let (image, first) = (image(&path, start), start.byte());
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut found = Vec::new();
    for _ in 0..states / 30 {
        let (events, history) = record(&image, first, &mut dice, loss, ordered);
        for _ in 0..30 {
            let cut = dice.roll(events.len() + 1);
            let bytes = after_cut(&image, &events, cut, &mut dice, loss);
            found.extend(complaint(&path, bytes, &history, cut));
        }
    }
    found
}

#[test]
fn a_power_cut_leaves_a_sound_image_with_all_that_was_flushed() {
    assert_eq!(complaints(Loss::Power, Start::Shared, true, 150), [""; 0]);
    assert_eq!(complaints(Loss::Power, Start::Empty, true, 150), [""; 0]);
}

#[test]
fn a_killed_process_leaves_a_sound_image_with_all_that_was_acknowledged() {
    assert_eq!(complaints(Loss::Process, Start::Shared, true, 150), [""; 0]);
    assert_eq!(complaints(Loss::Process, Start::Empty, true, 150), [""; 0]);
}

/// What this is about: without barriers, the same cuts leave images that are none.
#[test]
fn without_an_order_power_cuts_are_seen() {
    assert!(!complaints(Loss::Power, Start::Shared, false, 150).is_empty());
}
