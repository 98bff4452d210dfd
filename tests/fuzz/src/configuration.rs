//! What people write: xl configurations, files of guests, of devices and of whole domains; the examples with anything
//! changed, or bytes of any sort.
//!
//! - What is refused is said in lines that are safe to show and name the file, and a line that it has.
//! - What is accepted is the same when it is read again. Each entry can be asked what it is.
//! - `check` comes to an end with every xl configuration, in words of the same kind.

use std::path::{Path, PathBuf};

use arbitrary::{Arbitrary, Unstructured};
use xen_virtio::check;
use xen_virtio::cli::Check;
use xen_virtio::config::{ConfigError, Entry, GuestConfig, StaticConfig, device_file};

/// What is spoilt.
const GUEST: &str = include_str!("../../../guest-config/guests/example.toml");
const STATIC: &str = include_str!("../../../guest-config/static/example.toml");
const DEVICES: &str = include_str!("../../../guest-config/virtio-devices.cfg");
const DISKS: &str = include_str!("../../../guest-config/virtio-disks.cfg");

/// Characters of a line that is shown, at most.
const SHOWN: usize = 2000;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Guest,
    Device,
    Static,
    Xl,
}

/// A change of a text.
#[derive(Arbitrary, Debug)]
enum Change {
    /// Some characters are replaced by these.
    Replace {
        at: u16,
        len: u8,
        by: String,
    },
    /// A piece is there again, somewhere else.
    Copy {
        from: u16,
        len: u16,
        to: u16,
    },
    /// Lines are dropped.
    Drop {
        line: u8,
        count: u8,
    },
    /// What stands behind the sign of equality in a line.
    Value {
        line: u8,
        value: Value,
    },
    Cut(u16),
}

#[derive(Arbitrary, Debug)]
enum Value {
    Number(i64),
    Text(String),
    Lists(u8),
    Tables(u8),
    Other(u8),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("\"{text}\""),
            Self::Lists(depth) => "[".repeat((*depth).into()) + &"]".repeat((*depth).into()),
            Self::Tables(depth) => "{ a = ".repeat((*depth).into()) + "1" + &" }".repeat((*depth).into()),
            Self::Other(which) => {
                ["true", "1e999", "-nan", "0xffffffffffffffff", "1979-05-27", "\"\\u0000\"", "'''", "[1, 'a']"]
                    [usize::from(which % 8)]
                .to_owned()
            }
        }
    }
}

/// Reads the files that `bytes` spell.
///
/// # Panics
/// What is said of one of them is not fit to be read.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let Ok((kind, is_example)) = <(Kind, bool)>::arbitrary(&mut source) else { return };
    let text = if is_example { changed(kind, &mut source) } else { String::from_utf8_lossy(source.take_rest()).into() };
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let file = folder.path().join("file.toml");
    std::fs::write(&file, &text).unwrap();
    match kind {
        Kind::Guest => same(&file, &text, |file| Ok(entries(GuestConfig::read(file)?.entries().iter()))),
        Kind::Device => same(&file, &text, |file| Ok(entries([device_file(file)?].iter()))),
        Kind::Static => same(&file, &text, |file| {
            let guests = StaticConfig::load(file)?;
            let devices = guests.iter().flat_map(|guest| &guest.devices);
            Ok(entries(devices.map(|device| &device.entry)) + &format!("{guests:?}"))
        }),
        Kind::Xl => look(&file, folder.path()),
    }
}

fn changed(kind: Kind, source: &mut Unstructured<'_>) -> String {
    let mut text = match kind {
        Kind::Guest => GUEST,
        Kind::Static => STATIC,
        Kind::Device => "[disk]\ncache = \"writeback\"\n",
        Kind::Xl if source.ratio(1, 2).unwrap_or(false) => DISKS,
        Kind::Xl => DEVICES,
    }
    .to_owned();
    while !source.is_empty() {
        let Ok(change) = Change::arbitrary(source) else { break };
        text = change.make(&text);
    }
    text
}

impl Change {
    fn make(self, text: &str) -> String {
        let place = |at: u16| text.floor_char_boundary(usize::from(at) % (text.len() + 1));
        match self {
            Self::Replace { at, len, by } => {
                let (start, end) = (place(at), text.floor_char_boundary(place(at) + usize::from(len)));
                [&text[..start], &by, &text[end.max(start)..]].concat()
            }
            Self::Copy { from, len, to } => {
                let (from, to) = (place(from), place(to));
                let end = text.floor_char_boundary(from + usize::from(len % 500)).max(from);
                [&text[..to], &text[from..end], &text[to..]].concat()
            }
            Self::Drop { line, count } => {
                let lines = text.lines().enumerate();
                let range = usize::from(line)..usize::from(line) + usize::from(count % 8);
                lines.filter(|(number, _)| !range.contains(number)).map(|(_, line)| format!("{line}\n")).collect()
            }
            Self::Value { line, value } => {
                let keyed = text.lines().filter(|line| line.contains('=')).count().max(1);
                let mut nth = 0;
                let change = |line_text: &str| {
                    let Some((key, _)) = line_text.split_once('=') else { return format!("{line_text}\n") };
                    nth += 1;
                    if nth - 1 == usize::from(line) % keyed {
                        format!("{key}= {}\n", value.text())
                    } else {
                        format!("{line_text}\n")
                    }
                };
                text.lines().map(change).collect()
            }
            Self::Cut(at) => text[..place(at)].to_owned(),
        }
    }
}

/// Reads a file twice.
fn same(file: &Path, text: &str, read: impl Fn(&Path) -> Result<String, ConfigError>) {
    match (read(file), read(file)) {
        (Ok(one), Ok(other)) => assert_eq!(one, other, "a file is read in two ways"),
        (Err(one), Err(other)) => {
            let shown = one.to_string();
            assert_eq!(shown, other.to_string());
            is_fit(&shown);
            if let ConfigError::Wrong { origin, what } = one {
                assert!(!what.is_empty() && shown.starts_with(&file.display().to_string()), "{shown}");
                assert!((1..=text.lines().count() + 1).contains(&origin.line), "line {} of {text:?}", origin.line);
            }
        }
        (one, other) => panic!("a file is read in two ways: {one:?}, {other:?}"),
    }
}

/// What entries say of themselves. Nothing of the host is opened for it.
fn entries<'a>(entries: impl Iterator<Item = &'a Entry>) -> String {
    let mut said = String::new();
    for Entry { model, vdev, origin } in entries {
        // Whether it can be served is another question, as a disk's image may be named elsewhere.
        let _ = model.check();
        assert!(origin.line > 0);
        said += &format!("{} {:?} {} {:?}\n", model.kind(), vdev, model.host_end(), model.exclusive());
    }
    said
}

fn look(file: &Path, folder: &Path) {
    let options = Check { configuration: file.to_owned(), options: None, guests: PathBuf::from(folder) };
    let (report, mistakes) = check::look(&options);
    report.lines().chain(mistakes.iter().map(String::as_str)).for_each(is_fit);
    assert!(!mistakes.iter().any(String::is_empty));
}

/// A line for a terminal: nothing in it acts there, and it is not endless.
fn is_fit(line: &str) {
    assert!(line.chars().count() < SHOWN, "{line}");
    assert!(!line.contains(|character: char| character.is_control()), "{line:?}");
}
