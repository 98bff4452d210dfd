//! From what the operator wrote to an export, and from that to the storage of a disk.

use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::{Config, DiskError, Format, Plan, Storage};

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

/// Connects, with a connection for each lane. What does not fit the export is told now, while someone waits for the
/// answer.
pub(crate) fn open(config: &Config) -> Result<Vec<OwnedFd>, DiskError> {
    let candidate = Candidate::look(Address::parse(&config.image)?).map_err(|source| failed(config, source))?;
    let plan = Plan::new(config, &candidate)?;
    candidate.into_sockets(plan.queues).map_err(|source| failed(config, source))
}

/// Begins with what [`open`] has given.
pub(crate) fn make(config: &Config, sockets: Vec<OwnedFd>) -> Result<Box<dyn Storage>, DiskError> {
    let patience = Patience { answer: seconds(config.answer_timeout), reconnect: seconds(config.reconnect_timeout) };
    let export = Nbd::begin(Address::parse(&config.image)?, patience, sockets);
    Ok(Box::new(export.map_err(|source| failed(config, source))?))
}

fn seconds(seconds: u32) -> Option<Duration> {
    NonZeroU32::new(seconds).map(|seconds| Duration::from_secs(seconds.get().into()))
}

fn failed(config: &Config, source: NbdError) -> DiskError {
    DiskError::Nbd { image: config.image.display().to_string(), source }
}
