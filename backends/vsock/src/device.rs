//! The device model: what the driver sees, and the kind as programs know it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_backend::{Backend, Identity, Kind, Owner, Reach, Record, Worker, copy_config};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use crate::asking::Switchboard;
use crate::counters::Counters;
use crate::host;
use crate::kept::Kept;
use crate::worker::VsockWorker;
use crate::{Config, ConfigError};

/// VIRTIO_VSOCK_F_STREAM
const F_STREAM: u64 = 1 << 0;

/// VIRTIO_VSOCK_F_NO_IMPLIED_STREAM, of virtio 1.3: streams are there only if F_STREAM says so.
const F_NO_IMPLIED_STREAM: u64 = 1 << 2;

/// Entries of the queues for packets and for events. Linux' receive buffers have 4 KiB, so this is 1 MiB under way. That
/// for events has as many, though there are hardly any: front-ends of vhost-user give all of a device's queues one size.
const QUEUE_SIZES: [u16; 3] = [256; 3];

/// Bytes that a chain may describe: four times what the guest may send in one packet, and more than any driver's
/// receive buffer has.
const MAX_CHAIN: u64 = 1 << 20;

/// What the workers of a device need of it.
pub(crate) struct Place {
    /// The guest's context ID.
    pub(crate) cid: u64,
    /// The name that is listened at, for messages.
    pub(crate) socket: PathBuf,
    /// The socket itself. Who connects while the guest has no driver waits.
    pub(crate) listener: OwnedFd,
    /// The way to those whom the guest wants to connect to.
    pub(crate) switchboard: Arc<Switchboard>,
    pub(crate) counters: Counters,
}

/// A virtio socket device.
pub struct Vsock {
    identity: Identity,
    place: Arc<Place>,
    kept: Kept,
}

impl Backend for Vsock {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    /// `struct virtio_vsock_config` (virtio 1.2 §5.10.4) is the context ID.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.place.cid.to_le_bytes(), offset, data);
    }

    fn start(&self, _lane: usize, _features: u64) -> io::Result<Box<dyn Worker>> {
        // One lane, and so once for each driver.
        let was_interrupted = self.kept.begin_use();
        Ok(Box::new(VsockWorker::new(Arc::clone(&self.place), was_interrupted)?))
    }

    /// A driver that says streams are not implied must ask for them: there is nothing else here.
    fn accepts(&self, features: u64) -> bool {
        features & F_STREAM != 0 || features & F_NO_IMPLIED_STREAM == 0
    }

    fn negotiated(&self, _features: u64) {
        self.kept.begin_anew();
    }

    fn keep(&self, record: &Record) {
        self.kept.keep(record);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.place.counters.snapshot().pairs()
    }
}

impl Kind for Vsock {
    type Config = Config;
    type Error = ConfigError;
    const NAME: &'static str = "vsock";
    const DEVICE_ID: Option<u32> = Some(VIRTIO_ID_VSOCK);

    fn check(config: &Config) -> Result<(), ConfigError> {
        config.check()
    }

    fn exclusive(config: &Config) -> Vec<String> {
        config.socket.iter().map(|socket| format!("socket {}", socket.display())).collect()
    }

    fn host_end(config: &Config) -> String {
        config.socket.as_ref().map_or_else(
            || format!("CID {}", config.cid),
            |socket| format!("CID {} at {}", config.cid, socket.display()),
        )
    }

    fn open(config: &mut Config, owner: &Owner) -> Result<Vec<OwnedFd>, ConfigError> {
        if config.socket.is_none() {
            config.socket = Some(host::usual_place(&owner.directory, &owner.guest, owner.index)?);
        }
        // Once more: the path may be chosen only now.
        config.check()?;
        let socket = config.socket.as_deref().ok_or(ConfigError::NoPath)?;
        Ok(vec![host::listen(socket)?])
    }

    fn make(
        config: &Config,
        descriptors: Vec<OwnedFd>,
        reach: Arc<dyn Reach>,
    ) -> Result<Arc<dyn Backend>, ConfigError> {
        config.check()?;
        let [listener] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_others| ConfigError::Descriptors)?;
        if !rustix::net::sockopt::socket_acceptconn(&listener).unwrap_or(false) {
            return Err(ConfigError::Descriptors);
        }
        rustix::io::ioctl_fionbio(&listener, true).map_err(|errno| ConfigError::Host(errno.into()))?;
        let socket = config.socket.clone().ok_or(ConfigError::NoPath)?;
        let identity = Identity {
            device_id: VIRTIO_ID_VSOCK,
            features: F_STREAM | F_NO_IMPLIED_STREAM,
            queue_sizes: QUEUE_SIZES.to_vec(),
            lanes: std::iter::once(0..QUEUE_SIZES.len()).collect(),
            config_len: size_of::<u64>(),
            max_chain_bytes: MAX_CHAIN,
        };
        let switchboard = Arc::new(Switchboard::new(reach).map_err(ConfigError::Host)?);
        let place = Place { cid: config.cid, socket, listener, switchboard, counters: Counters::default() };
        Ok(Arc::new(Self { identity, place: Arc::new(place), kept: Kept::default() }))
    }

    /// Connects to whoever waits for the guest's connections to the port `number`.
    fn reach(config: &Config, number: u32) -> io::Result<OwnedFd> {
        let socket = config.socket.as_deref().ok_or(io::ErrorKind::NotFound)?;
        host::connect(&host::place_of_port(socket, number))
    }

    fn close(config: &Config, _owner: &Owner) {
        if let Some(socket) = &config.socket {
            host::remove(socket);
        }
    }
}
