//! Meeting a backend: for the first time, when the device is made of what it says, and again, when it is held to that.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use virtio_backend::features::{DEVICE_FEATURES, VERSION_1};

use crate::config::{Found, Plan};
use crate::config_space::Own;
use crate::connection::Connection;
use crate::device_type::Profile;
use crate::wire::{ConnectionError, Wire};
use crate::{ConfigError, VhostUserError};

/// How long a backend may take to listen: it may have been started a moment before the guest.
const STARTING: Duration = Duration::from_secs(2);
const STARTING_STEP: Duration = Duration::from_millis(50);

/// Connects to a backend and asks what it is. Blocks.
///
/// The connection is to be kept: many backends serve a single one, and end with it.
pub(crate) fn meet(plan: &Plan) -> Result<(Connection, Found), VhostUserError> {
    let socket = || plan.socket.clone();
    let wire =
        connect_when_there(&plan.socket).map_err(|source| VhostUserError::Unreachable { socket: socket(), source })?;
    let no_backend = |source| VhostUserError::NoBackend { socket: socket(), source };
    let mut connection = Connection::claim(wire).map_err(no_backend)?;
    if connection.features() & VERSION_1 == 0 {
        return Err(VhostUserError::Legacy { socket: socket() });
    }
    let profile = plan.device.profile();
    let has = if profile.counts_queues { connection.talk().queue_count().map_err(no_backend)? } else { None };
    let queues = agree_on_queues(plan, has)?;
    let told = connection.talk().config(plan.config_size).map_err(|error| match error {
        ConnectionError::Refused(_) => VhostUserError::ConfigSize { socket: socket(), size: plan.config_size },
        error => no_backend(error),
    })?;
    let features = offered(&profile, &connection);
    let mut config = told.map_or_else(|| config_of_ours(plan, &profile), Ok)?;
    own(plan, queues).complete(&mut config);
    Ok((connection, Found { features, queues, config }))
}

/// Meets a backend in the place of one that is gone, on a connection to it.
pub(crate) fn meet_again(socket: OwnedFd, plan: &Plan, found: &Found) -> Result<Connection, ConnectionError> {
    let mut connection = Connection::claim(Wire::over(socket)?)?;
    hold_to(&mut connection, plan, found)?;
    Ok(connection)
}

/// Sees that a backend is still what the guest was told of, and lets it speak.
pub(crate) fn hold_to(connection: &mut Connection, plan: &Plan, found: &Found) -> Result<(), ConnectionError> {
    let lacks = (found.features | VERSION_1) & !connection.features();
    if lacks != 0 {
        return Err(ConnectionError::Changed("it lacks features that the guest was offered"));
    }
    let has = if plan.device.profile().counts_queues { connection.talk().queue_count()? } else { None };
    if has.is_some_and(|has| has < found.queues.into()) {
        return Err(ConnectionError::Changed("it has fewer queues"));
    }
    connection.talk().open_channel()
}

/// What of configuration space is not left to the backend.
pub(crate) fn own(plan: &Plan, queues: u16) -> Own {
    let Profile { queue_count, most_segments, .. } = plan.device.profile();
    // Beside a header and a status.
    let segments = u32::from(plan.queue_size.saturating_sub(2));
    Own {
        queues: queue_count.map(|count| (count, queues)),
        most_segments: most_segments.map(|at| (at, segments)),
        tag: plan.tag.clone(),
    }
}

fn connect_when_there(socket: &Path) -> io::Result<Wire> {
    let deadline = Instant::now() + STARTING;
    loop {
        match Wire::connect(socket) {
            Err(error) if may_come(&error) && Instant::now() < deadline => thread::sleep(STARTING_STEP),
            outcome => return outcome,
        }
    }
}

fn may_come(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
}

fn agree_on_queues(plan: &Plan, has: Option<u64>) -> Result<u16, VhostUserError> {
    let queues = match has {
        None => plan.usual_queues,
        Some(has) if has == 0 || plan.queues.is_some_and(|wanted| has < wanted.into()) => {
            return Err(VhostUserError::Queues { socket: plan.socket.clone(), has });
        }
        Some(has) => u16::try_from(has).unwrap_or(u16::MAX).min(plan.usual_queues),
    };
    plan.layout(queues).map(|_| queues).map_err(ConfigError::into)
}

/// The features that the guest is offered. Those of rings are not among them: the guest's rings are not the backend's.
fn offered(profile: &Profile, connection: &Connection) -> u64 {
    let untold = if connection.has_config() { 0 } else { profile.told_in_config };
    connection.features() & DEVICE_FEATURES & !profile.withheld & !untold
}

/// Configuration space where the backend does not tell of it.
fn config_of_ours(plan: &Plan, profile: &Profile) -> Result<Vec<u8>, VhostUserError> {
    let (device, size) = (plan.device, plan.config_size);
    if size == 0 || profile.told_in_config != 0 || plan.tag.is_some() {
        return Ok(vec![0; size.into()]);
    }
    let remedy = if profile.name == "fs" { ", and write tag = \"...\", a name for the file system" } else { "" };
    Err(VhostUserError::NoConfig { socket: plan.socket.clone(), device, size, remedy })
}
