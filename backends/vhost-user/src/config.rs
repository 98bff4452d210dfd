//! What the operator writes, and what is found at the socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DeviceType;
use crate::device_type::FS_TAG_SIZE;
use crate::layout::Layout;

/// What the operator writes of a device whose backend is another program: its type and where it listens. The rest may
/// be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The type of the device: a name, or a virtio device ID.
    pub device: Option<DeviceType>,
    /// Where the backend listens.
    pub socket: PathBuf,
    /// What the guest calls a file system: 1 to 36 bytes. Left to the backend if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// How many queues the device has, 1 to 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Entries of each queue: a power of two, 2 to 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_size: Option<u16>,
    /// Bytes of the device's configuration space, 0 to 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_size: Option<u16>,
    /// Bytes of memory, shared with the backend, through which all data goes. The queues share it equally.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// What the backend says of itself, which [`open`](virtio_backend::Kind::open) fills in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<Found>,
}

/// What a backend says of itself when it is first met. What the guest is offered follows from it, and from then on the
/// backend, or the one that comes in its place, is held to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The features that the guest is offered.
    pub features: u64,
    /// How many queues the device has.
    pub queues: u16,
    /// Configuration space, as it is at first.
    pub config: Vec<u8>,
}

/// How many queues a device may have. One thread works them all.
pub(crate) const MOST_QUEUES: u16 = 64;

/// The largest queue: as large as a backend may be relied upon to take.
const LARGEST_QUEUE: u16 = 1024;

/// The largest configuration space: what a window of registers has room for.
const LARGEST_CONFIG: u16 = 256;

/// Much more than this serves nobody.
const MOST_MEMORY: u64 = 4 << 30;

/// Bytes of the longest socket name (`sun_path` of unix(7) without the final zero).
const LONGEST_PATH: usize = 107;

/// What is to be, checked, with the defaults of the device's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) device: DeviceType,
    pub(crate) socket: PathBuf,
    pub(crate) tag: Option<String>,
    /// What the operator asks for.
    pub(crate) queues: Option<u16>,
    /// How many there are unless the backend has fewer.
    pub(crate) usual_queues: u16,
    pub(crate) queue_size: u16,
    pub(crate) config_size: u16,
    /// What the operator asks for.
    memory: Option<u64>,
}

impl Plan {
    /// Checks what no look at the host is needed for.
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let device = config.device.ok_or(ConfigError::NoDevice)?;
        if let Some(why) = device.obstacle() {
            return Err(ConfigError::Device { device: device.id(), why });
        }
        let profile = device.profile();
        let socket = config.socket.clone();
        if !socket.is_absolute() || socket.file_name().is_none() || socket.as_os_str().len() > LONGEST_PATH {
            return Err(ConfigError::Socket { socket });
        }
        if let Some(tag) = &config.tag {
            check_tag(tag, profile.name == "fs")?;
        }
        let plan = Self {
            device,
            socket,
            tag: config.tag.clone(),
            queues: config.queues,
            usual_queues: config.queues.unwrap_or(profile.queues),
            queue_size: config.queue_size.unwrap_or(profile.queue_size),
            config_size: config.config_size.unwrap_or(profile.config_size),
            memory: config.memory,
        };
        match &plan {
            Self { queues: None, usual_queues: 0, .. } => Err(ConfigError::QueuesUnknown { device: device.id() }),
            Self { usual_queues: queues, .. } if !(1..=MOST_QUEUES).contains(queues) => {
                Err(ConfigError::Queues { queues: *queues })
            }
            Self { queue_size: size, .. } if !(2..=LARGEST_QUEUE).contains(size) || !size.is_power_of_two() => {
                Err(ConfigError::QueueSize { queue_size: *size })
            }
            Self { config_size: size, .. } if *size > LARGEST_CONFIG => {
                Err(ConfigError::ConfigSize { config_size: *size })
            }
            plan => plan.layout(plan.usual_queues).map(|_| plan.clone()),
        }
    }

    /// How the memory is shared out among so many queues.
    pub(crate) fn layout(&self, queues: u16) -> Result<Layout, ConfigError> {
        let memory = self.memory.unwrap_or(self.device.profile().queue_memory * u64::from(queues));
        let needed = Layout::least_memory(queues, self.queue_size);
        let layout = Layout::new(queues, self.queue_size, memory).filter(|_| memory <= MOST_MEMORY);
        layout.ok_or(ConfigError::Memory { memory, needed, queues, queue_size: self.queue_size })
    }
}

fn check_tag(tag: &str, is_file_system: bool) -> Result<(), ConfigError> {
    if !is_file_system {
        return Err(ConfigError::TagOfNoFileSystem);
    }
    let fits = (1..=FS_TAG_SIZE).contains(&tag.len()) && !tag.contains('\0');
    if fits { Ok(()) } else { Err(ConfigError::Tag { tag: tag.to_owned() }) }
}

