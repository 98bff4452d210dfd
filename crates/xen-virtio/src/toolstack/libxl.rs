//! libxl's protocols for virtio disks and for virtio devices of any kind: where their nodes are, what they hold, what
//! they mean.
//!
//! Pure: text in, checked values out. Only the backend's directory is read, which the toolstack writes and the guest
//! cannot; nothing in the frontend's directory is believed. Even so, each key may be missing or malformed.
//! Source: libxl_disk.c, libxl_virtio.c, libxl_device.c and libxl_arm.c of Xen 4.17 to 4.20.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::events::Sight;
use crate::config::is_device_file;
use crate::model::{Class, DeviceId, Grants, Place, SPIS, WINDOW_BYTES};

/// The domain that libxl itself runs in.
pub const DOM0: u16 = 0;

/// The protocols served.
pub const CLASSES: [Class; 2] = [Class::VirtioDisk, Class::Virtio];

/// The keys that mean something to us, of either protocol.
pub const KEYS: [&str; 12] = [
    "frontend-id",
    "specification",
    "transport",
    "type",
    "params",
    "dev",
    "mode",
    "device-type",
    "discard-enable",
    "base",
    "irq",
    "grant_usage",
];

/// Those of [`KEYS`] that say where the guest finds the device, for [`place`].
pub const PLACE_KEYS: [&str; 2] = ["base", "irq"];

/// xenbus's states, as far as they are compared with or written.
pub mod state {
    /// `XenbusStateInitialising`.
    pub const NEW: &str = "1";
    /// `XenbusStateInitWait`: what libxl waits for, exactly, before the guest runs.
    pub const READY: &str = "2";
    /// `XenbusStateClosed`: what libxl waits for before the domain is destroyed.
    pub const CLOSED: &str = "6";
}

/// A device of a guest, by its nodes in xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// The guest.
    pub domid: u16,
    /// Its device.
    pub id: DeviceId,
}

impl Node {
    /// Its directory, relative to our own domain's.
    pub fn directory(&self) -> String {
        format!("{}/{}/{}", class_directory(self.id.class), self.domid, self.id.number)
    }

    /// Finds the device that a path, at or below its directory, belongs to.
    pub fn of_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        if parts.next() != Some("backend") {
            return None;
        }
        let directory = parts.next()?;
        let class = CLASSES.into_iter().find(|class| class.directory() == directory)?;
        Some(Self { domid: canonical(parts.next()?)?, id: DeviceId { class, number: canonical(parts.next()?)? } })
    }
}

/// Where a class has its devices, relative to our own domain's directory.
pub fn class_directory(class: Class) -> String {
    format!("backend/{}", class.directory())
}

/// What `state` and `online` of a device say.
pub fn sight(state: Option<&str>, online: Option<&str>) -> Option<Sight> {
    let Some(state) = state else { return Some(Sight::Absent) };
    match state {
        "6" => Some(Sight::Closed),
        "5" => Some(Sight::Closing),
        "1" | "2" | "3" | "4" if online == Some("0") => Some(Sight::Closing),
        "1" => Some(Sight::New),
        "2" | "3" | "4" => Some(Sight::Live),
        _ => None,
    }
}

/// A device as libxl describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Where the guest finds it.
    pub place: Place,
    /// By which way its memory is reached; [`unsaid_grants`] if libxl does not say.
    pub grants: Option<Grants>,
    /// What it is.
    pub what: What,
}

/// What a device is, as far as libxl knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An entry of `disk=[...]`.
    Disk(DiskSpec),
    /// An entry of `virtio=[...]`: a device of this virtio device ID, of which libxl knows nothing else.
    Virtio(u32),
}

/// A disk's specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image, `target=`; or the configuration file of a device that is no disk, see [`DiskSpec::other_device`].
    pub target: PathBuf,
    /// Its name for the toolstack: `xvda`.
    pub vdev: String,
    /// The guest must not write.
    pub read_only: bool,
    /// The guest may give blocks back.
    pub discard: bool,
}

impl DiskSpec {
    /// The file that describes the device in this place, if it is no disk. The guest finds any virtio device in a
    /// disk's place, which is how libxl 4.17, that knows only disks, is asked for the others. What decides is the
    /// target's name, never its contents.
    pub fn other_device(&self) -> Option<&Path> {
        is_device_file(&self.target).then_some(&*self.target)
    }
}

