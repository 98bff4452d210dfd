//! What a guest would get, and what is in the way.

use std::collections::{BTreeMap, BTreeSet};

use super::addresses;
use super::disk;
use super::image;
use super::mistake::Mistake;
use super::server::{Memory, Server};
use super::virtio::{self, VirtioEntry};
use super::xlcfg::XlConfig;
use crate::choice::Choice;
use crate::config::{GuestConfig, GuestName, Origin};
use crate::model::Place;

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
    /// Where the guest finds it; `None`: there is no place left.
    pub(super) place: Option<Place>,
    /// What it is.
    pub(super) what: What,
    /// By which way it reaches the guest's memory.
    pub(super) memory: Memory,
}

/// What a device is.
#[derive(Debug)]
pub(super) enum What {
    /// One of ours.
    Ours(Box<Choice>),
    /// Another domain serves it, and knows what it is.
    Elsewhere {
        /// As far as xl knows.
        called: String,
        /// Which domain.
        domain: String,
    },
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
pub(super) fn plan(xl: &XlConfig, config: &GuestConfig) -> Plan {
    let mut planner = Planner { config, plan: Plan::default(), used: Vec::new(), claims: BTreeMap::new() };
    planner.disks(xl);
    planner.virtios(xl);
    planner.interrupts(xl);
    planner.unused();
    planner.plan
}

struct Planner<'c> {
    config: &'c GuestConfig,
    plan: Plan,
    /// The entries that are for a device.
    used: Vec<Origin>,
    /// What devices have for themselves alone, and the device that has it.
    claims: BTreeMap<String, String>,
}

impl Planner<'_> {
    fn disks(&mut self, xl: &XlConfig) {
        let mut vdevs = BTreeSet::new();
        for (entry, origin) in self.entries(xl, "disk") {
            let disk = match disk::parse(entry) {
                Ok(Some(disk)) => disk,
                Ok(None) => continue,
                Err(what) => {
                    self.mistake(&origin, what);
                    continue;
                }
            };
            if !vdevs.insert(disk.spec.vdev.clone()) {
                let what = format!("There is a disk {} already: give this one another vdev=", disk.spec.vdev);
                self.mistake(&origin, what);
            }
            match disk.server {
                Server::Us => self.ours(Choice::of_disk(self.config, disk.spec), disk.memory, &origin),
                Server::Domain(domain) => self.elsewhere(disk.spec.vdev, domain, disk.memory, &origin),
            }
        }
    }

    fn virtios(&mut self, xl: &XlConfig) {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (entry, origin) in self.entries(xl, "virtio") {
            self.plan.needs_virtio_list = true;
            match virtio::parse(entry) {
                Ok(VirtioEntry { device_id, server: Server::Us, memory }) => {
                    let count = counts.entry(device_id).or_default();
                    let index = std::mem::replace(count, *count + 1);
                    self.ours(Choice::of_nth(self.config, device_id, index), memory, &origin);
                }
                Ok(VirtioEntry { device_id, server: Server::Domain(domain), memory }) => {
                    self.elsewhere(format!("device{device_id:x}"), domain, memory, &origin);
                }
                Err(what) => self.mistake(&origin, what),
            }
        }
    }

    /// A device of ours in the next place, asked for at `origin`.
    fn ours(&mut self, choice: anyhow::Result<Choice>, memory: Memory, origin: &Origin) {
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => return self.mistake(origin, format!("{error:#}")),
        };
        let options = choice.options.clone().unwrap_or_else(|| origin.clone());
        if let Err(what) = image::look_for(&choice.model) {
            self.mistake(if choice.has_toolstacks_image { origin } else { &options }, what);
        }
        self.claim(&choice, &options);
        self.used.extend(choice.options.clone());
        self.place(What::Ours(Box::new(choice)), memory, origin);
    }

    /// A device in the next place that another domain serves.
    fn elsewhere(&mut self, called: String, domain: String, memory: Memory, origin: &Origin) {
        self.place(What::Elsewhere { called, domain }, memory, origin);
    }

    fn place(&mut self, what: What, memory: Memory, origin: &Origin) {
        let place = addresses::place(self.plan.devices.len());
        if place.is_none() {
            let most = addresses::most();
            self.mistake(
                origin,
                format!("This is one virtio device too many: a guest can have {most}, disks included"),
            );
        }
        self.plan.devices.push(Planned { place, what, memory });
    }

    fn claim(&mut self, choice: &Choice, origin: &Origin) {
        for thing in choice.model.exclusive() {
            if let Some(other) = self.claims.get(&thing) {
                let what = format!("{} is to have {thing} for itself alone, and {other} has it already", choice.called);
                self.mistake(origin, what);
            } else {
                self.claims.insert(thing, choice.called.clone());
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
                        "Interrupt {irq} cannot be passed through: libxl gives it to a virtio device, of which there would \
                         have to be fewer"
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

    /// Entries that no device takes, if no other guest could have devices for them.
    fn unused(&mut self) {
        if self.config.is_shared() {
            return;
        }
        for entry in self.config.entries() {
            if self.used.contains(&entry.origin) {
                continue;
            }
            let what = match &entry.vdev {
                Some(vdev) => format!("No virtio disk {vdev} is in disk=[], so this entry does nothing"),
                None => format!(
                    "No device in virtio=[] takes this [[{}]]: add \"type=virtio,device{:x},transport=mmio\" there, or remove \
                     it here",
                    entry.model.kind(),
                    entry.model.device_id()
                ),
            };
            self.mistake(&entry.origin, what);
        }
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

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
