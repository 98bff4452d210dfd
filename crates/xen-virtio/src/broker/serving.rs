//! What a worker is told of the devices that it is to serve, and the worker that is told.

use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_backend::Record;

use super::guest::Served;
use super::prepare::Prepared;
use super::worker::{Spawner, Worker};
use super::{Broker, postponed};
use crate::model::DeviceId;
use crate::protocol::Order;
use crate::toolstack::events::Event;
use crate::toolstack::libxl::{self, Node};
use crate::toolstack::{Toolstack, nodes};

impl<S: Spawner> Broker<S> {
    /// Claims the window at once: nobody keeps the guest from touching it.
    pub(super) async fn reserve(&mut self, node: Node) -> Option<Event> {
        let place = match &self.toolstack {
            Toolstack::Static(file) => file.place(node),
            Toolstack::Libxl(store) => match nodes::keys(store, node, &libxl::PLACE_KEYS).await {
                // What is wrong with them, the preparation will say.
                Ok(keys) => libxl::place(&keys).ok(),
                Err(error) => {
                    postponed(&error);
                    None
                }
            },
        };
        if let Err(error) = self.need_worker(node.domid) {
            return Some(Event::WorkerEnded(format!("{error:#}")));
        }
        if let Some(place) = place {
            if let Some(guest) = self.guests.get_mut(&node.domid) {
                guest.note_window(node.id, place);
            }
            self.tell(node.domid, &Order::Reserve { id: node.id, place });
        }
        None
    }

    /// Starts the guest's worker, if it has none.
    fn need_worker(&mut self, domid: u16) -> anyhow::Result<()> {
        let has_one = self.has_worker(domid);
        if has_one { Ok(()) } else { self.start_worker(domid) }
    }

    /// Starts a worker: the guest's first, or one that goes on where another died.
    pub(super) fn start_worker(&mut self, domid: u16) -> anyhow::Result<()> {
        let guest = self.guests.entry(domid).or_default();
        let former = guest.former();
        let follows = former.is_some();
        let worker = Worker::watch(domid, self.spawner.spawn(domid, former)?, self.heard.clone())?;
        // Of what was let go of, nobody will speak again; the guest may look for it all the same.
        for id in guest.windows.keys().filter(|id| !guest.lifecycle.needs_window(**id)) {
            worker.tell(&Order::Vacate { id: *id }, &[]);
        }
        guest.worker = Some(Arc::new(worker));
        guest.follows = follows;
        Ok(())
    }

    /// Has the worker serve a device: one that was prepared, or that a worker before served.
    pub(super) fn attach(&mut self, domid: u16, id: DeviceId) -> Option<Event> {
        let guest = self.guests.get_mut(&domid)?;
        if let Some(Prepared { device, descriptors }) = guest.prepared.remove(&id) {
            let record = match Record::new() {
                Ok(record) => record,
                Err(error) => return Some(Event::Refused(id, format!("Cannot make the record of a device: {error}"))),
            };
            guest.note_window(id, device.place);
            guest.devices.insert(id, Served { device, descriptors, record });
        }
        if let Err(error) = self.need_worker(domid) {
            return Some(Event::WorkerEnded(format!("{error:#}")));
        }
        let guest = self.guests.get(&domid)?;
        let Served { device, descriptors, record } = guest.devices.get(&id)?;
        let record = match record.reopen() {
            Ok(record) => record,
            Err(error) => return Some(Event::Refused(id, format!("Cannot open the record of a device: {error}"))),
        };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).chain([record.as_fd()]).collect();
        guest.worker.as_ref()?.tell(&Order::Attach { device: Box::new(device.clone()) }, &descriptors);
        None
    }

    /// Has the worker answer for a device that is served no more.
    pub(super) fn give_up(&self, domid: u16, id: DeviceId) {
        let Some(guest) = self.guests.get(&domid) else { return };
        if let Some((worker, Served { device, record, .. })) = guest.worker.as_ref().zip(guest.devices.get(&id)) {
            match record.reopen() {
                Ok(record) => worker.tell(&Order::GiveUp { id, place: device.place }, &[record.as_fd()]),
                Err(error) => tracing::error!(name: "broker.no_record", domid, device = %id, %error,
                    "Nobody answers for a device that is given up"),
            }
        }
    }
}
