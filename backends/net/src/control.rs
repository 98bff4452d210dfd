//! The lane of the control queue (virtio 1.2 §5.1.6.5).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use virtio_backend::{Fault, GuestFault, Request, Ring, Wake, Worker};
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};

use crate::command::{Command, Mode, parse};
use crate::filter::Filter;
use crate::shared::{Life, Shared};

/// Does what the driver asks. Each command has taken effect when it is answered.
pub(crate) struct ControlWorker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) life: Arc<Life>,
    /// Pairs of queues that there are.
    pub(crate) pairs: u16,
}

impl ControlWorker {
    fn take(&self, ring: &mut Ring, request: Request) -> Result<(), Fault> {
        let head = request.head();
        if request.writable.is_empty() {
            return Err(GuestFault::Request { head, what: "has no room for an answer" }.into());
        }
        let counters = &self.shared.counters;
        counters.ctrl_commands.fetch_add(1, Relaxed);
        let done = parse(&request.readable, self.life.features).and_then(|command| self.obey(command));
        if let Err(reason) = done {
            counters.ctrl_refused.fetch_add(1, Relaxed);
            tracing::debug!(name: "net.refused", head, reason);
        }
        self.life.note(&self.shared);
        let answer = u8::try_from(if done.is_ok() { VIRTIO_NET_OK } else { VIRTIO_NET_ERR }).unwrap_or(u8::MAX);
        request.writable.write(0, &[answer]);
        ring.push(request, 1)
    }

    fn obey(&self, command: Command) -> Result<(), &'static str> {
        tracing::debug!(name: "net.command", ?command);
        match command {
            Command::Mode(mode, on) => self.change(|filter| *mode_of(filter, mode) = on),
            Command::MacTable { unicast, multicast } => self.change(|filter| {
                (filter.unicast, filter.multicast) = (unicast, multicast);
            }),
            Command::MacAddress(mac) => self.change(|filter| filter.mac = mac.bytes()),
            Command::Vlan { vlan, wanted } => self.change(|filter| {
                filter.vlans.as_mut().map(|vlans| vlans.set(vlan, wanted));
            }),
            Command::AnnounceAck => {
                self.life.set_announce(false);
                Ok(())
            }
            Command::Pairs(pairs) => self.set_pairs(pairs),
            Command::Offloads(offloads) => self.host_follows(self.life.set_offloads(offloads, &self.shared)),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Filter)) -> Result<(), &'static str> {
        self.life.filter.change(change);
        Ok(())
    }

    fn set_pairs(&self, pairs: u16) -> Result<(), &'static str> {
        if !(1..=self.pairs).contains(&pairs) {
            return Err("asks for a number of queues that there is not");
        }
        self.host_follows(self.life.set_active_pairs(pairs, &self.shared))
    }

    fn host_follows(&self, told: io::Result<()>) -> Result<(), &'static str> {
        told.map_err(|error| {
            self.shared.note_setup_failure(&error);
            "is refused by the host"
        })
    }
}

fn mode_of(filter: &mut Filter, mode: Mode) -> &mut bool {
    match mode {
        Mode::Promiscuous => &mut filter.promiscuous,
        Mode::AllMulticast => &mut filter.all_multicast,
        Mode::AllUnicast => &mut filter.all_unicast,
        Mode::NoMulticast => &mut filter.no_multicast,
        Mode::NoUnicast => &mut filter.no_unicast,
        Mode::NoBroadcast => &mut filter.no_broadcast,
    }
}

impl Worker for ControlWorker {
    fn work(&mut self, _wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        let Some(ring) = rings.first_mut() else { return Ok(()) };
        ring.serve(|ring, request| self.take(ring, request))
    }
}

/// The lane of queues that the driver cannot use, by what was negotiated.
pub(crate) struct IdleWorker;

impl Worker for IdleWorker {
    fn work(&mut self, _wake: Wake, _rings: &mut [Ring]) -> Result<(), Fault> {
        Ok(())
    }
}
