//! A guest's configuration file: what libxl's protocol has no words for.
//!
//! `/etc/xen-virtio/guests/<name or uuid>.toml`, read when a device of the guest is prepared, so changes apply at the
//! guest's next start. No file means the defaults. Whatever is not understood is refused, with file, line and remedy:
//! an option that silently does nothing is worse than a guest that does not start.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

/// Where guests' files are, unless the command line says otherwise.
pub const DIRECTORY: &str = "/etc/xen-virtio/guests";

/// Larger than any honest file; a path that leads to something endless must not fill the broker.
const FILE_MAX: u64 = 256 * 1024;

/// What is said of one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestConfig {
    disks: BTreeMap<String, DiskOptions>,
}

/// What is said of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// As far as it is the file's to say: whether the guest may write and discard is the toolstack's.
    pub config: virtio_disk::Config,
    /// File and line, for messages; `None` when nothing is said.
    pub origin: Option<String>,
}

/// How the toolstack names a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestName {
    /// `name=` of its xl configuration.
    pub name: Option<String>,
    /// Its uuid, in lower case.
    pub uuid: Option<String>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is there and cannot be read.
    #[error("Cannot read {}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be what it should be.
    #[error("{} is larger than {FILE_MAX} bytes and surely no guest's configuration", file.display())]
    TooLarge {
        /// Which.
        file: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{}:{line}: {what}", file.display())]
    Wrong {
        /// Which.
        file: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A guest has one file.
    #[error("{} and {} are both for this guest; remove one", by_name.display(), by_uuid.display())]
    Two {
        /// That with the guest's name.
        by_name: PathBuf,
        /// That with its uuid.
        by_uuid: PathBuf,
    },
}

impl GuestConfig {
    /// Reads the file of a guest from `directory`.
    ///
    /// # Errors
    /// There is a file and it cannot be used.
    pub fn load(directory: &Path, guest: &GuestName) -> Result<Self, ConfigError> {
        let read = |stem: &Option<String>| match stem.as_deref().and_then(|stem| file_of(directory, stem)) {
            Some(file) => Ok(read_bounded(&file)?.map(|text| (file, text))),
            None => Ok(None),
        };
        match (read(&guest.name)?, read(&guest.uuid)?) {
            (Some((by_name, _)), Some((by_uuid, _))) => Err(ConfigError::Two { by_name, by_uuid }),
            (Some((file, text)), None) | (None, Some((file, text))) => Self::parse(&file, &text),
            (None, None) => Ok(Self::default()),
        }
    }

    /// What is said of the disk `vdev`.
    pub fn disk(&self, vdev: &str) -> DiskOptions {
        self.disks.get(vdev).cloned().unwrap_or_default()
    }

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let Range { start, .. } = error.span().unwrap_or_default();
            ConfigError::Wrong { file: file.to_owned(), line: line_at(text, start), what: capitalised(error.message()) }
        })?;
        let mut disks = BTreeMap::new();
        for entry in written.disk {
            let line = line_at(text, entry.span().start);
            let (vdev, options) = entry.into_inner().options(format!("{}:{line}", file.display()));
            if disks.contains_key(&vdev) {
                let what = format!("Disk {vdev:?} is there a second time; merge the two entries");
                return Err(ConfigError::Wrong { file: file.to_owned(), line, what });
            }
            disks.insert(vdev, options);
        }
        Ok(Self { disks })
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    disk: Vec<Spanned<DiskEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskEntry {
    vdev: String,
    cache: Option<virtio_disk::Cache>,
    serial: Option<String>,
    queues: Option<u16>,
    engine: Option<virtio_disk::EngineKind>,
}

