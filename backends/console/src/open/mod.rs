//! What a console needs of the host: opened by whoever has the rights, for a device made by someone who has none.
//!
//! First the memory of the ports' buffers. Then, in order, the descriptors of each port: of a pty, its master; of a socket, the listener; of a file, the file and its
//! predecessor; of the standard input and output, both. Behind them one inotify descriptor that tells when somebody
//! opens a pty, if there is one.

mod file;
mod place;
mod pty;
mod socket;
mod stdio;

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify;
use virtio_backend::Owner;

use crate::{Config, ConfigError, Port, Sink, backlog};

/// Opens everything and leaves links to it where people look for them.
pub(crate) fn open(config: &mut Config, owner: &Owner) -> Result<Vec<OwnedFd>, ConfigError> {
    make_directory(&place::directory(owner))?;
    let size = config.size();
    let mut descriptors = vec![backlog::memory(config.ports.len()).map_err(ConfigError::Memory)?];
    for (index, port) in config.ports.iter_mut().enumerate() {
        match port.sink {
            Sink::Pty => {
                port.path.get_or_insert_with(|| place::of_port(owner, index, port.name.as_deref()));
                let (master, terminal) = pty::open((index == 0).then_some(size))?;
                port.terminal = Some(terminal);
                descriptors.push(master);
            }
            Sink::Socket => {
                let path = port.path.get_or_insert_with(|| place::socket(owner, index, port.name.as_deref()));
                descriptors.push(socket::listen(path)?);
            }
            Sink::File => descriptors.extend(file::open(port.path.as_deref().ok_or(ConfigError::NoPath)?)?),
            Sink::Stdio => descriptors.extend(stdio::open()?),
            Sink::Null => {}
        }
        for link in links(owner, index, port) {
            if let Some(end) = end(port) {
                place::link(&link, end)?;
            }
        }
    }
    descriptors.extend(openings(config)?);
    Ok(descriptors)
}

/// Takes away what [`open`] left, unless someone else has put something in its place.
pub(crate) fn close(config: &Config, owner: &Owner) {
    for (index, port) in config.ports.iter().enumerate() {
        if let Some(end) = end(port) {
            links(owner, index, port).iter().for_each(|link| place::unlink(link, end));
        }
        if let (Sink::Socket, Some(path)) = (port.sink, &port.path) {
            socket::remove(path);
        }
    }
    // Fails as long as another console of the guest is in it.
    let _ = std::fs::remove_dir(place::directory(owner));
}

/// Where a port leads.
fn end(port: &Port) -> Option<&Path> {
    match port.sink {
        Sink::Pty => port.terminal.as_deref(),
        Sink::Socket | Sink::File => port.path.as_deref(),
        Sink::Stdio | Sink::Null => None,
    }
}

/// The links to that.
fn links(owner: &Owner, index: usize, port: &Port) -> Vec<PathBuf> {
    let mut links = vec![place::of_port(owner, index, None)];
    links.extend(port.name.as_deref().map(|name| place::of_port(owner, index, Some(name))));
    links.extend(port.path.clone().filter(|path| port.sink == Sink::Pty && !links.contains(path)));
    links.retain(|link| end(port) != Some(link));
    links
}

/// Only its owner may look into it: who can open a console can log in.
fn make_directory(path: &Path) -> Result<(), ConfigError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| failed("make the directory", path, source))
}

/// A pty's master cannot tell when somebody comes; its file in /dev/pts can.
fn openings(config: &Config) -> Result<Option<OwnedFd>, ConfigError> {
    let terminals: Vec<_> = config.ports.iter().filter_map(|port| port.terminal.as_deref()).collect();
    if terminals.is_empty() {
        return Ok(None);
    }
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let doing = "watch for readers (the limit is fs.inotify.max_user_instances)";
    let openings = inotify::init(flags).map_err(|errno| ConfigError::Pty { doing, source: errno.into() })?;
    for terminal in terminals {
        inotify::add_watch(&openings, terminal, inotify::WatchFlags::OPEN)
            .map_err(|errno| failed("watch for readers of", terminal, errno.into()))?;
    }
    Ok(Some(openings))
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Host { doing, path: path.to_owned(), source }
}
