//! What an operator asks of a device that is served.

use tokio::sync::oneshot;
use virtio_backend::Operation;

use super::Broker;
use super::worker::Spawner;

/// What came of it; if it was not done, why, for people to read.
pub type Outcome = Result<(), String>;

impl<S: Spawner> Broker<S> {
    /// Has the worker of a guest, known by name or domain id, do something to a device of it, known by name.
    pub(super) fn operate(&mut self, guest: &str, device: &str, operation: Operation, reply: oneshot::Sender<Outcome>) {
        let is_meant = |domid: u16, name: Option<&str>| name == Some(guest) || guest.parse() == Ok(domid);
        let found = self.guests.iter_mut().find(|(domid, known)| is_meant(**domid, known.names.name.as_deref()));
        let Some((_, found)) = found else {
            return refuse(
                reply,
                format!("No guest {guest:?} uses a device of xen-virtio; `xen-virtio list` shows who does"),
            );
        };
        match found.devices.iter().find(|(_, known)| known.device.name == device).map(|(id, _)| *id) {
            Some(id) => found.operate(id, operation, reply),
            None => {
                let names: Vec<_> = found.devices.values().map(|known| known.device.name.as_str()).collect();
                refuse(reply, format!("Guest {guest:?} has no device {device:?}; it has: {}", names.join(", ")));
            }
        }
    }
}

fn refuse(reply: oneshot::Sender<Outcome>, why: String) {
    // Who asked may have lost patience.
    let _ = reply.send(Err(why));
}
