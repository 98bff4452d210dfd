//! The network card as a device model: what the driver sees of it, and the start of its lanes.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::{io, iter};

use virtio_backend::{Backend, Identity, Kind, Operation, Owner, Reach, Record, Signals, Worker, copy_config};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use zerocopy::IntoBytes;

use crate::config_space::{ConfigSpace, Status};
use crate::control::{ControlWorker, IdleWorker};
use crate::engine::{self, Engine};
use crate::pair::{Berth, PairWorker};
use crate::shared::{Life, Shared};
use crate::{Config, Mac, NetError, features, host};

/// Entries of each queue. A packet takes one where the driver uses indirect descriptors, so this is how many it may have
/// in flight; the descriptor table then fills one page.
const QUEUE_SIZE: u16 = 256;

/// The most bytes of a buffer: of four times the largest packet nothing is lost to a driver that is generous.
const MAX_CHAIN: u64 = 256 << 10;

/// A network card.
///
/// Each pair of queues has a lane of its own and a queue of the tap; the control queue has the last lane.
pub struct Net {
    identity: Identity,
    mac: Mac,
    mtu: Option<u16>,
    pairs: u16,
    shared: Arc<Shared>,
    ports: Vec<Berth>,
    /// What the lanes now running share; it ends with the last of them, that is at reset. Held for a moment, since the
    /// guest's register accesses come here, too.
    life: Mutex<Weak<Life>>,
    /// Held by a lane that starts, while it sets up the host's end.
    starting: Mutex<()>,
}

/// What a lane is for, by what was negotiated.
enum Role {
    Pair(u16),
    Control,
    /// Its queues do not exist for the driver.
    None,
}

impl Net {
    /// A card over a host's end of someone's making.
    ///
    /// # Errors
    /// The configuration has no address, or another number of queues than the engine has ports.
    pub fn with_engine(config: &Config, engine: Engine) -> Result<Self, NetError> {
        config.check()?;
        let mac = config.mac.ok_or(NetError::NoAddress)?;
        let Engine { control, ports } = engine;
        let pairs = usize::from(config.queues);
        if ports.len() != pairs {
            return Err(NetError::Descriptors { given: ports.len(), needed: pairs });
        }
        let lanes = (0..pairs).map(|pair| 2 * pair..2 * pair + 2).chain(iter::once(2 * pairs..2 * pairs + 1));
        let identity = Identity {
            device_id: VIRTIO_ID_NET,
            features: features::offered(config, control.offloads()),
            queue_sizes: vec![QUEUE_SIZE; 2 * pairs + 1],
            lanes: lanes.collect(),
            config_len: ConfigSpace::LEN,
            max_chain_bytes: MAX_CHAIN,
        };
        Ok(Self {
            identity,
            mac,
            mtu: config.mtu,
            pairs: config.queues,
            shared: Arc::new(Shared::new(control)),
            ports: ports.into_iter().map(|port| Arc::new(Mutex::new(Some(port)))).collect(),
            life: Mutex::default(),
            starting: Mutex::default(),
        })
    }

    /// The life of the lanes that run, if any do.
    fn life(&self) -> Option<Arc<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    fn join_life(&self, features: u64) -> Arc<Life> {
        let _one_begins = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        self.life().unwrap_or_else(|| {
            let life = Arc::new(Life::begin(features, self.mac.bytes(), self.pairs, &self.shared));
            *self.life.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&life);
            // Not before it is found: what is read of the card comes from there from now on.
            life.note(&self.shared);
            life
        })
    }

    /// §5.1.2: without MQ the control queue is the third, wherever it would be with it.
    fn role(&self, lane: usize, features: u64) -> Role {
        let pairs = if features & features::MQ == 0 { 1 } else { self.pairs };
        match u16::try_from(lane) {
            Ok(lane) if lane < pairs => Role::Pair(lane),
            Ok(lane) if lane == pairs && features & features::CTRL_VQ != 0 => Role::Control,
            _ => Role::None,
        }
    }
}

