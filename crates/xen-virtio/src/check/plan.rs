//! What a guest would get, and what is in the way.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::addresses;
use super::disk::{self, DiskEntry};
use super::mistake::Mistake;
use super::server::Server;
use super::virtio::{self, VirtioEntry};
use super::xlcfg::XlConfig;
use crate::config::{Entry, GuestConfig, GuestName, Origin, device_file, is_device_file};
use crate::model::{Model, Place};

/// What a guest would get.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Its virtio devices, in the order of their places.
    pub(super) devices: Vec<Planned>,
    /// What is wrong. If nothing is, the devices above are all there is to say.
    pub(super) mistakes: Vec<Mistake>,
    /// There are devices that xl has known since Xen 4.18.
    pub(super) needs_virtio_list: bool,
}

/// A device.
#[derive(Debug)]
pub(super) struct Planned {
    /// What people call it, unique within the guest: `xvda`, `net0`.
    pub(super) called: String,
    /// Where the guest finds it.
    pub(super) place: Option<Place>,
    /// What it is; `None`: another domain's program knows, or a mistake keeps it from being known.
    pub(super) model: Option<Model>,
    /// Where its options are; `None`: nowhere, it has the defaults.
    pub(super) options: Option<Origin>,
    /// The domain that serves it, if it is not ours.
    pub(super) domain: Option<String>,
}

/// How xl names the guest.
///
/// # Errors
/// It does not.
pub(super) fn guest_name(xl: &XlConfig) -> Result<GuestName, Mistake> {
    let name =
        xl.text("name")?.ok_or_else(|| xl.missing("There is no name=\"...\", and xl creates no guest without"))?;
    Ok(GuestName { name: Some(name.to_owned()), uuid: xl.text("uuid")?.map(str::to_ascii_lowercase) })
}

/// Puts together what the two files say. Nothing is opened, only images are looked for.
pub(super) fn plan(xl: &XlConfig, options: &GuestConfig) -> Plan {
    let mut planner = Planner { options, plan: Plan::default(), used: BTreeSet::new(), claims: BTreeMap::new() };
    planner.disks(xl);
    planner.virtios(xl);
    planner.interrupts(xl);
    planner.unused();
    planner.plan
}

struct Planner<'o> {
    options: &'o GuestConfig,
    plan: Plan,
    /// The lines of the options' entries that are for a device.
    used: BTreeSet<usize>,
    /// What devices have for themselves alone, and the device that has it.
    claims: BTreeMap<String, String>,
}

