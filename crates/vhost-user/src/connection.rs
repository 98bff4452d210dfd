//! One front-end, from its first message to its last.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::PollFlags;
use vhost::vhost_user::{BackendReqHandler, Error};
use virtio_backend::{Fault, guarded};

use crate::device::Device;
use crate::early::EarlyEnable;
use crate::message::Message;
use crate::server::{Stop, Stopped};
use crate::session::Session;

/// How often a message is looked for of which a part has arrived, in milliseconds. Front-ends send each in one piece.
const PARTIAL_RETRY_MS: u32 = 10;

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
///
/// The socket is closed last: when the front-end sees that, no request moves any more, and it may read from the rings
/// what has been done.
pub(crate) fn serve(device: &Arc<Device>, socket: UnixStream, stop: &Stop) -> io::Result<()> {
    let session = Arc::new(Mutex::new(Session::new(device.clone())?));
    let mut handler = BackendReqHandler::from_stream(socket.try_clone()?, session.clone());
    tracing::info!(name: "vhost.connected", device = device.name, "A front-end has connected");
    let end = converse(&mut handler, &session, &socket, stop);
    lock(&session).end();
    device.line.disconnect();
    tell(device, end);
    Ok(())
}

/// Handles one message after the other.
fn converse(
    handler: &mut BackendReqHandler<Mutex<Session>>,
    session: &Mutex<Session>,
    socket: &UnixStream,
    stop: &Stop,
) -> End {
    loop {
        let Ok(message) = next_message(socket, stop) else { return End::Stopped };
        lock(session).announce(message.channel(socket));
        match guarded(|| Ok(handle_one(handler, session, socket))) {
            Ok(Ok(())) => {}
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

/// Waits until a message can be read and answered without waiting, or there will be none.
fn next_message(socket: &UnixStream, stop: &Stop) -> Result<Message, Stopped> {
    loop {
        let ready = stop.wait_for(socket, PollFlags::IN | PollFlags::RDHUP)?;
        // An answer is far shorter than what a socket holds that is writable.
        stop.wait_for(socket, PollFlags::OUT)?;
        let message = Message::peek(socket);
        if message.is_whole(socket) || ready.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Ok(message);
        }
        stop.pause(PARTIAL_RETRY_MS)?;
    }
}

/// After a panic it is only ended.
fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
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
