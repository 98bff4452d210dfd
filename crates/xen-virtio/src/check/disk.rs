//! An entry of `disk=[...]` (xl-disk-configuration(5)), as libxl's own reader understands it (libxlu_disk_l.l).

use super::server::{Memory, Server};
use crate::toolstack::libxl::DiskSpec;

/// A disk, as it is written. What is not about virtio disks is read past.
#[derive(Debug, Default)]
struct Written<'e> {
    target: Option<&'e str>,
    format: Option<&'e str>,
    vdev: Option<&'e str>,
    access: Option<&'e str>,
    backend: Option<&'e str>,
    backendtype: Option<&'e str>,
    specification: Option<&'e str>,
    script: Option<&'e str>,
    discard: Option<bool>,
    grants: Option<bool>,
    is_cdrom: bool,
    /// The target has a prefix such as `phy:`, which says its format.
    has_prefix: bool,
}

/// A virtio disk, or what is in the place of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskEntry {
    /// What libxl would tell of it.
    pub(super) spec: DiskSpec,
    /// Who is to serve it.
    pub(super) server: Server,
    /// By which way it reaches the guest's memory.
    pub(super) memory: Memory,
}

/// Flags that mean nothing to a virtio disk.
const FLAGS: [&str; 6] = ["direct-io-safe", "colo", "no-colo", "trusted", "untrusted", "devtype=disk"];

/// Keys that mean nothing to a virtio disk.
const KEYS: [&str; 5] = ["colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"];

/// Prefixes of a target that say nothing. Deprecated, but xl takes them.
const PREFIXES: [&str; 7] = ["tapdisk:", "tap:", "tap2:", "aio:", "ioemu:", "file:", "phy:"];

/// Understands an entry; `None` is a disk that is no virtio disk.
///
/// # Errors
/// xl refuses it, or nobody can serve it: what is wrong, and what would be right.
pub(super) fn parse(entry: &str) -> Result<Option<DiskEntry>, String> {
    let mut written = Written::default();
    let mut rest = entry;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n']);
        if rest.is_empty() {
            return written.judge();
        }
        if let Some(target) = rest.strip_prefix("target=") {
            set(&mut written.target, target.strip_suffix(',').unwrap_or(target), "target")?;
            return written.judge();
        }
        if let Some(unprefixed) = written.prefix(rest) {
            rest = unprefixed;
            continue;
        }
        let (part, others) = rest.split_once(',').unwrap_or((rest, ""));
        written.part(part)?;
        rest = others;
    }
}

