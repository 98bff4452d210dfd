//! The log of a disk: what it was asked, what it answered, in the order in which that happened.
//!
//! A file that several processes append to. Each event is one write, which the kernel does whole and one after the other,
//! so the order of the file is an order in time over all disks that share it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, bail, ensure};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian};

/// The disk by which the guest speaks: each write to it is a line of text, padded with anything that is no line of text.
pub const VOICE: u8 = 0;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The disk is there, `size` bytes of zeroes.
    Opened {
        /// In bytes, a multiple of 512.
        size: u64,
    },
    /// The engine was asked for something that reads do not show; it may be under way from now on.
    Asked {
        /// Names the request to its end.
        id: u64,
        /// What it was asked for.
        what: Change,
    },
    /// It was done, and the guest is about to hear so.
    Done {
        /// As it was asked for.
        id: u64,
    },
    /// The guest spoke. What it says was so before.
    Said(String),
}

/// What an engine can be asked to do to what is stored. Offsets and lengths are in bytes, multiples of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Other contents.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// It is durable when it is done.
        stable: bool,
    },
    /// Zeroes, by WRITE_ZEROES, or by DISCARD as a file does it.
    Zeroes {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// It is durable when it is done.
        stable: bool,
    },
    /// What is done is to be durable.
    Flush,
}

/// An event as it lies in the file, before the data of a write.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    disk: u8,
    kind: u8,
    stable: u8,
    unused: [u8; 5],
    id: little_endian::U64,
    offset: little_endian::U64,
    len: little_endian::U64,
}

mod kind {
    pub(super) const OPENED: u8 = 1;
    pub(super) const WRITE: u8 = 2;
    pub(super) const ZEROES: u8 = 3;
    pub(super) const FLUSH: u8 = 4;
    pub(super) const DONE: u8 = 5;
}

/// Where one disk's events go.
pub struct Log {
    file: File,
    disk: u8,
    next: AtomicU64,
}

impl Log {
    /// Appends to the log at `path`, which may have events of this and other disks already.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(path: &Path, disk: u8) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, disk, next: AtomicU64::new(0) })
    }

    /// The disk is there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn opened(&self, size: u64) -> io::Result<()> {
        self.put(kind::OPENED, 0, 0, size, false, &[])
    }

    /// The engine is about to be asked for this. Returns its id.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn asked(&self, what: &Change) -> io::Result<u64> {
        let id = self.next.fetch_add(1, Relaxed);
        match what {
            Change::Write { offset, data, stable } => {
                self.put(kind::WRITE, id, *offset, data.len() as u64, *stable, data)?;
            }
            Change::Zeroes { offset, len, stable } => self.put(kind::ZEROES, id, *offset, *len, *stable, &[])?,
            Change::Flush => self.put(kind::FLUSH, id, 0, 0, false, &[])?,
        }
        Ok(id)
    }

    /// It was done.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn done(&self, id: u64) -> io::Result<()> {
        self.put(kind::DONE, id, 0, 0, false, &[])
    }

    fn put(&self, kind: u8, id: u64, offset: u64, len: u64, stable: bool, data: &[u8]) -> io::Result<()> {
        let (disk, stable) = (self.disk, u8::from(stable));
        let header =
            Header { disk, kind, stable, unused: [0; 5], id: id.into(), offset: offset.into(), len: len.into() };
        let written = (&self.file).write_vectored(&[IoSlice::new(header.as_bytes()), IoSlice::new(data)])?;
        // The rest would come behind what others write meanwhile.
        if written == size_of::<Header>() + data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// The events of one disk, and what the guest said meanwhile.
///
/// # Errors
/// The file cannot be read, or is no log that has this disk.
pub fn read(path: &Path, disk: u8) -> anyhow::Result<Vec<Event>> {
    let bytes = fs::read(path).with_context(|| format!("Cannot read the log {}", path.display()))?;
    let mut rest = &bytes[..];
    let mut events = Vec::new();
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let (of, event) = parse(&mut rest).with_context(|| format!("In {}, at byte {at}", path.display()))?;
        match event {
            Event::Asked { what: Change::Write { data, .. }, .. } if of == VOICE => {
                events.push(Event::Said(line_of(&data)));
            }
            event if of == disk => events.push(event),
            _ => {}
        }
    }
    ensure!(
        events.iter().any(|event| matches!(event, Event::Opened { .. })),
        "The log {} knows no disk {disk}",
        path.display()
    );
    Ok(events)
}

fn parse(rest: &mut &[u8]) -> anyhow::Result<(u8, Event)> {
    let Ok((header, behind)) = Header::read_from_prefix(rest) else { bail!("it ends in the middle of an event") };
    *rest = behind;
    let (id, offset, len, stable) = (header.id.get(), header.offset.get(), header.len.get(), header.stable != 0);
    let event = match header.kind {
        kind::OPENED => Event::Opened { size: len },
        kind::WRITE => {
            let Some((data, behind)) = rest.split_at_checked(usize::try_from(len)?) else {
                bail!("it ends in the middle of a write")
            };
            *rest = behind;
            Event::Asked { id, what: Change::Write { offset, data: data.to_vec(), stable } }
        }
        kind::ZEROES => Event::Asked { id, what: Change::Zeroes { offset, len, stable } },
        kind::FLUSH => Event::Asked { id, what: Change::Flush },
        kind::DONE => Event::Done { id },
        other => bail!("there is no event {other}"),
    };
    Ok((header.disk, event))
}

fn line_of(data: &[u8]) -> String {
    String::from_utf8_lossy(data.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_several_disks_is_read_in_its_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (disk, other, voice) =
            (Log::append(&path, 1).unwrap(), Log::append(&path, 2).unwrap(), Log::append(&path, VOICE).unwrap());
        let write = Change::Write { offset: 512, data: vec![7; 512], stable: true };
        disk.opened(4096).unwrap();
        other.opened(512).unwrap();
        let id = disk.asked(&write).unwrap();
        voice.asked(&Change::Write { offset: 0, data: b"1 made\n\0\0".to_vec(), stable: false }).unwrap();
        other.asked(&Change::Flush).unwrap();
        disk.done(id).unwrap();

        let said = Event::Said("1 made".to_owned());
        let expected = [Event::Opened { size: 4096 }, Event::Asked { id, what: write }, said, Event::Done { id }];
        assert_eq!(read(&path, 1).unwrap(), expected);
        assert!(read(&path, 3).unwrap_err().to_string().contains("no disk 3"));
    }

    #[test]
    fn a_log_that_was_cut_short_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = Log::append(&path, 1).unwrap();
        log.opened(512).unwrap();
        log.asked(&Change::Write { offset: 0, data: vec![1; 512], stable: false }).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = format!("{:#}", read(&path, 1).unwrap_err());
        assert!(error.contains("at byte 32") && error.contains("middle of a write"), "{error}");
    }
}
