//! What the operator writes.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What the operator writes of it; every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The guest's context ID, 3 to 4294967294. Only the guest and its programs see it: guests may have the same.
    pub cid: u64,
    /// Where programs on the host connect to; to this name an underscore and a port are appended where the guest does.
    /// At first `None` for a place of its own, which [`open`](virtio_backend::Kind::open) fills in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// The lowest context ID of a guest (virtio 1.2 §5.10.4).
const FIRST_CID: u64 = 3;

/// The highest: the one behind it means any.
const LAST_CID: u64 = 0xffff_fffe;

/// Bytes of the longest socket name (`sun_path` of unix(7) without the final zero), less `_` and a port of ten digits.
const MOST_PATH_BYTES: usize = 107 - 11;

impl Default for Config {
    fn default() -> Self {
        Self { cid: FIRST_CID, socket: None }
    }
}

impl Config {
    /// Checks what no look at the host is needed for.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if !(FIRST_CID..=LAST_CID).contains(&self.cid) {
            return Err(ConfigError::Cid { cid: self.cid });
        }
        self.socket.as_deref().map_or(Ok(()), check_path)
    }
}

fn check_path(socket: &Path) -> Result<(), ConfigError> {
    if !socket.is_absolute() || socket.file_name().is_none() {
        return Err(ConfigError::Relative { socket: socket.to_owned() });
    }
    if socket.as_os_str().len() > MOST_PATH_BYTES {
        return Err(ConfigError::TooLong { socket: socket.to_owned() });
    }
    Ok(())
}

/// Why it cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `cid` is reserved or too large.
    #[error("cid = {cid} is no context ID of a guest: choose one from {FIRST_CID} to {LAST_CID}")]
    Cid {
        /// What was written.
        cid: u64,
    },
    /// `socket` is no absolute path of a file.
    #[error("socket = {socket:?} is not the absolute path of a socket, such as /run/web.sock")]
    Relative {
        /// What was written.
        socket: PathBuf,
    },
    /// `socket` is too long.
    #[error(
        "socket = {socket:?} is too long: a socket's path with a port behind it has at most 107 bytes; use one of at most {MOST_PATH_BYTES}"
    )]
    TooLong {
        /// What was written, or chosen.
        socket: PathBuf,
    },
    /// Something else is there already.
    #[error("{socket:?} exists and is not a socket: remove it, or choose another path by socket = ")]
    NoSocket {
        /// Where.
        socket: PathBuf,
    },
    /// A program listens there.
    #[error("Another program listens at {socket:?}: end it, or choose another path by socket = ")]
    InUse {
        /// Where.
        socket: PathBuf,
    },
    /// The socket cannot be made.
    #[error("Cannot listen at {socket:?}")]
    Listen {
        /// Where.
        socket: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// The host has no descriptor left.
    #[error("The host does not give what the device needs")]
    Host(#[source] io::Error),
    /// It came with other descriptors than it needs: a bug.
    #[error("The device came with other descriptors than the one of its listening socket")]
    Descriptors,
    /// The configuration was not completed by `open`: a bug.
    #[error("The device came without the path of its socket")]
    NoPath,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn every_key_may_be_left_out() {
        assert_eq!(parse(""), Ok(Config { cid: 3, socket: None }));
    }

    #[test]
    fn what_is_written_is_what_is_read_back() {
        let config = parse("cid = 4294967294\nsocket = '/run/a.sock'").unwrap();
        assert_eq!(parse(&toml::to_string(&config).unwrap()), Ok(config));
        assert_eq!(parse(&toml::to_string(&Config::default()).unwrap()), Ok(Config::default()));
    }

    #[test]
    fn spec_5_10_4_2_reserved_context_ids_are_refused_with_the_range() {
        for cid in [0u64, 1, 2, 0xffff_ffff, 1 << 32] {
            let error = parse(&format!("cid = {cid}")).unwrap_err();
            assert!(error.contains(&format!("cid = {cid} ")) && error.contains("3 to 4294967294"), "{error}");
        }
    }

    #[test]
    fn h10_odd_values_are_refused_in_words() {
        let long = format!("socket = '/{}'", "x".repeat(MOST_PATH_BYTES));
        for (text, word) in [
            ("cid = -1", "cid"),
            ("cid = 'three'", "cid"),
            ("socket = ''", "absolute"),
            ("socket = 'web.sock'", "absolute"),
            ("socket = '/'", "absolute"),
            (&long, "too long"),
            ("sockets = '/run/a'", "sockets"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
