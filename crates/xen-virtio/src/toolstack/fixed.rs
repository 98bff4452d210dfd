//! Devices that a file asks for, on systems without libxl.

use std::path::Path;
use std::sync::Arc;

use super::libxl::Node;
use crate::config::{ConfigError, StaticConfig, StaticDevice, StaticGuest};
use crate::model::{Class, DeviceId, Place};

/// The guests of a static file.
#[derive(Clone, Debug)]
pub struct Fixed(Arc<Vec<StaticGuest>>);

impl Fixed {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        Ok(Self(Arc::new(StaticConfig::load(file)?)))
    }

    /// The domain ids of its guests.
    pub fn domids(&self) -> Vec<u16> {
        self.0.iter().map(|guest| guest.domid).collect()
    }

    /// The name of a guest, if it has one.
    pub fn name(&self, domid: u16) -> Option<&str> {
        self.guest(domid)?.name.as_deref()
    }

    /// The devices of a guest.
    pub fn nodes(&self, domid: u16) -> Vec<Node> {
        let count = self.guest(domid).map_or(0, |guest| guest.devices.len());
        let ids = (0..).take(count).map(|number| DeviceId { class: Class::Static, number });
        ids.map(|id| Node { domid, id }).collect()
    }

    /// A device, and how many of its kind come before it.
    pub fn device(&self, node: Node) -> Option<(&StaticDevice, usize)> {
        let devices = &self.guest(node.domid)?.devices;
        let number = usize::try_from(node.id.number).ok()?;
        let device = devices.get(number)?;
        let id_of = |device: &StaticDevice| device.entry.model.device_id();
        let index = devices.iter().take(number).filter(|before| id_of(before) == id_of(device)).count();
        Some((device, index))
    }

    /// Where the guest finds a device.
    pub fn place(&self, node: Node) -> Option<Place> {
        let (device, _) = self.device(node)?;
        Some(Place { base: device.base, irq: device.irq })
    }

    fn guest(&self, domid: u16) -> Option<&StaticGuest> {
        self.0.iter().find(|guest| guest.domid == domid)
    }
}