impl DiskEntry {
    fn options(self, origin: String) -> (String, DiskOptions) {
        let default = virtio_disk::Config::default();
        let config = virtio_disk::Config {
            cache: self.cache.unwrap_or(default.cache),
            serial: self.serial.unwrap_or(default.serial),
            queues: self.queues.unwrap_or(default.queues),
            engine: self.engine.unwrap_or(default.engine),
            ..default
        };
        (self.vdev, DiskOptions { config, origin: Some(origin) })
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or_default().matches('\n').count() + 1
}

/// The file of a name, if the name is fit to be a file's: it comes from xenstore.
fn file_of(directory: &Path, stem: &str) -> Option<PathBuf> {
    let plain = !stem.is_empty() && !stem.starts_with('.') && !stem.contains(['/', '\0']);
    plain.then(|| directory.join(format!("{stem}.toml")))
}

fn read_bounded(file: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    let mut text = String::new();
    opened.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_MAX {
        return Err(ConfigError::TooLarge { file: file.to_owned() });
    }
    Ok(Some(text))
}

fn capitalised(sentence: &str) -> String {
    let mut rest = sentence.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GuestConfig, ConfigError> {
        GuestConfig::parse(Path::new("guest.toml"), text)
    }

    fn names(name: &str, uuid: &str) -> GuestName {
        GuestName { name: Some(name.into()), uuid: Some(uuid.into()) }
    }

    #[test]
    fn every_option_of_a_disk_is_understood() {
        let text = "
            [[disk]]
            vdev = \"xvda\"
            cache = \"none\"
            serial = \"SN-1\"
            queues = 4
            engine = \"plain\"
        ";

        let options = parse(text).unwrap().disk("xvda");

        let config = virtio_disk::Config {
            cache: virtio_disk::Cache::None,
            serial: "SN-1".into(),
            queues: 4,
            engine: virtio_disk::EngineKind::Plain,
            ..virtio_disk::Config::default()
        };
        assert_eq!(options, DiskOptions { config, origin: Some("guest.toml:2".into()) });
    }

    #[test]
    fn a_disk_without_an_entry_and_a_guest_without_a_file_have_defaults() {
        let nowhere = GuestConfig::load(Path::new("/nonexistent"), &names("a", "b")).unwrap();

        assert_eq!(nowhere, GuestConfig::default());
        assert_eq!(nowhere.disk("xvda"), DiskOptions::default());
    }

    #[test]
    fn the_example_in_guest_config_is_valid() {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-config/guests/example.toml");

        let config = GuestConfig::parse(&example, &std::fs::read_to_string(&example).unwrap()).unwrap();

        assert!(config.disks.contains_key("xvda"));
    }

    #[test]
    fn h10_mistakes_are_refused_with_file_and_line() {
        let rows = [
            ("disk = 3", 1, "expected a sequence"),
            ("[[disk]]\nvdev = \"xvda\"\ncahce = \"none\"", 3, "unknown field `cahce`"),
            ("\n[[disks]]\nvdev = \"xvda\"", 2, "unknown field `disks`"),
            ("[[disk]]\ncache = \"none\"", 1, "missing field `vdev`"),
            ("[[disk]]\nvdev = \"xvda\"\n\ncache = \"fast\"", 4, "expected one of `writeback`"),
            ("[[disk]]\nvdev = \"xvda\"\nqueues = \"4\"", 3, "expected u16"),
            ("[[disk]]\nvdev = \"xvda\"\nread_only = true", 3, "unknown field `read_only`"),
            ("[[disk]]\nvdev = \"xvda\"\nqueues = -1", 3, "expected u16"),
            ("[[disk]]\nvdev = \"xvda\"\n[[disk]]\nvdev = \"xvda\"", 3, "second time"),
            ("[[disk]]\nvdev = ", 2, ""),
            ("\u{0}", 1, ""),
        ];
        for (text, line, what) in rows {
            let error = parse(text).unwrap_err().to_string();

            assert!(error.starts_with(&format!("guest.toml:{line}: ")), "{text:?} gives {error}");
            assert!(error.to_lowercase().contains(what), "{text:?} gives {error}");
        }
    }

    #[test]
    fn a_file_may_be_named_by_name_or_uuid_but_not_both() {
        let directory = tempfile::tempdir().unwrap();
        let guest = names("web", "0a-0b");
        let write = |name: &str| std::fs::write(directory.path().join(name), "[[disk]]\nvdev = \"xvdb\"").unwrap();

        write("0a-0b.toml");
        let by_uuid = GuestConfig::load(directory.path(), &guest).unwrap();
        write("web.toml");
        let both = GuestConfig::load(directory.path(), &guest).unwrap_err();

        assert!(by_uuid.disks.contains_key("xvdb"));
        assert!(matches!(both, ConfigError::Two { .. }));
    }

    #[test]
    fn h10_a_file_that_is_no_file_or_too_large_or_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let load = |name: &str| GuestConfig::load(directory.path(), &names(name, "-")).unwrap_err();
        std::fs::create_dir(directory.path().join("folder.toml")).unwrap();
        std::fs::write(directory.path().join("huge.toml"), vec![b'\n'; 1 << 20]).unwrap();
        std::fs::write(directory.path().join("binary.toml"), [0xff, 0xfe]).unwrap();

        assert!(matches!(load("folder"), ConfigError::Unreadable { .. }));
        assert!(matches!(load("huge"), ConfigError::TooLarge { .. }));
        assert!(matches!(load("binary"), ConfigError::Unreadable { .. }));
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_directory() {
        for name in ["../etc/passwd", "..", ".hidden", "a/b", "", "a\0b"] {
            assert_eq!(file_of(Path::new("/etc"), name), None, "{name:?}");
        }
    }
}
