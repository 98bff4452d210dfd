//! The console as a device model: what the driver sees of it, and the start of its lane.

use std::io;
use std::iter;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

use virtio_backend::{Backend, Identity, Kind, Owner, Reach, Record, Signals, Worker, copy_config};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use zerocopy::{Immutable, IntoBytes, little_endian};

use crate::host::Host;
use crate::shared::Shared;
use crate::worker::ConsoleWorker;
use crate::{Config, ConfigError, Port, Sink, backlog, open, queues};

/// VIRTIO_CONSOLE_F_* (§5.3.3), as bits.
mod feature {
    pub(super) const SIZE: u64 = 1 << 0;
    pub(super) const MULTIPORT: u64 = 1 << 1;
    pub(super) const EMERG_WRITE: u64 = 1 << 2;
}

/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;

/// The most bytes of a chain: more than a program of the guest can write or splice to a port at once.
const MAX_CHAIN: u64 = 4 << 20;

/// `struct virtio_console_config` (§5.3.4).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ConfigSpace {
    cols: little_endian::U16,
    rows: little_endian::U16,
    max_nr_ports: little_endian::U32,
    /// Reads as zero.
    emerg_wr: little_endian::U32,
}

/// Where `emerg_wr` starts; its low byte is what is to be printed.
const EMERG_WR: usize = 8;

/// A virtio console with one port or several.
pub struct Console {
    identity: Identity,
    names: Arc<[Option<String>]>,
    shared: Arc<Shared>,
    host: Option<JoinHandle<()>>,
}

impl Console {
    fn new(config: &Config, mut descriptors: Vec<OwnedFd>) -> Result<Self, ConfigError> {
        let ports = config.ports.len();
        let memory = descriptors.drain(..1.min(descriptors.len())).next().ok_or(ConfigError::Descriptors)?;
        let buffers = backlog::ports(memory, ports).ok_or(ConfigError::Descriptors)?;
        let shared = Arc::new(Shared::new(buffers, config.size()).map_err(ConfigError::Thread)?);
        let host = Host::new(config, descriptors, Arc::clone(&shared))?.spawn()?;
        let multiport = if ports > 1 { feature::MULTIPORT } else { 0 };
        let queues = queues::count(ports);
        let identity = Identity {
            device_id: VIRTIO_ID_CONSOLE,
            features: feature::SIZE | feature::EMERG_WRITE | multiport,
            queue_sizes: vec![QUEUE_SIZE; queues],
            // What a console moves is not worth a second thread.
            lanes: iter::once(0..queues).collect(),
            config_len: size_of::<ConfigSpace>(),
            max_chain_bytes: MAX_CHAIN,
        };
        let names = config.ports.iter().map(|port| port.name.clone()).collect();
        Ok(Self { identity, names, shared, host: Some(host) })
    }
}

impl Backend for Console {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let size = self.shared.size();
        let config = ConfigSpace {
            cols: size.cols.into(),
            rows: size.rows.into(),
            max_nr_ports: u32::try_from(self.names.len()).unwrap_or(u32::MAX).into(),
            emerg_wr: 0.into(),
        };
        copy_config(config.as_bytes(), offset, data);
    }

    /// §5.3.5.1: also before the driver has set anything up, so there may be no lane.
    fn write_config(&self, offset: usize, data: &[u8]) {
        if let (EMERG_WR, Some(byte), Some(port)) = (offset, data.first(), self.shared.ports.first()) {
            self.shared.offered(port.force(&[*byte]));
            self.shared.counters.emergency_bytes.fetch_add(1, Relaxed);
        }
    }

    fn start(&self, _lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        let is_multiport = features & feature::MULTIPORT != 0;
        Ok(Box::new(ConsoleWorker::new(Arc::clone(&self.shared), Arc::clone(&self.names), is_multiport)))
    }

    fn negotiated(&self, _features: u64) {
        self.shared.kept.clear();
    }

    fn keep(&self, record: &Record) {
        self.shared.kept.keep(record);
    }

    fn attach(&self, signals: Arc<dyn Signals>) {
        self.shared.attach(signals);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.counters.snapshot().pairs()
    }
}

impl Drop for Console {
    /// The host thread writes what it can, and lets go of its descriptors before this returns.
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(host) = self.host.take() {
            // It does not panic; if it did, that has been told.
            let _ = host.join();
        }
    }
}

impl Kind for Console {
    type Config = Config;
    type Error = ConfigError;
    const NAME: &'static str = "console";
    const DEVICE_ID: Option<u32> = Some(VIRTIO_ID_CONSOLE);

    fn check(config: &Config) -> Result<(), ConfigError> {
        config.check()
    }

    fn exclusive(config: &Config) -> Vec<String> {
        config.ports.iter().flat_map(exclusive).collect()
    }

    fn host_end(config: &Config) -> String {
        config.ports.iter().map(host_end).collect::<Vec<_>>().join(", ")
    }

    fn open(config: &mut Config, owner: &Owner) -> Result<Vec<OwnedFd>, ConfigError> {
        open::open(config, owner).inspect_err(|_| open::close(config, owner))
    }

    fn make(
        config: &Config,
        descriptors: Vec<OwnedFd>,
        _reach: Arc<dyn Reach>,
    ) -> Result<Arc<dyn Backend>, ConfigError> {
        Ok(Arc::new(Self::new(config, descriptors)?))
    }

    fn close(config: &Config, owner: &Owner) {
        open::close(config, owner);
    }
}

fn exclusive(port: &Port) -> Vec<String> {
    match (port.sink, &port.path) {
        (Sink::Stdio, _) => vec!["standard input and output".to_owned()],
        (Sink::File, Some(path)) => vec![format!("file {}", path.display()), format!("file {}.1", path.display())],
        (Sink::Pty | Sink::Socket, Some(path)) => vec![format!("file {}", path.display())],
        _ => Vec::new(),
    }
}

fn host_end(port: &Port) -> String {
    let (kind, place) = match port.sink {
        Sink::Pty => ("pty", port.path.as_ref()),
        Sink::Socket => ("socket", port.path.as_ref()),
        Sink::File => ("file", port.path.as_ref()),
        Sink::Stdio => ("standard input and output", None),
        Sink::Null => ("nothing", None),
    };
    place.map_or_else(|| kind.to_owned(), |path| format!("{kind} {}", path.display()))
}
