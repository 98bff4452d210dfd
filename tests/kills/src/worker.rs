//! The process that is killed: the real disk and the real register file, over a guest's memory and a record that were there
//! before it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Result};
use guest_memory::{Budget, MapCache, PlainMemory, SharedMemory};
use io_bus::{Device, Written};
use virtio_backend::{Kind, Record, reach};
use virtio_disk::{Config, Disk, Format};
use virtio_mmio::{InterruptLine, Transport};

use crate::layout::{BASE, BYTES, QUEUES};
use crate::wire;

/// The word on the command line that makes a process a worker.
pub const WORD: &str = "worker";

/// An eventfd in the place of an interrupt controller.
struct Line(OwnedFd);

impl InterruptLine for Line {
    fn raise(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }
}

/// How a worker is told of a format.
pub(crate) fn word_of(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}

/// Serves the disk until it is killed, or nobody makes accesses any more. Standard input is the socket of the accesses,
/// standard output the eventfd of the interrupt. `format` is the image's, raw if nothing is said.
///
/// # Errors
/// What it was handed is not what a worker needs.
pub fn serve(format: Option<&OsStr>) -> Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let line = Line(io::stdout().as_fd().try_clone_to_owned()?);
    let [memory, record, image] = wire::receive(&socket)?;
    let memory = Arc::new(SharedMemory::of(memory, 0, BYTES).context("Cannot map the guest's memory")?);
    let cache = MapCache::new(PlainMemory::new([(BASE, memory as _)])?, Budget::default());
    let format = if format.is_some_and(|word| word == word_of(Format::Qcow2)) { Format::Qcow2 } else { Format::Raw };
    let config = Config { image: "image".into(), format, queues: Some(QUEUES), ..Config::default() };
    let disk = Disk::make(&config, vec![image], reach::directly::<Disk>(&config))?;
    let transport = Transport::recorded(disk, Arc::new(line), cache, "disk", Record::of(record)?)?;
    let socket = Arc::new(socket);
    // An access that cannot be taken is the end: whoever makes them has gone.
    while let Ok(access) = wire::take(&socket) {
        let Some(value) = access.value else {
            let mut bytes = [0; 8];
            transport.read(access.offset, bytes.get_mut(..access.len).unwrap_or_default());
            wire::answer(&socket, u64::from_le_bytes(bytes))?;
            continue;
        };
        let bytes = value.to_le_bytes();
        match transport.write(access.offset, bytes.get(..access.len).unwrap_or_default()) {
            Written::Now => wire::answer(&socket, 0)?,
            Written::Later(deferral) => {
                let socket = Arc::clone(&socket);
                // Nobody waits for the answer if it cannot be given.
                deferral.then(move || drop(wire::answer(&socket, 0)));
            }
        }
    }
    Ok(())
}