/// Why a device cannot be as it is written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `device` is left out.
    #[error("The device has no type; name one, such as device = \"fs\", or write its virtio device ID")]
    NoDevice,
    /// The type cannot be served so.
    #[error("device = {device} cannot have its backend in another program: {why}")]
    Device {
        /// The virtio device ID.
        device: u32,
        /// What is in the way.
        why: &'static str,
    },
    /// `socket` is left out, or no absolute path of a file.
    #[error(
        "socket = {socket:?} is not the absolute path of a socket, of at most {LONGEST_PATH} bytes: write the one that \
         the backend listens at, such as socket = \"/run/fs.sock\""
    )]
    Socket {
        /// What was written.
        socket: PathBuf,
    },
    /// `tag` does not fit.
    #[error("tag = {tag:?} is no name for a file system: it has 1 to {FS_TAG_SIZE} bytes, none of them zero")]
    Tag {
        /// What was written.
        tag: String,
    },
    /// `tag` is for file systems.
    #[error("tag is for device = \"fs\" alone: leave it out")]
    TagOfNoFileSystem,
    /// Nothing is known of the type.
    #[error("How many queues device = {device} has is not known: write queues = ...")]
    QueuesUnknown {
        /// The virtio device ID.
        device: u32,
    },
    /// `queues` is out of range.
    #[error("queues = {queues} is out of range: a device has 1 to {MOST_QUEUES}")]
    Queues {
        /// What was written.
        queues: u16,
    },
    /// `queue_size` is impossible.
    #[error("queue_size = {queue_size} is not possible: it is a power of two, 2 to {LARGEST_QUEUE}")]
    QueueSize {
        /// What was written.
        queue_size: u16,
    },
    /// `config_size` is out of range.
    #[error("config_size = {config_size} is out of range: it can be 0 to {LARGEST_CONFIG}")]
    ConfigSize {
        /// What was written.
        config_size: u16,
    },
    /// `memory` is too small or too large.
    #[error(
        "memory = {memory} does not do for {queues} queues of {queue_size} entries: it can be {needed} to {MOST_MEMORY}"
    )]
    Memory {
        /// What was written, in bytes.
        memory: u64,
        /// The least that would do.
        needed: u64,
        /// How many queues there are.
        queues: u16,
        /// How many entries each has.
        queue_size: u16,
    },
    /// `found` is not for operators.
    #[error("found is not a key to be written: leave it out")]
    Found,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        Plan::new(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_type_and_a_socket_are_enough() {
        let plan = parse("device = 'fs'\nsocket = '/run/x.sock'").unwrap();
        assert_eq!((plan.device.id(), plan.usual_queues, plan.queue_size, plan.config_size), (26, 2, 128, 40));
        assert_eq!(plan.layout(2).unwrap().len() as u64, 64 << 20);
    }

    #[test]
    fn what_is_written_goes_before_what_is_usual() {
        let plan = parse(
            "device = 'block'\nsocket = '/run/x.sock'\nqueues = 4\nqueue_size = 256\nconfig_size = 96\n\
             memory = 33554432",
        )
        .unwrap();
        assert_eq!((plan.usual_queues, plan.queue_size, plan.config_size), (4, 256, 96));
        assert_eq!(plan.layout(4).unwrap().len(), 32 << 20);
    }

    #[test]
    fn what_is_written_is_what_is_read_back() {
        for text in [
            "device = 'fs'\nsocket = '/run/x.sock'\ntag = 'share'",
            "device = 63\nsocket = '/x'\nqueues = 1\nqueue_size = 2\nconfig_size = 0\nmemory = 4194304",
        ] {
            let config: Config = toml::from_str(text).unwrap();
            assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn h10_what_no_host_could_serve_is_refused_in_words() {
        let long = format!("device = 4\nsocket = '/{}'", "x".repeat(LONGEST_PATH));
        for (text, words) in [
            ("", "has no type"),
            ("socket = '/x'", "has no type"),
            ("device = 'fs'", "absolute path"),
            ("device = 'fs'\nsocket = 'x.sock'", "absolute path"),
            ("device = 'fs'\nsocket = '/'", "absolute path"),
            (&long, "absolute path"),
            ("device = 5\nsocket = '/x'", "by address"),
            ("device = 0\nsocket = '/x'", "no device"),
            ("device = 18\nsocket = '/x'", "configuration space"),
            ("device = 63\nsocket = '/x'", "write queues"),
            ("device = 4\nsocket = '/x'\nqueues = 0", "queues = 0"),
            ("device = 4\nsocket = '/x'\nqueues = 65", "1 to 64"),
            ("device = 4\nsocket = '/x'\nqueue_size = 0", "power of two"),
            ("device = 4\nsocket = '/x'\nqueue_size = 100", "power of two"),
            ("device = 4\nsocket = '/x'\nqueue_size = 2048", "power of two"),
            ("device = 4\nsocket = '/x'\nconfig_size = 257", "0 to 256"),
            ("device = 4\nsocket = '/x'\nmemory = 0", "it can be"),
            ("device = 4\nsocket = '/x'\nmemory = 4294967297", "it can be"),
            ("device = 4\nsocket = '/x'\ntag = 'a'", "device = \"fs\" alone"),
            ("device = 26\nsocket = '/x'\ntag = ''", "1 to 36 bytes"),
            ("device = 26\nsocket = '/x'\ntag = \"a\\u0000\"", "1 to 36 bytes"),
            ("device = 26\nsocket = '/x'\nsize = 1", "size"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn the_least_memory_that_is_told_does() {
        let needed = Layout::least_memory(3, 64);
        let text = |memory| format!("device = 4\nsocket = '/x'\nqueues = 3\nmemory = {memory}");
        assert!(parse(&text(needed)).is_ok());
        assert!(parse(&text(needed - 1)).unwrap_err().contains(&needed.to_string()));
    }
}
