//! What the operator writes of a network card.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// How many pairs of queues a card may have; each costs the host a thread.
const QUEUES: RangeInclusive<u16> = 1..=8;

/// What virtio 1.2 §5.1.4.1 allows to tell.
const MTU: RangeInclusive<u16> = 68..=65535;

/// The longest name of a network interface (IFNAMSIZ without the final zero).
pub(crate) const LONGEST_NAME: usize = 15;

/// What the operator writes of a network card; every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The card's end on the host: the name of a tap, which is made, or taken over if there is one. Named after the
    /// guest if left out.
    pub tap: Option<String>,
    /// The tap's descriptors that the program was started with, one for each pair of queues, in place of `tap`.
    pub fds: Option<Vec<u32>>,
    /// The Linux bridge that the tap joins.
    pub bridge: Option<String>,
    /// The Open vSwitch bridge that the tap joins.
    pub ovs: Option<String>,
    /// The socket of a running passt, in place of a tap.
    pub passt: Option<PathBuf>,
    /// The card's address. Chosen if left out, and then the same at each start of the guest.
    pub mac: Option<Mac>,
    /// The largest packet in bytes, without its Ethernet header, as told to the guest and the tap: 68 to 65535.
    pub mtu: Option<u16>,
    /// Pairs of queues, 1 to 8: the guest's CPUs share them, each is worked by a thread of its own.
    pub queues: u16,
    /// Guest and host leave checksums and the cutting of large packets to whoever is last to see them.
    pub offload: bool,
}

impl Default for Config {
    fn default() -> Self {
        let (tap, fds, bridge, ovs, passt) = (None, None, None, None, None);
        Self { tap, fds, bridge, ovs, passt, mac: None, mtu: None, queues: 1, offload: true }
    }
}

/// Why a network card cannot be as it is written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The name cannot be that of an interface.
    #[error(
        "{key} = {name:?} is no name of a network interface: it takes 1 to {LONGEST_NAME} characters, without spaces, \
         slashes, colons or percent signs"
    )]
    Name {
        /// The key.
        key: &'static str,
        /// What was written.
        name: String,
    },
    /// Two keys exclude each other.
    #[error("{one} and {other} exclude each other: leave one of them out")]
    Both {
        /// One key.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Each pair of queues has a descriptor of its own.
    #[error("fds names {given} descriptors, where queues = {queues} needs one for each pair of queues")]
    Fds {
        /// How many are named.
        given: usize,
        /// How many pairs there are.
        queues: u16,
    },
    /// The program's own.
    #[error("fds names the descriptor {number}: 0 to 2 are the program's own, and a tap has one from 3 on")]
    StandardFd {
        /// What was written.
        number: u32,
    },
    /// passt serves one queue.
    #[error("queues = {queues} is not possible with passt, which serves one pair of queues: leave queues out")]
    PasstQueues {
        /// What was written.
        queues: u16,
    },
    /// The socket's path is relative, and programs have different working directories.
    #[error("passt = {path:?} has to be a path from the root: that of the socket which passt was started with")]
    PasstPath {
        /// What was written.
        path: PathBuf,
    },
    /// `mtu` is out of range.
    #[error("mtu = {mtu} is out of range: it can be {} to {}", MTU.start(), MTU.end())]
    Mtu {
        /// What was written.
        mtu: u16,
    },
    /// `queues` is out of range.
    #[error("queues = {queues} is out of range: a card has {} to {} pairs of queues", QUEUES.start(), QUEUES.end())]
    Queues {
        /// What was written.
        queues: u16,
    },
}