/// Why a description is not served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// libxl always writes it.
    #[error("The toolstack did not write the key {0:?}")]
    Missing(&'static str),
    /// It is not what libxl writes there.
    #[error("The toolstack wrote {value:?} as {key:?}, where {wanted} is expected")]
    Malformed {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
}

impl Description {
    /// Reads a device's keys.
    ///
    /// # Errors
    /// A key is missing, or holds what libxl would never write.
    pub fn parse(node: Node, keys: &BTreeMap<&'static str, String>) -> Result<Self, KeyError> {
        let place = place(keys)?;
        let keys = Keys(keys);
        keys.expect("frontend-id", &node.domid.to_string(), "the guest's domain id")?;
        keys.expect("transport", "mmio", "\"mmio\"")?;
        let grants = keys.grants()?;
        let what = match node.id.class {
            Class::VirtioDisk => What::Disk(DiskSpec::parse(&keys)?),
            Class::Virtio | Class::Static => What::Virtio(virtio_type(&keys)?),
        };
        Ok(Self { place, grants, what })
    }
}

/// By which way memory is reached where libxl says nothing of it, as before Xen 4.18, with the backend in domain
/// `backend`: if that is not Dom0, the guest's device tree tells its kernel to use grants, which kernels understand
/// that were made for it (libxl_arm.c, `make_virtio_mmio_node`).
pub const fn unsaid_grants(backend: u16) -> Grants {
    if backend == DOM0 { Grants::Never } else { Grants::Allowed }
}

impl DiskSpec {
    fn parse(keys: &Keys<'_>) -> Result<Self, KeyError> {
        keys.expect("specification", "virtio", "\"virtio\"")?;
        let cdrom = keys.choose("device-type", ["disk", "cdrom"])?;
        Ok(Self {
            target: keys.text("params", "a path")?.into(),
            vdev: keys.text("dev", "a device name such as xvda")?.into(),
            read_only: keys.choose("mode", ["w", "r"])? || cdrom,
            discard: keys.choose("discard-enable", ["0", "1"])?,
        })
    }
}

/// Where the guest finds a device.
///
/// # Errors
/// A key is missing, or holds what libxl would never write.
pub fn place(keys: &BTreeMap<&'static str, String>) -> Result<Place, KeyError> {
    let keys = Keys(keys);
    let base = keys.number("base", "an address that leaves room for the registers", |base| {
        base.checked_add(WINDOW_BYTES).is_some().then_some(base)
    })?;
    let irq = keys.number("irq", "a shared interrupt, 32 to 1019", |irq| {
        u32::try_from(irq).ok().filter(|irq| SPIS.contains(irq))
    })?;
    Ok(Place { base, irq })
}

/// What kind of device an entry of `virtio=[...]` asks for: `virtio,device1a` is one of virtio device ID 26.
///
/// `None` if it is not spelled like that.
pub fn device_id(spelled: &str) -> Option<u32> {
    let digits = spelled.strip_prefix("virtio,device")?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

fn virtio_type(keys: &Keys<'_>) -> Result<u32, KeyError> {
    let value = keys.get("type")?;
    device_id(value).ok_or_else(|| {
        malformed(
            "type",
            value,
            "virtio,device and the virtio device ID in hexadecimal, such as virtio,device1 for a net",
        )
    })
}

struct Keys<'a>(&'a BTreeMap<&'static str, String>);

impl<'a> Keys<'a> {
    fn get(&self, key: &'static str) -> Result<&'a str, KeyError> {
        self.0.get(key).map(String::as_str).ok_or(KeyError::Missing(key))
    }

    fn text(&self, key: &'static str, wanted: &'static str) -> Result<&'a str, KeyError> {
        let value = self.get(key)?;
        let fits = !value.is_empty() && !value.chars().any(char::is_control);
        fits.then_some(value).ok_or_else(|| malformed(key, value, wanted))
    }

    fn expect(&self, key: &'static str, only: &str, wanted: &'static str) -> Result<(), KeyError> {
        let value = self.get(key)?;
        (value == only).then_some(()).ok_or_else(|| malformed(key, value, wanted))
    }

    /// What libxl says of grants, if anything. With `grant_usage=1` the guest's device tree says so to its kernel, and a
    /// guest that does not listen has no business with the device.
    fn grants(&self) -> Result<Option<Grants>, KeyError> {
        match self.0.get("grant_usage").map(String::as_str) {
            None => Ok(None),
            Some("0") => Ok(Some(Grants::Never)),
            Some("1") => Ok(Some(Grants::Only)),
            Some(other) => Err(malformed("grant_usage", other, "0 or 1")),
        }
    }

    /// Whether it is the second of two words.
    fn choose(&self, key: &'static str, words: [&'static str; 2]) -> Result<bool, KeyError> {
        let value = self.get(key)?;
        let found = words.iter().position(|word| *word == value);
        found.map(|index| index == 1).ok_or_else(|| malformed(key, value, "one of its two words"))
    }

    fn number<T>(
        &self,
        key: &'static str,
        wanted: &'static str,
        check: impl Fn(u64) -> Option<T>,
    ) -> Result<T, KeyError> {
        let value = self.get(key)?;
        any_base(value).and_then(check).ok_or_else(|| malformed(key, value, wanted))
    }
}

fn malformed(key: &'static str, value: &str, wanted: &'static str) -> KeyError {
    /// Enough to recognise it by; a value can be 4 KiB.
    const SHOWN: usize = 64;
    KeyError::Malformed { key, value: value.chars().take(SHOWN).collect(), wanted }
}

/// A number in the bases of C's `strtoull(s, NULL, 0)`: libxl writes decimal here and hexadecimal there.
fn any_base(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None if lower.len() > 1 && lower.starts_with('0') => (&*lower, 8),
        None => (&*lower, 10),
    };
    // `from_str_radix` takes a sign, which no address has.
    let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    u64::from_str_radix(digits, radix).ok().filter(|_| plain)
}

