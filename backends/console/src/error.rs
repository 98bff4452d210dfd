//! Why a console cannot be served.

use std::io;
use std::path::PathBuf;

/// Why a console cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Too many ports, or none.
    #[error("A console has 1 to {most} ports, and this has {found}; take some `[[console.port]]` away")]
    Ports {
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// One half of a size.
    #[error("`cols` and `rows` go together; give both or neither, and neither as 0")]
    Size,
    /// A name that is none.
    #[error(
        "`name` {name:?} is not fit for a port: a letter first, then letters, digits, '.', '_' and '-', {most} in all \
         at most, and no .sock at the end"
    )]
    Name {
        /// What was written.
        name: String,
        /// Bytes it may have.
        most: usize,
    },
    /// A further port without a name.
    #[error("Port {number} of the console has no `name`; only the first may do without")]
    NoName {
        /// Which, from 0.
        number: usize,
    },
    /// Two ports with one name.
    #[error("Two ports of the console are called {name:?}; change the `name` of one")]
    SameName {
        /// The name.
        name: String,
    },
    /// A file without a path.
    #[error("A port with `sink = \"file\"` needs a `path`")]
    NoPath,
    /// A path that leads nowhere.
    #[error("`path` is for ports with `sink` pty, socket or file; take it away")]
    PathOfNothing,
    /// A path that cannot be used.
    #[error("`path` {path:?} is not the absolute path of a file; write it from the root on")]
    Path {
        /// What was written.
        path: PathBuf,
    },
    /// A limit where there is nothing to limit.
    #[error("`limit` is for ports with `sink = \"file\"`; take it away")]
    LimitOfNoFile,
    /// A limit that is too small.
    #[error("`limit` is {limit} bytes and must be {least} at least")]
    Limit {
        /// What was written.
        limit: u64,
        /// The least it may be.
        least: u64,
    },
    /// The operator wrote what is not his.
    #[error("`terminal` is not to be written: a pty is given its name when it is opened. Use `path` for a link to it")]
    Terminal,
    /// Two ports on one terminal.
    #[error("Two ports of the console have `sink = \"stdio\"`, and there is one terminal; change one of them")]
    Stdio,
    /// The host did not do it.
    #[error("Cannot {doing} {}", path.display())]
    Host {
        /// What was to be done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// No pty is to be had.
    #[error("Cannot {doing} for a port of the console")]
    Pty {
        /// What was to be done.
        doing: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens there.
    #[error("Another program listens on {}; stop it, or give the port another `path`", path.display())]
    SocketInUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is no {wanted}; move it away, or give the port another `path`", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What was expected there.
        wanted: &'static str,
    },
    /// A socket's path has little room in the kernel's interface.
    #[error(
        "{} is too long for a socket, which has room for {most} bytes; give the port a shorter `path`", path.display()
    )]
    LongPath {
        /// Where.
        path: PathBuf,
        /// Bytes it may have.
        most: usize,
    },
    /// The program's terminal cannot be used.
    #[error(
        "Cannot use the program's standard {which} for `sink = \"stdio\"`; it must be a terminal, a pipe or a file, as \
         when `serve` is started in a shell"
    )]
    NoStdio {
        /// Input or output.
        which: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// No memory or no descriptor is to be had.
    #[error("Cannot have memory for the console's buffers")]
    Memory(#[source] io::Error),
    /// It came with other descriptors than it needs.
    #[error("The console came with other descriptors than its ports need")]
    Descriptors,
    /// No thread or no event descriptor is to be had.
    #[error("Cannot start the console's thread")]
    Thread(#[source] io::Error),
}
