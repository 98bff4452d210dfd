//! Power cuts at any moment: what a host that loses power may leave of an image, and what QEMU finds in it.
//!
//! A tape under an image keeps each write and each sync. At a cut, what was synced is there; of what came after, any
//! part may be.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Storage};

use super::super::header::Header;
use super::super::ordered::Ordered;
use super::super::{layout, refcounts};
use super::tape::{Event, Tape, apply};

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

/// What was written when, by sectors of one byte each.
#[derive(Default)]
struct History {
    contents: Vec<u8>,
    /// For each flush that ended: how many events there were then, how many puts, and the disk's contents.
    flushes: Vec<(usize, usize, Vec<u8>)>,
    /// Sector and byte.
    puts: Vec<(usize, u8)>,
}

impl History {
    fn put(&mut self, sector: usize, byte: u8) {
        self.contents[sector] = byte;
        self.puts.push((sector, byte));
    }

    fn flushed(&mut self, events: usize) {
        self.flushes.push((events, self.puts.len(), self.contents.clone()));
    }

    /// Whether the sector may hold `byte` after a cut: as it did at the last flush, or as it was to do since.
    fn allows(&self, cut: usize, sector: usize, byte: u8) -> bool {
        let (_, puts, flushed) = self.flushes.iter().rfind(|(events, ..)| *events <= cut).unwrap();
        flushed[sector] == byte || self.puts[*puts..].contains(&(sector, byte))
    }
}

fn qemu_img(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// An image with a snapshot, so that each first write to a cluster copies what was flushed long ago.
fn image(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    fs::write(&raw, vec![1; SIZE]).unwrap();
    let (name, raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", raw, name];
    for arguments in [&convert[..], &["snapshot", "-c", "before", name]] {
        assert_eq!(qemu_img(arguments).0, Some(0));
    }
    fs::read(path).unwrap()
}

/// Works on an image of whole sectors of one byte each. Returns what happened to the file.
fn record(start: &[u8], dice: &mut Dice, ordered: bool) -> (Vec<Event>, History) {
    let tape = Tape::default();
    tape.reel.lock().unwrap().bytes = start.to_vec();
    let persisting = tape.clone();
    let persist = move || if ordered { persisting.sync() } else { Ok(()) };
    let (tables, data) = Ordered::pair(tape.clone(), persist);
    let qcow2 = Qcow2::<_, FormatAccess<_>>::builder(tables).write(true).data_file(Some(data)).backing(None);
    let mut access = FormatAccess::new(qcow2.open(DenyImplicitOpenGate::default()).unwrap());
    let mut history = History { contents: vec![1; SIZE / SECTOR], ..History::default() };
    history.flushed(0);
    for round in 0..40_u8 {
        let sector = dice.roll(SIZE / SECTOR - 16);
        match dice.roll(8) {
            0 => {
                let first = sector.next_multiple_of(8);
                access.discard_to_zero((first * SECTOR) as u64, 8 * SECTOR as u64).unwrap();
                (first..first + 8).for_each(|sector| history.put(sector, 0));
            }
            1 => {
                access.flush().unwrap();
                access.sync().unwrap();
                let mut reel = tape.reel.lock().unwrap();
                if !ordered {
                    reel.events.push(Event::Sync);
                }
                history.flushed(reel.events.len());
            }
            _ => {
                let sectors = 1 + dice.roll(16);
                access.write(&vec![round + 2; sectors * SECTOR], (sector * SECTOR) as u64).unwrap();
                (sector..sector + sectors).for_each(|sector| history.put(sector, round + 2));
            }
        }
    }
    let events = tape.reel.lock().unwrap().events.clone();
    (events, history)
}

/// The file as a cut after `cut` events may leave it.
fn after_cut(start: &[u8], events: &[Event], cut: usize, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = start.to_vec();
    let synced = events[..cut].iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |at| at + 1);
    for (at, event) in events[..cut].iter().enumerate() {
        if let Event::Write(offset, data) = event
            && (at < synced || dice.roll(2) == 0)
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
        (!fits).then(|| format!("sector {sector} holds {} instead of what was flushed or came after", bytes[0]))
    })
}

/// Cuts the power at `states` moments. Returns what was found wrong.
fn complaints(ordered: bool, states: usize) -> Vec<String> {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_there_is_none| tempfile::tempdir()).unwrap();
    let path = folder.path().join("disk.qcow2");
    let start = image(&path);
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let mut found = Vec::new();
    for _ in 0..states / 30 {
        let (events, history) = record(&start, &mut dice, ordered);
        for _ in 0..30 {
            let cut = dice.roll(events.len() + 1);
            let bytes = after_cut(&start, &events, cut, &mut dice);
            found.extend(complaint(&path, bytes, &history, cut));
        }
    }
    found
}

fn has_qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: there is no qemu-img (Debian: qemu-utils)");
    }
    found
}

#[test]
fn a_power_cut_leaves_a_sound_image_with_all_that_was_flushed() {
    if has_qemu_img() {
        assert_eq!(complaints(true, 150), [""; 0]);
    }
}

/// What this is about: without barriers, the same cuts leave images that are none.
#[test]
fn without_an_order_power_cuts_are_seen() {
    if has_qemu_img() {
        assert!(!complaints(false, 150).is_empty());
    }
}
