//! Tells the guest that all its connections are gone (virtio 1.2 §5.10.6.7), after the process died that had them.
//!
//! Until the guest has heard of it nothing else goes either way. What began before would be cut off by the guest with the
//! rest, and the host would not know: a driver ends what it has without a word to the device. It has heard when it makes
//! a buffer for events available again, which it does soon, and behind all others; so all of them are taken first.

use std::time::Instant;

use virtio_backend::{Fault, Request, Ring};

use crate::hub::PATIENCE;
use crate::table::Table;

/// `struct virtio_vsock_event` with VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// How far telling has come.
pub(crate) enum Interruption {
    /// There was none, or the guest knows.
    None,
    /// The guest is to be told.
    Untold,
    /// It was told, and may take until then to hear of it. These are its other buffers for events.
    Told(Instant, Vec<Request>),
}

impl Interruption {
    /// Goes on with telling; true when there is nothing more to tell.
    ///
    /// A driver without a buffer for events is not told, nor is one waited for that does not come back to them: it hears
    /// of each connection when it uses it.
    ///
    /// # Errors
    /// As of [`Ring::pop`] and [`Ring::push`].
    pub(crate) fn is_over(&mut self, event: &mut Ring, table: &mut Table, now: Instant) -> Result<bool, Fault> {
        match std::mem::replace(self, Self::None) {
            Self::None => {}
            Self::Untold => {
                if tell(event)? {
                    let until = now + PATIENCE;
                    table.set_event_deadline(until);
                    *self = Self::Told(until, take_all(event)?);
                    event.ask_for_kicks();
                }
            }
            Self::Told(until, mut buffers) => {
                let answer = event.pop()?;
                if answer.is_none() && now < until {
                    event.ask_for_kicks();
                    *self = Self::Told(until, buffers);
                } else {
                    buffers.extend(answer);
                    put_back(event, buffers);
                }
            }
        }
        Ok(matches!(self, Self::None))
    }

    /// Gives the driver its buffers back.
    ///
    /// # Errors
    /// As of [`Ring::push`].
    pub(crate) fn give_back(&mut self, event: &mut Ring) -> Result<(), Fault> {
        match std::mem::replace(self, Self::None) {
            Self::Told(_, buffers) => buffers.into_iter().try_for_each(|buffer| event.push(buffer, 0)),
            Self::None | Self::Untold => Ok(()),
        }
    }
}

/// Puts the event into the first buffer that holds it. False if there is none.
fn tell(event: &mut Ring) -> Result<bool, Fault> {
    for _ in 0..event.size() {
        let Some(buffer) = event.pop()? else { return Ok(false) };
        let fits = buffer.writable.len() >= TRANSPORT_RESET.len();
        let written = if fits { buffer.writable.write(0, &TRANSPORT_RESET) } else { 0 };
        event.push(buffer, written)?;
        if fits {
            return Ok(true);
        }
    }
    Ok(false)
}

fn take_all(event: &mut Ring) -> Result<Vec<Request>, Fault> {
    let mut buffers = Vec::new();
    for _ in 0..event.size() {
        let Some(buffer) = event.pop()? else { break };
        buffers.push(buffer);
    }
    Ok(buffers)
}

/// Puts buffers back that were taken one behind the other, and last.
fn put_back(event: &mut Ring, buffers: Vec<Request>) {
    buffers.into_iter().rev().for_each(|buffer| event.unpop(buffer));
}
