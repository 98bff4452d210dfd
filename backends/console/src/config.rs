//! What the operator writes of a console.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ConfigError;
use crate::shared::Size;

/// The most ports a console may have.
const MOST_PORTS: usize = 16;

/// The most bytes of a port's name.
const MOST_NAME: usize = 64;

/// What a file of output may grow to unless said otherwise, in bytes.
const DEFAULT_LIMIT: u64 = 16 << 20;

/// The least that a file may be limited to: less could not even hold what is buffered.
const LEAST_LIMIT: u64 = 64 << 10;

/// Where a port ends on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sink {
    /// A pseudo-terminal, which `screen` and the like can open.
    #[default]
    Pty,
    /// A Unix stream socket that listens; one program at a time may connect.
    Socket,
    /// A file to which output is appended. There is no input.
    File,
    /// The standard input and output of the program that serves the device.
    Stdio,
    /// Output goes nowhere, and there is no input.
    Null,
}

/// A port of a console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Port {
    /// What it is called: the guest has it as `/dev/virtio-ports/NAME`. Needed for all ports but the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// See [`Sink`].
    pub sink: Sink,
    /// Socket: where it listens. File: the file, which has to be given. Pty: a link to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// File: how many bytes it may grow to, at least 64 KiB. What was in it is then moved to PATH.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Pty: the terminal itself. Not for the operator to write: it is known when the pty is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminal: Option<PathBuf>,
}

/// What the operator writes of a console; every key may be left out.
///
/// The first port's keys stand beside `cols` and `rows`; each further port is a table `port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Config {
    /// Columns of the first port's terminal, until it is resized; 0: not known.
    pub cols: u16,
    /// Rows of the first port's terminal, until it is resized; 0: not known.
    pub rows: u16,
    /// The ports, at least one. The first is the guest's console.
    pub ports: Vec<Port>,
}

impl Default for Config {
    fn default() -> Self {
        Self { cols: 0, rows: 0, ports: vec![Port::default()] }
    }
}

impl Config {
    /// The size of the first port's terminal.
    pub(crate) fn size(&self) -> Size {
        Size { cols: self.cols, rows: self.rows }
    }

    /// Checks what can be checked without looking at the host.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.ports.is_empty() || self.ports.len() > MOST_PORTS {
            return Err(ConfigError::Ports { found: self.ports.len(), most: MOST_PORTS });
        }
        if (self.cols == 0) != (self.rows == 0) {
            return Err(ConfigError::Size);
        }
        let mut names = HashSet::new();
        let mut stdio = 0;
        for (index, port) in self.ports.iter().enumerate() {
            port.check(index)?;
            if let Some(name) = &port.name
                && !names.insert(name)
            {
                return Err(ConfigError::SameName { name: name.clone() });
            }
            stdio += usize::from(port.sink == Sink::Stdio);
        }
        if stdio > 1 { Err(ConfigError::Stdio) } else { Ok(()) }
    }
}

impl Port {
    /// How many bytes a file may grow to.
    pub(crate) fn file_limit(&self) -> u64 {
        self.limit.unwrap_or(DEFAULT_LIMIT)
    }

    fn check(&self, index: usize) -> Result<(), ConfigError> {
        match &self.name {
            Some(name) if !is_name(name) => return Err(ConfigError::Name { name: name.clone(), most: MOST_NAME }),
            None if index > 0 => return Err(ConfigError::NoName { number: index }),
            _ => {}
        }
        self.check_path()?;
        if self.terminal.is_some() {
            return Err(ConfigError::Terminal);
        }
        match self.limit {
            Some(_) if self.sink != Sink::File => Err(ConfigError::LimitOfNoFile),
            Some(limit) if limit < LEAST_LIMIT => Err(ConfigError::Limit { limit, least: LEAST_LIMIT }),
            _ => Ok(()),
        }
    }

    fn check_path(&self) -> Result<(), ConfigError> {
        match (self.sink, &self.path) {
            (Sink::File, None) => Err(ConfigError::NoPath),
            (Sink::Stdio | Sink::Null, Some(_)) => Err(ConfigError::PathOfNothing),
            (_, Some(path)) if !is_usable(path) => Err(ConfigError::Path { path: path.clone() }),
            _ => Ok(()),
        }
    }
}

