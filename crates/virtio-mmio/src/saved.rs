//! The registers as they are kept in a device's record, for the process that follows if this one dies.
//!
//! What a driver has set up is noted before it has an effect, and before the access that set it is answered: an access that
//! was not answered is made again, and makes the same of the same registers. InterruptStatus is not noted, as one
//! interrupt too many does no harm: whoever follows sets all of its bits.

use serde::{Deserialize, Serialize};
use virtio_backend::Identity;

use crate::features::Accepted;
use crate::queue::SavedQueue;

/// All that registers are made of.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// DeviceID, which says whose registers they are.
    pub(crate) device_id: u32,
    pub(crate) status: u32,
    pub(crate) features: Accepted,
    pub(crate) queue_sel: u32,
    pub(crate) queues: Vec<SavedQueue>,
    pub(crate) config_generation: u32,
    /// Configuration space changed when there was no driver to tell yet.
    pub(crate) config_change_untold: bool,
}

impl Saved {
    /// Whether these can be the registers of such a device.
    pub(crate) fn are_of(&self, identity: &Identity) -> bool {
        self.device_id == identity.device_id && self.queues.len() == identity.queue_sizes.len()
    }
}
