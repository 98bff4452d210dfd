//! One front-end, from its first message to its last.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::PollFlags;
use vhost::vhost_user::{BackendReqHandler, Error};
use virtio_backend::{Fault, guarded};

use crate::channel::Channel;
use crate::device::Device;
use crate::early::EarlyEnable;
use crate::server::Stop;
use crate::session::Session;

/// Why a connection ended.
enum End {
    /// The device is to stop.
    Stopped,
    /// The front-end has gone.
    Closed,
    /// It was told to go.
    Broken(Error),
    /// We failed it.
    Failed(Fault),
}

/// Serves a front-end until it goes, breaks the protocol, or the device is to stop. Nothing of it is left then: not a
/// request, not a thread, not a page.
pub(crate) fn serve(device: &Arc<Device>, socket: &UnixStream, stop: &Stop) -> io::Result<()> {
    let session = Arc::new(Mutex::new(Session::new(device.clone())?));
    // It holds the socket until everything has ended: to a front-end, a closed one means that no request will move any
    // more, and that it may read from the rings what has been done.
    let mut handler = BackendReqHandler::from_stream(socket.try_clone()?, session.clone());
    tracing::info!(name: "vhost.connected", device = device.name, "A front-end has connected");
    let end = converse(device, &mut handler, &session, socket, stop);
    session.lock().unwrap_or_else(PoisonError::into_inner).end();
    device.line.disconnect();
    tell(device, end);
    Ok(())
}

/// Handles one message after the other.
fn converse(
    device: &Device,
    handler: &mut BackendReqHandler<Mutex<Session>>,
    session: &Mutex<Session>,
    socket: &UnixStream,
    stop: &Stop,
) -> End {
    loop {
        // An answer is far shorter than what a socket holds that is writable: to send it does not block.
        let ready = [PollFlags::IN, PollFlags::OUT].into_iter().try_for_each(|side| stop.wait_for(socket, side));
        if ready.is_err() {
            return End::Stopped;
        }
        let channel = Channel::peek(socket);
        match guarded(|| Ok(handle_one(handler, session, socket))) {
            Ok(Ok(())) => channel.into_iter().for_each(|channel| device.line.set_channel(channel)),
            Ok(Err(_)) if stop.is_asked_for() => return End::Stopped,
            Ok(Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_))) => return End::Closed,
            Ok(Err(error)) => return End::Broken(error),
            Err(fault) => return End::Failed(fault),
        }
    }
}

fn handle_one(
    handler: &mut BackendReqHandler<Mutex<Session>>,
    session: &Mutex<Session>,
    socket: &UnixStream,
) -> Result<(), Error> {
    let enable = EarlyEnable::peek(socket);
    match (handler.handle_request(), enable) {
        (Err(Error::InactiveFeature(_)), Some(enable)) => enable.perform(session, socket),
        (result, _) => result,
    }
}

fn tell(device: &Device, end: End) {
    let device = &device.name;
    match end {
        End::Stopped => tracing::info!(name: "vhost.stopped", device, "The connection ends with the device"),
        End::Closed => tracing::info!(name: "vhost.closed", device, "The front-end has gone"),
        End::Broken(error) => {
            tracing::warn!(name: "vhost.broken", device, %error, "The front-end broke the protocol and is let go");
        }
        End::Failed(fault) => tracing::error!(name: "vhost.failed", device, %fault, "The connection ends"),
    }
}
