//! What the broker looks at: who asks for devices, and who is gone.

use virtio_backend::Kind;
use xenstore::Store;

use super::worker::Spawner;
use super::{Broker, postponed};
use crate::config::device_file;
use crate::toolstack::events::{Event, Sight};
use crate::toolstack::fixed::Fixed;
use crate::toolstack::libxl::{Description, KEYS, Node, What};
use crate::toolstack::{Sighting, Toolstack, nodes};

impl<S: Spawner> Broker<S> {
    /// Looks at all there is, before anything is heard of it.
    pub(super) async fn look_at_once(&mut self) {
        match self.toolstack.clone() {
            Toolstack::Libxl(store) => self.look_at_all(&store).await,
            Toolstack::Static(file) => self.look_at_guests_of(&file).await,
        }
    }

    /// Looks at what may have changed.
    pub(super) async fn look_at(&mut self, sighting: Sighting) {
        tracing::trace!(name: "broker.sighting", ?sighting);
        match (self.toolstack.clone(), sighting) {
            (Toolstack::Libxl(store), Sighting::Path(path)) => match Node::of_path(&path) {
                Some(node) => self.look_at_node(&store, node).await,
                None => self.look_at_all(&store).await,
            },
            (Toolstack::Libxl(store), Sighting::Death) => self.look_for_the_dead(&store).await,
            (Toolstack::Libxl(_), Sighting::Round) => self.ask_after_all(),
            (Toolstack::Static(file), _) => self.look_at_guests_of(&file).await,
        }
    }

    /// Looks at every device there is, and at every one known that may be gone.
    async fn look_at_all(&mut self, store: &Store) {
        let mut all = match nodes::list(store).await {
            Ok(all) => all,
            Err(error) => return postponed(&error),
        };
        for (domid, guest) in &self.guests {
            all.extend(guest.lifecycle.devices().map(|(id, _)| Node { domid: *domid, id }));
        }
        all.sort_unstable();
        all.dedup();
        for node in all {
            self.look_at_node(store, node).await;
        }
    }

    async fn look_at_node(&mut self, store: &Store, node: Node) {
        match self.is_ours(store, node).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return postponed(&error),
        }
        match nodes::look(store, node).await {
            Ok(Some(sight)) => self.happened(node.domid, Event::Seen(node.id, sight)).await,
            Ok(None) => tracing::warn!(name: "broker.odd_state", domid = node.domid, device = %node.id,
                "The state of a device in xenstore is none that a toolstack writes; leaving it alone"),
            Err(error) => postponed(&error),
        }
    }

    /// Whether this program serves the device, as far as the toolstack's own words tell.
    async fn is_ours(&self, store: &Store, node: Node) -> Result<bool, xenstore::Error> {
        let is_known = self.guests.get(&node.domid).is_some_and(|guest| guest.lifecycle.stage(node.id).is_some());
        let Some(only) = self.settings.only.filter(|_| !is_known) else { return Ok(true) };
        let device_id = match Description::parse(node, &nodes::keys(store, node, &KEYS).await?) {
            Ok(Description { what: What::Virtio(id), .. }) => Some(id),
            Ok(Description { what: What::Disk(disk), .. }) => match disk.other_device() {
                None => virtio_disk::Disk::DEVICE_ID,
                Some(file) => device_file(file).ok().map(|entry| entry.model.device_id()),
            },
            Err(_) => None,
        };
        Ok(device_id == Some(only))
    }

    /// Some domain died; xenstore does not say which.
    async fn look_for_the_dead(&mut self, store: &Store) {
        for domid in self.guests.keys().copied().collect::<Vec<_>>() {
            match store.is_domain_introduced(domid).await {
                Ok(true) => {}
                Ok(false) => self.happened(domid, Event::DomainGone).await,
                Err(error) => return postponed(&error),
            }
        }
    }

    /// Whether Xen still has a guest's server only its worker can tell; where xenstored tells nothing, that is the only
    /// word of a guest that ended without its toolstack's closing its devices.
    fn ask_after_all(&mut self) {
        for guest in self.guests.values_mut().filter(|guest| guest.lifecycle.is_in_use()) {
            drop(guest.ask_for_report());
        }
    }

    /// Looks which guests of a static file have come or gone.
    async fn look_at_guests_of(&mut self, file: &Fixed) {
        self.ask_after_all();
        for domid in file.domids() {
            match self.guests.get_mut(&domid) {
                None if self.spawner.has_domain(domid) => {
                    for node in file.nodes(domid) {
                        self.happened(domid, Event::Seen(node.id, Sight::New)).await;
                    }
                }
                None => {}
                Some(guest) if guest.lifecycle.is_in_use() => {}
                Some(_) if !self.spawner.has_domain(domid) => self.forget_all(domid, file).await,
                Some(_) => {}
            }
        }
    }

    async fn forget_all(&mut self, domid: u16, file: &Fixed) {
        for node in file.nodes(domid) {
            self.happened(domid, Event::Seen(node.id, Sight::Absent)).await;
        }
    }
}
