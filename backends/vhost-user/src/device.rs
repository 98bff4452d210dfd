//! The device as a kind and as a device model: what the operator writes and what the backend says, put together.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_backend::{Backend, Identity, Kind, Owner, Reach, Record, Signals, Worker};

use crate::config::Plan;
use crate::introduction::meet;
use crate::shared::Shared;
use crate::wire::Wire;
use crate::worker::FrontendWorker;
use crate::{Config, ConfigError, VhostUserError};

/// A device whose backend is another program.
pub struct VhostUser {
    identity: Identity,
    shared: Arc<Shared>,
}

impl Kind for VhostUser {
    type Config = Config;
    type Error = VhostUserError;

    const NAME: &'static str = "vhost-user";
    const DEVICE_ID: Option<u32> = None;

    fn device_id(config: &Config) -> u32 {
        config.device.map_or(0, |device| device.id())
    }

    fn title(config: &Config) -> String {
        config.device.map_or_else(|| Self::NAME.to_owned(), |device| device.to_string())
    }

    fn check(config: &Config) -> Result<(), VhostUserError> {
        if config.found.is_some() {
            return Err(ConfigError::Found.into());
        }
        Ok(Plan::new(config).map(|_| ())?)
    }

    fn exclusive(config: &Config) -> Vec<String> {
        vec![format!("socket {}", config.socket.display())]
    }

    fn host_end(config: &Config) -> String {
        format!("backend at {}", config.socket.display())
    }

    fn open(config: &mut Config, _owner: &Owner) -> Result<Vec<OwnedFd>, VhostUserError> {
        Self::check(config)?;
        let (connection, found) = meet(&Plan::new(config)?)?;
        config.found = Some(found);
        Ok(vec![connection.into_socket()])
    }

    fn make(
        config: &Config,
        descriptors: Vec<OwnedFd>,
        reach: Arc<dyn Reach>,
    ) -> Result<Arc<dyn Backend>, VhostUserError> {
        let [connection] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_others| VhostUserError::Descriptors)?;
        let plan = Plan::new(config)?;
        let found = config.found.clone().ok_or(VhostUserError::NotFound)?;
        let layout = plan.layout(found.queues)?;
        let identity = Identity {
            device_id: plan.device.id(),
            features: found.features,
            queue_sizes: vec![plan.queue_size; found.queues.into()],
            // One connection, and so one lane.
            lanes: std::iter::once(0..found.queues.into()).collect(),
            config_len: found.config.len(),
            max_chain_bytes: layout.longest_chain(),
        };
        let shared = Shared::new(plan, found, layout, connection, reach).map_err(VhostUserError::Host)?;
        Ok(Arc::new(Self { identity, shared: Arc::new(shared) }))
    }

    /// Connects to the backend once more, for which there is one number.
    fn reach(config: &Config, _number: u32) -> io::Result<OwnedFd> {
        let plan = Plan::new(config).map_err(io::Error::other)?;
        Wire::connect(&plan.socket).map(Wire::into_socket)
    }
}

impl Backend for VhostUser {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.shared.config.read(offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.shared.config.write(offset, data);
        self.shared.noted.note(self.shared.config.written());
        self.shared.bell.ring();
    }

    fn start(&self, _lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        Ok(Box::new(FrontendWorker::new(Arc::clone(&self.shared), features)?))
    }

    fn negotiated(&self, _features: u64) {
        self.shared.config.forget();
        self.shared.noted.note(Vec::new());
    }

    fn keep(&self, record: &Record) {
        self.shared.keep(record);
    }

    fn attach(&self, signals: Arc<dyn Signals>) {
        self.shared.attach(signals);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.counters.snapshot().pairs()
    }
}