impl<'e> Written<'e> {
    /// Takes a prefix off a target.
    fn prefix(&mut self, rest: &'e str) -> Option<&'e str> {
        let is_target = |rest: &str| rest.starts_with('/');
        if let Some(target) =
            PREFIXES.iter().find_map(|prefix| rest.strip_prefix(prefix)).filter(|rest| is_target(rest))
        {
            self.has_prefix = true;
            return Some(target);
        }
        let format = ["raw", "qcow2", "qcow", "vhd"]
            .into_iter()
            .find(|format| rest.strip_prefix(format).and_then(|rest| rest.strip_prefix(':')).is_some_and(is_target))?;
        self.has_prefix = true;
        self.format = Some(format);
        rest.get(format.len() + 1..)
    }

    fn part(&mut self, part: &'e str) -> Result<(), String> {
        match part.split_once('=') {
            Some(("format", value)) => self.set_format(value),
            Some(("vdev", value)) => set(&mut self.vdev, value, "vdev"),
            Some(("access", value)) => {
                self.access = Some(value);
                Ok(())
            }
            Some(("backend", value)) => set(&mut self.backend, value, "backend"),
            Some(("backendtype", value)) => set(&mut self.backendtype, value, "backendtype"),
            Some(("specification", value)) => set(&mut self.specification, value, "specification"),
            Some(("script", value)) => set(&mut self.script, value, "script"),
            Some(("grant_usage", value @ ("0" | "1"))) => {
                self.grants = Some(value == "1");
                Ok(())
            }
            Some(("devtype", "cdrom")) => {
                self.is_cdrom = true;
                Ok(())
            }
            Some((key, _)) if KEYS.contains(&key) || FLAGS.contains(&part) => Ok(()),
            Some(_) => Err(format!("xl does not know {part:?} in disk=[]; see xl-disk-configuration(5)")),
            None => self.flag_or_positional(part),
        }
    }

    fn flag_or_positional(&mut self, part: &'e str) -> Result<(), String> {
        match part {
            "cdrom" => self.is_cdrom = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            _ if FLAGS.contains(&part) => {}
            _ if self.target.is_none() => self.target = Some(part),
            _ if self.format.is_none() && !self.has_prefix => return self.set_format(part),
            _ if self.vdev.is_none() => self.vdev = Some(part),
            _ if self.access.is_none() => self.access = Some(part),
            _ => return Err(format!("{part:?} is one value without a name too many; see xl-disk-configuration(5)")),
        }
        Ok(())
    }

    fn set_format(&mut self, value: &'e str) -> Result<(), String> {
        let value = if value.is_empty() { "raw" } else { value };
        if !["raw", "qcow", "qcow2", "vhd", "empty", "qed"].contains(&value) {
            return Err(format!("xl does not know the format {value:?}; for a virtio disk write format=raw"));
        }
        set(&mut self.format, value, "format")
    }

    /// What comes of it.
    fn judge(self) -> Result<Option<DiskEntry>, String> {
        let read_only = match self.access {
            None | Some("" | "rw" | "w") => false,
            Some("ro" | "r") => true,
            Some(other) => return Err(format!("xl does not know access={other}: write access=rw or access=ro")),
        };
        let vdev = self.vdev.filter(|vdev| !vdev.is_empty()).ok_or("There is no vdev=: write vdev=xvda, say")?;
        match (self.specification, self.backendtype) {
            (Some("virtio"), Some("standalone") | None) => {}
            (Some("virtio"), Some(other)) => {
                return Err(format!(
                    "backendtype={other} cannot serve specification=virtio: write backendtype=standalone"
                ));
            }
            (None | Some("xen"), Some("standalone")) => {
                return Err("backendtype=standalone serves virtio disks: add specification=virtio".to_owned());
            }
            (None | Some("xen"), _) => return Ok(None),
            (Some(other), _) => {
                return Err(format!("xl does not know specification={other}: write specification=virtio"));
            }
        }
        if self.is_cdrom {
            return Err("A virtio disk is no CD-ROM: leave cdrom out, and write access=ro".to_owned());
        }
        if let Some(format) = self.format.filter(|format| *format != "raw") {
            return Err(format!(
                "format={format} is not possible for a virtio disk: convert the image (qemu-img convert -O raw), and write \
                 format=raw"
            ));
        }
        if self.script.is_some() {
            return Err("script= is not possible for a virtio disk: leave it out".to_owned());
        }
        let target = self.target.filter(|target| !target.is_empty());
        let target = target.ok_or("There is no target=, which is the image; it comes last")?;
        let server = Server::new(self.backend);
        let memory = Memory::new(&server, self.grants);
        Ok(Some(DiskEntry {
            spec: DiskSpec {
                target: target.into(),
                vdev: vdev.to_owned(),
                read_only,
                discard: self.discard.unwrap_or(!read_only),
            },
            server,
            memory,
        }))
    }
}

/// Sets a value that may be said once, or again if it is the same.
fn set<'e>(place: &mut Option<&'e str>, value: &'e str, key: &str) -> Result<(), String> {
    match place.filter(|before| !before.is_empty() && *before != value) {
        Some(before) => Err(format!("{key} is {before:?} already, and {value:?} besides: leave one out")),
        None => {
            *place = Some(value);
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
