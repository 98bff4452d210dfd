//! A kind of device, as programs know it that serve devices: what an operator writes, what is opened
//! for it on the host, and how a device comes of both.
//!
//! Two processes may share the work: one with the host's rights opens, one without makes the device
//! of the descriptors it is handed. So everything that needs a right happens in [`Kind::open`]
//! and, while the device runs, in [`Kind::reach`].

use std::error::Error;
use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Backend, Reach};

/// What is known of a kind of device before there is one.
pub trait Kind: 'static {
    /// What the operator writes of one device: the keys of its entry in a configuration file. Unknown
    /// keys are refused; those left out have defaults.
    type Config: Clone + Debug + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Why a device cannot be: with what was expected, and what to do.
    type Error: Error + Send + Sync + 'static;

    /// In a word: `net`. The name of its entries in configuration files.
    const NAME: &'static str;

    /// The virtio device ID (virtio 1.2 §5); `None` where each device's configuration says it.
    const DEVICE_ID: Option<u32>;

    /// The virtio device ID of a device of this kind.
    fn device_id(_config: &Self::Config) -> u32 {
        Self::DEVICE_ID.unwrap_or_default()
    }

    /// What a device of this kind is called, before its number: `net`.
    fn title(_config: &Self::Config) -> String {
        Self::NAME.to_owned()
    }

    /// Checks what can be checked without looking at the host.
    ///
    /// # Errors
    /// No host could serve this.
    fn check(config: &Self::Config) -> Result<(), Self::Error>;

    /// What of the host it takes for itself alone: `tap web0`, `socket /run/web.sock`. No two devices
    /// may name the same.
    fn exclusive(config: &Self::Config) -> Vec<String>;

    /// The host's end of the device, in a few words: `tap web0 on bridge br0`.
    fn host_end(config: &Self::Config) -> String;

    /// Opens what the device needs of the host; may block. `config` is completed with what was chosen
    /// here rather than by the operator, such as a name.
    ///
    /// # Errors
    /// The host does not have it or does not give it.
    fn open(config: &mut Self::Config, owner: &Owner) -> Result<Vec<OwnedFd>, Self::Error>;

    /// Makes the device of a completed configuration and the descriptors that [`open`](Self::open)
    /// gave for it, in their order. Needs no rights: the connections that the device needs later it gets
    /// by way of `reach`, which asks for what [`reach`](Self::reach) gives.
    ///
    /// # Errors
    /// The two do not fit.
    fn make(
        config: &Self::Config,
        descriptors: Vec<OwnedFd>,
        reach: Arc<dyn Reach>,
    ) -> Result<Arc<dyn Backend>, Self::Error>;

    /// Connects to what the completed configuration names, for a device that runs. Which of it is said
    /// by `number`, whose meaning is the kind's: a port, say; 0 where there is but one. That number may
    /// be any, as it comes from where the device is, and nothing else does. May block, for seconds.
    ///
    /// # Errors
    /// Nobody is there, or the host does not allow it. Devices tell errors apart by their kind alone.
    fn reach(_config: &Self::Config, _number: u32) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes away what [`open`](Self::open) left on the host that does not go with the descriptors: a
    /// socket's name, a link. May block; what is gone already does not matter.
    fn close(_config: &Self::Config, _owner: &Owner) {}
}

/// Whose device it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, Serialize)]
pub struct Owner {
    /// The guest's name; fit to be part of a file name.
    pub guest: String,
    /// Stays the same over restarts of the guest: its UUID, or its name where it has none.
    pub identity: String,
    /// Which of the guest's devices of this kind it is, from 0.
    pub index: usize,
    /// How many vCPUs the guest has at most; 1 if nobody knows.
    pub vcpus: u16,
    /// Where sockets and links for programs on the host belong: one directory for the whole program,
    /// which exists.
    pub directory: PathBuf,
}

/// What an operator can ask of a running device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Plug the network cable in, or pull it out.
    Link {
        /// In.
        up: bool,
    },
    /// Look how large the storage is now, and let the guest know.
    Resize {
        /// It may have become smaller.
        shrink: bool,
    },
    /// Try again what the host has failed and what is held since.
    Resume,
}