impl Backend for Net {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let life = || self.life().map(|life| (life.filter.get().mac, life.is_to_announce()));
        let (mac, announce) = self.shared.kept.former().or_else(life).unwrap_or((self.mac.bytes(), false));
        let status = Status { link_up: self.shared.link_is_up(), announce };
        let space = ConfigSpace::new(mac, status, self.pairs, self.mtu.unwrap_or(0));
        copy_config(space.as_bytes(), offset, data);
    }

    fn start(&self, lane: usize, features: u64) -> io::Result<Box<dyn Worker>> {
        let (shared, pairs) = (Arc::clone(&self.shared), self.pairs);
        Ok(match self.role(lane, features) {
            Role::None => Box::new(IdleWorker),
            Role::Control => Box::new(ControlWorker { shared, life: self.join_life(features), pairs }),
            Role::Pair(pair) => {
                let port = self.ports.get(usize::from(pair)).ok_or(io::ErrorKind::NotFound)?;
                Box::new(PairWorker::new(pair, port, shared, self.join_life(features), self.mtu)?)
            }
        })
    }

    fn accepts(&self, features: u64) -> bool {
        features::are_consistent(features)
    }

    fn negotiated(&self, _features: u64) {
        self.shared.kept.note_life(|| None);
    }

    fn keep(&self, record: &Record) {
        self.shared.keep(record);
    }

    fn attach(&self, signals: Arc<dyn Signals>) {
        self.shared.attach(signals);
    }

    fn operate(&self, operation: Operation) -> Result<(), String> {
        let Operation::Link { up } = operation else {
            return Err("A network card has a cable to plug (`link`) and nothing to resize or resume".to_owned());
        };
        if self.shared.plug(up) {
            // Who is back may have been forgotten by the switches on the way, or be elsewhere.
            if let Some(life) = self.life() {
                life.set_announce(up);
                life.note(&self.shared);
            }
            self.shared.config_changed();
        }
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.counters.snapshot().pairs()
    }
}

impl Kind for Net {
    type Config = Config;
    type Error = NetError;
    const NAME: &'static str = "net";
    const DEVICE_ID: Option<u32> = Some(VIRTIO_ID_NET);

    fn check(config: &Config) -> Result<(), NetError> {
        Ok(config.check()?)
    }

    fn exclusive(config: &Config) -> Vec<String> {
        let tap = config.tap.as_ref().map(|tap| format!("tap {tap}"));
        let passt = config.passt.as_ref().map(|passt| format!("socket {}", passt.display()));
        let mac = config.mac.map(|mac| format!("address {mac}"));
        let fds = config.fds.iter().flatten().map(|number| format!("descriptor {number}"));
        [tap, passt, mac].into_iter().flatten().chain(fds).collect()
    }

    fn host_end(config: &Config) -> String {
        if let Some(passt) = &config.passt {
            return format!("passt at {}", passt.display());
        }
        if let Some(fds) = &config.fds {
            return format!("tap of descriptors {fds:?}");
        }
        let tap = config.tap.as_ref().map_or_else(|| "a tap of its own".to_owned(), |tap| format!("tap {tap}"));
        match (&config.bridge, &config.ovs) {
            (Some(bridge), _) => format!("{tap} on bridge {bridge}"),
            (None, Some(ovs)) => format!("{tap} on Open vSwitch bridge {ovs}"),
            (None, None) => tap,
        }
    }

    fn open(config: &mut Config, owner: &Owner) -> Result<Vec<OwnedFd>, NetError> {
        config.check()?;
        Ok(host::open(config, owner)?)
    }

    fn make(config: &Config, descriptors: Vec<OwnedFd>, _reach: Arc<dyn Reach>) -> Result<Arc<dyn Backend>, NetError> {
        let (given, needed) = (descriptors.len(), usize::from(config.queues));
        let unfit = || NetError::Descriptors { given, needed };
        let engine = if config.passt.is_some() {
            let [socket] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|_other_number| unfit())?;
            engine::passt(socket)
        } else if given == needed {
            engine::tap(descriptors).map_err(NetError::NoTap)?
        } else {
            return Err(unfit());
        };
        Ok(Arc::new(Self::with_engine(config, engine)?))
    }

    fn close(config: &Config, _owner: &Owner) {
        host::close(config);
    }
}