/// It becomes a file name on the host and in the guest. Numbers are the names of ports that have none, and `NAME.sock`
/// is the socket of port NAME.
fn is_name(name: &str) -> bool {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
    is_plain && starts_well && name.len() <= MOST_NAME && !name.ends_with(".sock")
}

fn is_usable(path: &Path) -> bool {
    path.is_absolute() && path.file_name().is_some() && !path.as_os_str().as_encoded_bytes().contains(&0)
}

/// [`Config`] in the form that is written.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    sink: Sink,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<PathBuf>,
    cols: u16,
    rows: u16,
    port: Vec<Port>,
}

impl From<Written> for Config {
    fn from(written: Written) -> Self {
        let Written { name, sink, path, limit, terminal, cols, rows, port } = written;
        let first = Port { name, sink, path, limit, terminal };
        Self { cols, rows, ports: std::iter::once(first).chain(port).collect() }
    }
}

impl From<Config> for Written {
    fn from(config: Config) -> Self {
        let mut ports = config.ports.into_iter();
        let Port { name, sink, path, limit, terminal } = ports.next().unwrap_or_default();
        Self { name, sink, path, limit, terminal, cols: config.cols, rows: config.rows, port: ports.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    fn refusal(text: &str) -> String {
        parsed(text).check().unwrap_err().to_string()
    }

    #[test]
    fn nothing_written_is_a_console_on_a_pty() {
        let config = parsed("");
        assert_eq!(config, Config::default());
        assert_eq!(config.ports[0].sink, Sink::Pty);
        config.check().unwrap();
    }

    #[test]
    fn the_first_port_is_written_at_the_top_and_others_in_tables() {
        let config = parsed(
            "sink = \"socket\"\ncols = 80\nrows = 24\n[[port]]\nname = \"agent\"\n\
             [[port]]\nname = \"log\"\nsink = \"file\"\npath = \"/var/log/web\"\nlimit = 65536",
        );
        config.check().unwrap();
        assert_eq!(config.size(), Size { cols: 80, rows: 24 });
        let sinks: Vec<_> = config.ports.iter().map(|port| port.sink).collect();
        assert_eq!(sinks, [Sink::Socket, Sink::Pty, Sink::File]);

        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn h10_keys_that_do_not_exist_are_refused() {
        assert!(toml::from_str::<Config>("sinc = \"pty\"").is_err());
        assert!(toml::from_str::<Config>("[[port]]\ncols = 80").is_err());
        assert!(toml::from_str::<Config>("sink = \"printer\"").is_err());
    }

    #[test]
    fn h10_what_no_host_could_serve_is_refused_by_its_key() {
        for (text, key) in [
            ("cols = 80", "`rows`"),
            ("name = \"../x\"", "`name`"),
            ("name = \"7\"", "`name`"),
            ("name = \"a.sock\"", "`name`"),
            ("name = \"\"", "`name`"),
            ("[[port]]\nsink = \"null\"", "`name`"),
            ("name = \"a\"\n[[port]]\nname = \"a\"", "\"a\""),
            ("sink = \"file\"", "`path`"),
            ("sink = \"null\"\npath = \"/x\"", "`path`"),
            ("path = \"run/x\"", "run/x"),
            ("path = \"/\"", "\"/\""),
            ("limit = 100000", "`limit`"),
            ("sink = \"file\"\npath = \"/x\"\nlimit = 100", "65536"),
            ("terminal = \"/dev/pts/0\"", "`terminal`"),
            ("sink = \"stdio\"\n[[port]]\nname = \"a\"\nsink = \"stdio\"", "stdio"),
        ] {
            let refusal = refusal(text);
            assert!(refusal.contains(key), "{text}: {refusal}");
        }
    }

    #[test]
    fn h10_sixteen_ports_are_the_most() {
        let ports = |count| -> String { (1..count).map(|n| format!("[[port]]\nname = \"p{n}\"\n")).collect() };
        parsed(&ports(16)).check().unwrap();
        assert!(refusal(&ports(17)).contains("16"));
    }
}