impl Planner<'_> {
    fn disks(&mut self, xl: &XlConfig) {
        let mut vdevs = BTreeSet::new();
        for (entry, origin) in self.entries(xl, "disk") {
            match disk::parse(entry) {
                Ok(Some(disk)) => {
                    if !vdevs.insert(disk.vdev.clone()) {
                        self.mistake(
                            &origin,
                            format!("There is a disk {} already: give this one another vdev=", disk.vdev),
                        );
                    }
                    self.disk(disk, &origin);
                }
                Ok(None) => {}
                Err(what) => self.mistake(&origin, what),
            }
        }
    }

    fn disk(&mut self, disk: DiskEntry, origin: &Origin) {
        let called = disk.vdev.clone();
        if let Server::Domain(domain) = disk.server {
            return self.elsewhere(called, domain, origin);
        }
        if !disk.target.is_absolute() {
            let what =
                format!("target={} is no path from the root, which is where xen-virtio starts", disk.target.display());
            self.mistake(origin, what);
        }
        if is_device_file(&disk.target) {
            let described = device_file(&disk.target);
            if let Err(error) = &described {
                let what =
                    format!("The target of {called} is to describe a device, for its name ends in .toml: {error}");
                self.mistake(origin, what);
            }
            return self.place(called, described.ok().map(|Entry { model, origin, .. }| (model, Some(origin))), origin);
        }
        let entry = self.options.disk(&disk.vdev);
        let options = match entry.map(|entry| &entry.model) {
            Some(Model::Disk(options)) => options.clone(),
            _ => virtio_disk::Config::default(),
        };
        let DiskEntry { target, read_only, discard, .. } = disk;
        let model = Model::Disk(virtio_disk::Config { image: target, read_only, discard, ..options });
        let options = self.take(entry);
        self.place(called, Some((model, options)), origin);
    }

    fn virtios(&mut self, xl: &XlConfig) {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (entry, origin) in self.entries(xl, "virtio") {
            self.plan.needs_virtio_list = true;
            match virtio::parse(entry) {
                Ok(VirtioEntry { device_id, server: Server::Domain(domain) }) => {
                    self.elsewhere(format!("virtio,device{device_id:x}"), domain, &origin);
                }
                Ok(VirtioEntry { device_id, server: Server::Us }) => {
                    let count = counts.entry(device_id).or_default();
                    let index = std::mem::replace(count, *count + 1);
                    self.virtio(device_id, index, &origin);
                }
                Err(what) => self.mistake(&origin, what),
            }
        }
    }

    /// The device `index` of those with this virtio device ID.
    fn virtio(&mut self, device_id: u32, index: usize, origin: &Origin) {
        let entry = self.options.nth(device_id, index);
        let model = entry.map(|entry| entry.model.clone()).or_else(|| Model::default_of(device_id));
        let Some(model) = model else {
            let known: Vec<_> = Model::KINDS.iter().map(|(kind, id)| format!("{kind} (device{id:x})")).collect();
            let known = known.join(", ");
            self.mistake(origin, format!("xen-virtio serves no device{device_id:x}; there are {known}"));
            return self.place(format!("virtio,device{device_id:x}"), None, origin);
        };
        let options = self.take(entry);
        if let (Err(error), None) = (model.check(), &options) {
            let kind = model.kind();
            let what = format!("This {kind} needs an entry [[{kind}]] in the guest's TOML file: {error:#}");
            self.mistake(origin, what);
        }
        self.place(format!("{}{index}", model.kind()), Some((model, options)), origin);
    }

    /// A device in the next place.
    fn place(&mut self, called: String, what: Option<(Model, Option<Origin>)>, origin: &Origin) {
        let place = self.next_place(origin);
        let (model, options) = what.unzip();
        if let Some(model) = &model {
            self.look_for_image(model, options.as_ref().and_then(Option::as_ref), origin);
            self.claim(model, &called, options.as_ref().and_then(Option::as_ref).unwrap_or(origin));
        }
        self.plan.devices.push(Planned { called, place, model, options: options.flatten(), domain: None });
    }

    /// A device in the next place, served by another domain.
    fn elsewhere(&mut self, called: String, domain: String, origin: &Origin) {
        let place = self.next_place(origin);
        self.plan.devices.push(Planned { called, place, model: None, options: None, domain: Some(domain) });
    }

    fn next_place(&mut self, origin: &Origin) -> Option<Place> {
        let place = addresses::place(self.plan.devices.len());
        if place.is_none() {
            let most = addresses::most();
            self.mistake(
                origin,
                format!("This is one virtio device too many: a guest can have {most}, disks included"),
            );
        }
        place
    }

    /// The one thing on the host that is looked for, since it is the one that xl looks for, too.
    fn look_for_image(&mut self, model: &Model, options: Option<&Origin>, origin: &Origin) {
        let Model::Disk(virtio_disk::Config { image, .. }) = model else { return };
        if let Err(what) = look_for(image) {
            // In a device of virtio=[] the image is the options' to say, in a disk of disk=[] it is xl's.
            let is_xls = options.is_none_or(|options| {
                self.options.entries().iter().any(|entry| entry.origin == *options && entry.vdev.is_some())
            });
            let origin = if is_xls { origin } else { options.unwrap_or(origin) };
            self.mistake(origin, what);
        }
    }

    fn claim(&mut self, model: &Model, called: &str, origin: &Origin) {
        for thing in model.exclusive() {
            if let Some(other) = self.claims.get(&thing) {
                let what = format!("{called} is to have {thing} for itself alone, and {other} has it already");
                self.plan.mistakes.push(Mistake::at(origin, what));
            } else {
                self.claims.insert(thing, called.to_owned());
            }
        }
    }

    /// Interrupts that are passed through to the guest are not to be those of its virtio devices.
    fn interrupts(&mut self, xl: &XlConfig) {
        let virtual_irqs: Vec<_> = addresses::irqs(self.plan.devices.len()).collect();
        for (written, origin) in self.entries(xl, "irqs") {
            match written.parse::<u32>() {
                Ok(irq) if virtual_irqs.contains(&irq) => {
                    let what = format!(
                        "Interrupt {irq} cannot be passed through: libxl gives it to a virtio device; with fewer of those \
                         it stays free"
                    );
                    self.mistake(&origin, what);
                }
                Ok(_) => {}
                Err(_) => {
                    self.mistake(&origin, format!("irqs=[] has {written:?} in it, which is no interrupt's number"))
                }
            }
        }
    }

    /// Entries that no device takes.
    fn unused(&mut self) {
        for entry in self.options.entries() {
            if self.used.contains(&entry.origin.line) {
                continue;
            }
            let kind = entry.model.kind();
            let what = match &entry.vdev {
                Some(vdev) => format!("No virtio disk {vdev} is in disk=[], so this entry does nothing"),
                None => {
                    let id = entry.model.device_id();
                    format!(
                        "No device in virtio=[] takes this [[{kind}]]: add \"type=virtio,device{id:x},transport=mmio\" there, \
                         or remove it here"
                    )
                }
            };
            self.mistake(&entry.origin, what);
        }
    }

    /// Notes that an entry is for a device.
    fn take(&mut self, entry: Option<&Entry>) -> Option<Origin> {
        let origin = entry?.origin.clone();
        self.used.insert(origin.line);
        Some(origin)
    }

    fn entries<'x>(&mut self, xl: &'x XlConfig, key: &str) -> Vec<(&'x str, Origin)> {
        xl.list(key).unwrap_or_else(|mistake| {
            self.plan.mistakes.push(mistake);
            Vec::new()
        })
    }

    fn mistake(&mut self, origin: &Origin, what: impl AsRef<str>) {
        self.plan.mistakes.push(Mistake::at(origin, what.as_ref()));
    }
}

fn look_for(image: &Path) -> Result<(), String> {
    let shown = image.display();
    match std::fs::metadata(image) {
        Ok(found) if found.is_file() || found.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(format!("The image {shown} is neither a regular file nor a block device")),
        Err(error) => Err(format!("The image {shown} cannot be used: {error}")),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
