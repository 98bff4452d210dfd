//! What outlives a connection: the device, and its way to whichever driver there is.

use std::ops::Range;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_backend::{Backend, ConfigSpace, Counters, Identity, features};

use crate::line::Line;

/// Stands for messages that came after the first version of the protocol; not a feature of any device.
pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A device behind a socket.
pub(crate) struct Device {
    /// For log lines and names of threads.
    pub(crate) name: String,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) config: ConfigSpace,
    pub(crate) line: Arc<Line>,
    pub(crate) counters: Arc<Counters>,
}

impl Device {
    pub(crate) fn new(name: &str, backend: Arc<dyn Backend>) -> Self {
        // A thread's name is a C string.
        let name = name.replace('\0', "");
        let line = Arc::new(Line::new(name.clone(), backend.identity().queue_sizes.len()));
        backend.attach(line.clone());
        let config = ConfigSpace::new(backend.clone());
        Self { name, backend, config, line, counters: Arc::default() }
    }

    pub(crate) fn identity(&self) -> &Identity {
        self.backend.identity()
    }

    /// The queues of a lane.
    pub(crate) fn queues_of(&self, lane: usize) -> Range<usize> {
        self.identity().lanes.get(lane).cloned().unwrap_or_default()
    }

    pub(crate) fn offered_features(&self) -> u64 {
        features::offered(self.identity().features) | PROTOCOL_FEATURES
    }
}