/// A decimal number spelled as libxl spells it, so that no two paths mean the same device.
fn canonical<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node = Node { domid: 5, id: DeviceId { class: Class::VirtioDisk, number: 51712 } };

    /// What Xen 4.17's libxl writes for `access=rw,vdev=xvda,backendtype=standalone,specification=virtio`.
    fn keys() -> BTreeMap<&'static str, String> {
        let pairs = [
            ("frontend-id", "5"),
            ("specification", "virtio"),
            ("transport", "mmio"),
            ("params", "/dev/vg/root"),
            ("dev", "xvda"),
            ("mode", "w"),
            ("device-type", "disk"),
            ("discard-enable", "1"),
            ("base", "33554432"),
            ("irq", "33"),
        ];
        pairs.map(|(key, value)| (key, value.to_owned())).into()
    }

    fn parse_with(key: &'static str, value: &str) -> Result<Description, KeyError> {
        let mut keys = keys();
        keys.insert(key, value.into());
        Description::parse(NODE, &keys)
    }

    fn disk_with(key: &'static str, value: &str) -> DiskSpec {
        let What::Disk(disk) = parse_with(key, value).unwrap().what else { panic!("a disk") };
        disk
    }

    /// What Xen 4.20's libxl writes for `type=virtio,device1a,transport=mmio`.
    fn virtio_keys() -> BTreeMap<&'static str, String> {
        let pairs = [
            ("frontend-id", "5"),
            ("transport", "mmio"),
            ("type", "virtio,device1a"),
            ("base", "0x2000200"),
            ("irq", "34"),
            ("grant_usage", "0"),
        ];
        pairs.map(|(key, value)| (key, value.to_owned())).into()
    }

    const VIRTIO: Node = Node { domid: 5, id: DeviceId { class: Class::Virtio, number: 0 } };

    #[test]
    fn what_libxl_writes_is_understood() {
        let disk = DiskSpec { target: "/dev/vg/root".into(), vdev: "xvda".into(), read_only: false, discard: true };
        let place = Place { base: 0x0200_0000, irq: 33 };
        let described = Description { place, grants: None, what: What::Disk(disk) };
        assert_eq!(Description::parse(NODE, &keys()), Ok(described));
        let place = Place { base: 0x0200_0200, irq: 34 };
        let described = Description { place, grants: Some(Grants::Never), what: What::Virtio(26) };
        assert_eq!(Description::parse(VIRTIO, &virtio_keys()), Ok(described));
    }

    #[test]
    fn a_disk_whose_target_is_a_configuration_file_is_another_device() {
        let other = |target| disk_with("params", target).other_device().map(Path::to_owned);

        assert_eq!(other("/etc/xen-virtio/devices/eth0.toml"), Some("/etc/xen-virtio/devices/eth0.toml".into()));
        assert_eq!(other("/srv/disk.img"), None);
        assert_eq!(other("/srv/toml"), None);
    }

    #[test]
    fn h04_types_that_are_no_virtio_devices_are_refused() {
        assert_eq!(device_id("virtio,device1"), Some(1));
        assert_eq!(device_id("virtio,device13"), Some(19));
        for spelled in [
            "virtio,device",
            "virtio,device ",
            "virtio,device0x1",
            "virtio,device+1",
            "virtio,device123456789",
            "virtio",
            "device1",
            "virtio,deviceg",
            "",
        ] {
            let mut keys = virtio_keys();
            keys.insert("type", spelled.into());

            let refused = Description::parse(VIRTIO, &keys);

            assert!(matches!(refused, Err(KeyError::Malformed { key: "type", .. })), "{spelled:?}: {refused:?}");
        }
    }

    #[test]
    fn a_base_is_read_in_any_base_of_c() {
        for (text, base) in [("0x2000000", 0x200_0000), ("0X2000200", 0x200_0200), ("0100", 64), ("0", 0)] {
            assert_eq!(parse_with("base", text).map(|device| device.place.base), Ok(base), "{text}");
        }
    }

    #[test]
    fn read_only_disks_and_cdroms_are_read_only() {
        assert!(disk_with("mode", "r").read_only);
        assert!(disk_with("device-type", "cdrom").read_only);
    }

    #[test]
    fn h04_a_missing_key_is_named() {
        for (node, all) in [(NODE, keys()), (VIRTIO, virtio_keys())] {
            for key in all.keys().filter(|key| **key != "grant_usage") {
                let mut keys = all.clone();
                keys.remove(key);

                assert_eq!(Description::parse(node, &keys), Err(KeyError::Missing(key)));
            }
        }
    }

    #[test]
    fn h04_malformed_values_are_refused_and_shown_in_part() {
        let long = "9".repeat(4096);
        let rows = [
            ("base", ""),
            ("base", "-1"),
            ("base", "+1"),
            ("base", "0x"),
            ("base", "0x+1"),
            ("base", "089"),
            ("base", "1 "),
            ("base", "18446744073709551616"),
            ("base", "18446744073709551615"),
            ("base", &long),
            ("irq", "31"),
            ("irq", "1020"),
            ("irq", "4294967329"),
            ("irq", "SPI"),
            ("mode", "rw"),
            ("mode", ""),
            ("device-type", "floppy"),
            ("discard-enable", "2"),
            ("frontend-id", "6"),
            ("specification", "xen"),
            ("transport", "pci"),
            ("params", ""),
            ("params", "/img\n"),
            ("dev", "\u{1b}[2J"),
            ("grant_usage", ""),
            ("grant_usage", "2"),
            ("grant_usage", "yes"),
        ];
        for (key, value) in rows {
            let error = parse_with(key, value).unwrap_err();

            assert!(matches!(&error, KeyError::Malformed { key: named, .. } if *named == key), "{key}={value:?}");
            assert!(error.to_string().len() < 250, "{error}");
        }
    }

    #[test]
    fn how_memory_is_reached_is_libxls_to_say_and_where_it_is_silent_follows_from_the_backends_domain() {
        let said = |value| parse_with("grant_usage", value).unwrap().grants;
        assert_eq!((said("0"), said("1")), (Some(Grants::Never), Some(Grants::Only)));
        assert_eq!((unsaid_grants(0), unsaid_grants(3)), (Grants::Never, Grants::Allowed));
    }

    #[test]
    fn states_and_online_are_seen_as_one() {
        let rows = [
            (None, None, Some(Sight::Absent)),
            (None, Some("1"), Some(Sight::Absent)),
            (Some("1"), Some("1"), Some(Sight::New)),
            (Some("1"), None, Some(Sight::New)),
            (Some("2"), Some("1"), Some(Sight::Live)),
            (Some("4"), Some("1"), Some(Sight::Live)),
            (Some("4"), Some("0"), Some(Sight::Closing)),
            (Some("5"), Some("1"), Some(Sight::Closing)),
            (Some("6"), Some("0"), Some(Sight::Closed)),
            (Some("0"), Some("1"), None),
            (Some("7"), Some("0"), None),
            (Some("two"), Some("0"), None),
            (Some(""), Some("0"), None),
        ];
        for (state, online, expected) in rows {
            assert_eq!(sight(state, online), expected, "state {state:?}, online {online:?}");
        }
    }

    #[test]
    fn a_path_finds_its_device_and_back() {
        assert_eq!(NODE.directory(), "backend/virtio_disk/5/51712");
        assert_eq!(Node::of_path("backend/virtio_disk/5/51712"), Some(NODE));
        assert_eq!(Node::of_path("backend/virtio_disk/5/51712/state"), Some(NODE));
    }

    #[test]
    fn h04_paths_that_are_no_devices_find_none() {
        for path in [
            "backend/virtio_disk",
            "backend/virtio_disk/5",
            "backend/virtio_disk/5/",
            "backend/virtio_disk/05/51712",
            "backend/virtio_disk/+5/51712",
            "backend/virtio_disk/65536/51712",
            "backend/virtio_disk/5/4294967296",
            "backend/vbd/5/51712",
            "/backend/virtio_disk/5/51712",
            "@releaseDomain",
            "",
        ] {
            assert_eq!(Node::of_path(path), None, "{path}");
        }
    }
}
