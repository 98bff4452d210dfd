//! The static file, given to `serve --static`: guests that no toolstack tells of, such as those that Xen starts at boot,
//! with the places of their devices.

use std::ops::RangeInclusive;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::claims::Claims;
use super::document::{Document, is_plain};
use super::entry::{Written, take};
use super::{ConfigError, Entry};
use crate::model::{Grants, SPIS, WINDOW_BYTES};

/// The file as a whole.
#[derive(Debug)]
pub struct StaticConfig;

/// A guest and its devices.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticGuest {
    /// Its domain: 1 to 0x7fef, each in the file but once.
    pub domid: u16,
    /// What to call it: fit to be part of a file name, each in the file but once.
    pub name: Option<String>,
    /// Its devices, one at least, in the order of the file.
    pub devices: Vec<StaticDevice>,
}

/// A device and where the guest finds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StaticDevice {
    /// What it is.
    pub entry: Entry,
    /// Guest-physical address of its registers: [`WINDOW_BYTES`] from there are its own. A multiple of 4.
    pub base: u64,
    /// Its interrupt as Xen counts them: 32 to 1019, no other of the guest's.
    pub irq: u32,
    /// By which way the guest's memory is reached for it.
    pub grants: Grants,
}

/// The domains a guest can be: from `DOMID_FIRST_RESERVED` on they have special meanings (xen.h).
const DOMIDS: RangeInclusive<u16> = 1..=0x7fef;

/// The registers are 32 bits wide each (virtio 1.2 §4.2.2).
const BASE_ALIGNMENT: u64 = 4;

impl StaticConfig {
    /// Reads the static file.
    ///
    /// # Errors
    /// It is not there, or cannot be used.
    pub fn load(file: &Path) -> Result<Vec<StaticGuest>, ConfigError> {
        parse(&Document::read(file)?)
    }
}

fn parse(document: &Document) -> Result<Vec<StaticGuest>, ConfigError> {
    let mut root = document.root()?;
    let guests = root.remove("guest");
    if let Some((key, _)) = root.iter().next() {
        let what = format!("`{}` is not known here; each guest is an entry headed [[guest]]", key.get_ref());
        return Err(document.wrong(key.span().start, what));
    }
    let mut reader = Reader { document, claims: Claims::default(), read: Vec::new() };
    if let Some(guests) = guests {
        let no_list = |offset| document.wrong(offset, "A guest is an entry headed [[guest]]");
        let offset = guests.span().start;
        let DeValue::Array(guests) = guests.into_inner() else { return Err(no_list(offset)) };
        for guest in guests {
            let offset = guest.span().start;
            let DeValue::Table(keys) = guest.into_inner() else { return Err(no_list(offset)) };
            let guest = reader.guest(offset, keys)?;
            reader.read.push(guest);
        }
    }
    Ok(reader.read)
}

/// Reads guest after guest; what is not to be twice in the file is held against those read already.
struct Reader<'i> {
    document: &'i Document,
    claims: Claims,
    read: Vec<StaticGuest>,
}

impl<'i> Reader<'i> {
    fn guest(&mut self, offset: usize, mut keys: DeTable<'i>) -> Result<StaticGuest, ConfigError> {
        let domid = self.domid(offset, &mut keys)?;
        let name = self.name(&mut keys)?;
        let mut devices = Vec::new();
        for mut written in Written::all(self.document, keys, "guest.")? {
            let device = device(&mut written, &devices)?;
            self.claims.claim(&written, &device.entry)?;
            devices.push(device);
        }
        if devices.is_empty() {
            return Err(self.document.wrong(offset, "The guest has no device; give it one, such as [[guest.disk]]"));
        }
        Ok(StaticGuest { domid, name, devices })
    }

    fn domid(&self, offset: usize, keys: &mut DeTable<'i>) -> Result<u16, ConfigError> {
        let Some(written) = take::<u16>(self.document, keys, "domid")? else {
            return Err(self.document.wrong(offset, "The guest has no domid = 1, the number of its domain"));
        };
        let (offset, domid) = (written.span().start, written.into_inner());
        if !DOMIDS.contains(&domid) {
            let what = format!("No guest can be domain {domid}; the numbers are 1 to {}", DOMIDS.end());
            return Err(self.document.wrong(offset, what));
        }
        if self.read.iter().any(|guest| guest.domid == domid) {
            let what = format!("Domain {domid} is there a second time; merge the two entries");
            return Err(self.document.wrong(offset, what));
        }
        Ok(domid)
    }

    fn name(&self, keys: &mut DeTable<'i>) -> Result<Option<String>, ConfigError> {
        let Some(written) = take::<String>(self.document, keys, "name")? else { return Ok(None) };
        let (offset, name) = (written.span().start, written.into_inner());
        if !is_plain(&name) {
            let what = format!(
                "The name {name:?} cannot be part of a file's name, as it must; leave out slashes and a dot in front"
            );
            return Err(self.document.wrong(offset, what));
        }
        if self.read.iter().any(|guest| guest.name.as_ref() == Some(&name)) {
            return Err(self.document.wrong(offset, format!("Another guest has the name {name:?} already")));
        }
        Ok(Some(name))
    }
}

/// Reads a device of a guest that has `others` already.
fn device(written: &mut Written<'_>, others: &[StaticDevice]) -> Result<StaticDevice, ConfigError> {
    let base = base(written, others)?;
    let irq = irq(written, others)?;
    let grants = written.take("grants")?.map(Spanned::into_inner).unwrap_or_default();
    Ok(StaticDevice { entry: written.entry()?, base, irq, grants })
}

fn base(written: &mut Written<'_>, others: &[StaticDevice]) -> Result<u64, ConfigError> {
    let Some(value) = written.take::<u64>("base")? else {
        let what = format!("The {} has no base = 0x2000000, the guest's address of its registers", written.kind);
        return Err(written.wrong(what));
    };
    let base = *value.get_ref();
    if !base.is_multiple_of(BASE_ALIGNMENT) || base.checked_add(WINDOW_BYTES).is_none() {
        let what = format!(
            "Registers cannot be at {base:#x}; it takes a multiple of 4 and {WINDOW_BYTES:#x} bytes from there"
        );
        return Err(written.wrong_value(&value, what));
    }
    match others.iter().find(|other| base.abs_diff(other.base) < WINDOW_BYTES) {
        Some(StaticDevice { base: there, entry, .. }) => {
            let what = format!(
                "Registers at {base:#x} overlap those at {there:#x} of the device in line {}; each device has \
                 {WINDOW_BYTES:#x} bytes",
                entry.origin.line
            );
            Err(written.wrong_value(&value, what))
        }
        None => Ok(base),
    }
}

fn irq(written: &mut Written<'_>, others: &[StaticDevice]) -> Result<u32, ConfigError> {
    let Some(value) = written.take::<u32>("irq")? else {
        return Err(written.wrong(format!("The {} has no irq = 33, the number of its interrupt", written.kind)));
    };
    let irq = *value.get_ref();
    if !SPIS.contains(&irq) {
        let what = format!("Interrupt {irq} cannot be a device's; those are {} to {}", SPIS.start(), SPIS.end());
        return Err(written.wrong_value(&value, what));
    }
    match others.iter().find(|other| other.irq == irq) {
        Some(other) => {
            let what = format!("Interrupt {irq} is that of the device in line {} already", other.entry.origin.line);
            Err(written.wrong_value(&value, what))
        }
        None => Ok(irq),
    }
}

#[cfg(test)]
#[path = "static_file_tests.rs"]
mod tests;
