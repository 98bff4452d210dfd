//! A worker that died, and the next one that goes on where it was.
//!
//! Xen keeps the IOREQ server with its windows and the requests in it; the broker keeps the records of the devices and what
//! was opened for them. So the next worker is told the same once more, and the guest sees accesses that take long. It is
//! started when the process before is gone for good, and with it all that it had mapped and bound.

use anyhow::Context;
use tokio::time::Instant;

use super::Broker;
use super::deaths::Verdict;
use super::worker::Spawner;
use crate::toolstack::events::Event;

impl<S: Spawner> Broker<S> {
    /// What the end of a guest's worker is: expected, or the death of one that another can follow.
    pub(super) fn ended(&mut self, domid: u16, how: String) -> Option<Event> {
        let guest = self.guests.get_mut(&domid)?;
        let how = guest.bury_worker(how);
        if guest.server.is_none() || guest.lifecycle.is_stopping() {
            guest.server = None;
            guest.follows = false;
            guest.windows.clear();
            guest.noted = None;
            // Whether the toolstack forgets it or not: what xl creates while it is told to destroy stays in Xenstore for ever.
            self.forget(domid);
            return Some(Event::WorkerEnded(how));
        }
        tracing::error!(name: "broker.worker_died", domid, how, "The worker of a guest died");
        Some(match guest.deaths.add(Instant::now(), &how, self.settings.deaths_per_minute) {
            Verdict::Follow => Event::WorkerDied(how),
            Verdict::GiveUp(why) => Event::WorkersDie(why),
        })
    }

    /// Starts the next worker, now or after a pause.
    pub(super) fn follow(&mut self, domid: u16) -> Option<Event> {
        let guest = self.guests.get_mut(&domid)?;
        let pause = guest.deaths.pause();
        if !pause.is_zero() {
            guest.follow_at = Some(Instant::now() + pause);
            return None;
        }
        self.follow_now(domid)
    }

    /// Starts those workers whose pause is over.
    pub(super) async fn follow_the_due(&mut self) {
        let now = Instant::now();
        let due = self.guests.iter().filter(|(_, guest)| guest.follow_at.is_some_and(|at| at <= now));
        for domid in due.map(|(domid, _)| *domid).collect::<Vec<_>>() {
            if let Some(event) = self.follow_now(domid) {
                self.happened(domid, event).await;
            }
        }
    }

    fn follow_now(&mut self, domid: u16) -> Option<Event> {
        let guest = self.guests.get_mut(&domid)?;
        guest.follow_at = None;
        if !guest.lifecycle.wants_worker() {
            return None;
        }
        let started = self.start_worker(domid);
        let guest = self.guests.get_mut(&domid)?;
        match started.context("The guest's next worker cannot be started, and the guest waits; trying again") {
            Ok(()) => {
                guest.deaths.is_followed();
                Some(Event::WorkerFollows)
            }
            Err(error) => {
                tracing::error!(name: "broker.no_worker", domid, "{error:#}");
                guest.deaths.add_failure();
                guest.follow_at = Some(Instant::now() + guest.deaths.pause());
                None
            }
        }
    }

    /// Says that all is well again, once it is; a guest that ended meanwhile waits for nothing.
    pub(super) fn say_followed(&mut self, domid: u16) {
        let Some(guest) = self.guests.get_mut(&domid).filter(|guest| !guest.lifecycle.is_following()) else { return };
        if let Some((waited, how)) = guest.deaths.end_waiting(Instant::now())
            && guest.worker.is_some()
        {
            let (milliseconds, restarts) = (waited.as_millis(), guest.deaths.followed());
            tracing::warn!(name: "broker.worker_restarted", domid, guest = guest.names.name, how, milliseconds, restarts,
                "The worker of a guest died, and another has taken its place");
        }
    }
}