impl Config {
    /// Checks what can be checked without looking at the host.
    ///
    /// # Errors
    /// No host could serve this.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let names = [("tap", &self.tap), ("bridge", &self.bridge), ("ovs", &self.ovs)];
        for (key, name) in names.into_iter().filter_map(|(key, name)| Some((key, name.as_ref()?))) {
            if !can_name_an_interface(name) {
                return Err(ConfigError::Name { key, name: name.clone() });
            }
            if self.passt.is_some() {
                return Err(ConfigError::Both { one: "passt", other: key });
            }
        }
        if self.bridge.is_some() && self.ovs.is_some() {
            return Err(ConfigError::Both { one: "bridge", other: "ovs" });
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(ConfigError::Mtu { mtu });
        }
        if !QUEUES.contains(&self.queues) {
            return Err(ConfigError::Queues { queues: self.queues });
        }
        self.check_fds()?;
        self.check_passt()
    }

    /// What is handed over is set up already.
    fn check_fds(&self) -> Result<(), ConfigError> {
        let Some(fds) = &self.fds else { return Ok(()) };
        let others = [
            ("tap", self.tap.is_some()),
            ("bridge", self.bridge.is_some()),
            ("ovs", self.ovs.is_some()),
            ("passt", self.passt.is_some()),
        ];
        if let Some((other, _)) = others.into_iter().find(|(_, is_written)| *is_written) {
            return Err(ConfigError::Both { one: "fds", other });
        }
        if let Some(number) = fds.iter().find(|number| **number < 3) {
            return Err(ConfigError::StandardFd { number: *number });
        }
        if fds.len() != usize::from(self.queues) {
            return Err(ConfigError::Fds { given: fds.len(), queues: self.queues });
        }
        Ok(())
    }

    fn check_passt(&self) -> Result<(), ConfigError> {
        match &self.passt {
            Some(path) if !path.is_absolute() => Err(ConfigError::PasstPath { path: path.clone() }),
            Some(_) if self.queues != 1 => Err(ConfigError::PasstQueues { queues: self.queues }),
            _ => Ok(()),
        }
    }
}

/// As the kernel has it (dev_valid_name), but for what garbles a log, and for `%`, which stands for a number there.
fn can_name_an_interface(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(is_plain) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        toml::from_str::<Config>(text).unwrap().check().unwrap_err().to_string()
    }

    #[test]
    fn nothing_need_be_written() {
        let config: Config = toml::from_str("").unwrap();
        assert_eq!(config, Config::default());
        config.check().unwrap();
    }

    #[test]
    fn everything_can_be_written() {
        let text = "tap = 'web0'\nbridge = 'br0'\nmac = '00:16:3e:01:02:03'\nmtu = 9000\nqueues = 4\noffload = false";
        let config: Config = toml::from_str(text).unwrap();
        config.check().unwrap();
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn h10_a_bad_value_is_refused_by_its_key() {
        for (text, key) in [
            ("tap = ''", "tap = "),
            ("tap = 'sixteen-letters-'", "tap = "),
            ("tap = 'a b'", "tap = "),
            ("tap = 'tap%d'", "tap = "),
            ("bridge = '../br0'", "bridge = "),
            ("ovs = '.'", "ovs = "),
            ("mtu = 67", "mtu = 67"),
            ("queues = 0", "queues = 0"),
            ("queues = 9", "queues = 9"),
            ("passt = 'passt.socket'", "passt = "),
            ("passt = '/run/p'\nqueues = 2", "queues = 2"),
            ("passt = '/run/p'\ntap = 'web0'", "passt and tap exclude"),
            ("passt = '/run/p'\nbridge = 'br0'", "passt and bridge exclude"),
            ("passt = '/run/p'\novs = 'br0'", "passt and ovs exclude"),
            ("bridge = 'br0'\novs = 'br1'", "bridge and ovs exclude"),
            ("fds = [3]\ntap = 'web0'", "fds and tap exclude"),
            ("fds = [3]\nbridge = 'br0'", "fds and bridge exclude"),
            ("fds = [3, 4]", "fds names 2 descriptors"),
            ("fds = [2]", "fds names the descriptor 2"),
        ] {
            let message = refusal(text);
            assert!(message.starts_with(key), "{text}: {message}");
        }
    }

    #[test]
    fn h10_what_is_no_key_or_no_address_is_refused_on_reading() {
        for text in ["taps = 'web0'", "mac = '01:00:5e:00:00:01'", "mac = 'x'", "mtu = 65536", "queues = -1"] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }
}
