//! From what the operator wrote to an export, and from that to the storage of a disk.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_backend::Reach;

use crate::config::Found;
use crate::{Config, DiskError, Format, Plan, Storage};

use super::dial::dial;
use super::dialer::PATIENCE;
use super::patient::Deadline;
use super::shared::chain;
use super::{Address, Candidate, Nbd, NbdError, Patience};

/// Whether the image is an export.
pub(crate) fn is_meant(config: &Config) -> bool {
    Address::is_meant(&config.image)
}

/// Checks what can be checked without the server.
pub(crate) fn check(config: &Config) -> Result<(), DiskError> {
    Address::parse(&config.image)?;
    if config.format == Format::Raw {
        Ok(())
    } else {
        Err(DiskError::FormatOfExport { image: config.image.display().to_string() })
    }
}

/// Connects, with a connection for each lane, and notes what the export is. What does not fit it is told now, while someone
/// waits for the answer.
pub(crate) fn open(config: &mut Config) -> Result<Vec<OwnedFd>, DiskError> {
    let candidate = Candidate::look(Address::parse(&config.image)?).map_err(|source| failed(config, source))?;
    let plan = Plan::new(config, &candidate)?;
    config.found = Some(Found::Export(candidate.export()));
    candidate.into_sockets(plan.queues).map_err(|source| failed(config, source))
}

/// Begins with what [`open`] has given.
pub(crate) fn make(
    config: &Config,
    sockets: Vec<OwnedFd>,
    reach: Arc<dyn Reach>,
) -> Result<Box<dyn Storage>, DiskError> {
    let Some(Found::Export(found)) = config.found else { return Err(DiskError::NotFound) };
    let patience = Patience { answer: seconds(config.answer_timeout), reconnect: seconds(config.reconnect_timeout) };
    let export = Nbd::begin(Address::parse(&config.image)?, patience, sockets, found, reach);
    Ok(Box::new(export.map_err(|source| failed(config, source))?))
}

/// Connects once more, for a lane that has lost its connection.
pub(crate) fn reach(config: &Config) -> io::Result<OwnedFd> {
    let address = Address::parse(&config.image).map_err(io::Error::other)?;
    dial(&address, Deadline::after(PATIENCE)).map_err(|error| match error {
        NbdError::Connect { source, .. } => source,
        error => io::Error::other(chain(&error)),
    })
}

fn seconds(seconds: u32) -> Option<Duration> {
    NonZeroU32::new(seconds).map(|seconds| Duration::from_secs(seconds.get().into()))
}

fn failed(config: &Config, source: NbdError) -> DiskError {
    DiskError::Nbd { image: config.image.display().to_string(), source }
}
