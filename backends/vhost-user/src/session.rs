//! The time between a backend's being given rings and their being taken away again, or its end.
//!
//! Each has memory and kicks of its own. A backend that was given up may still be there, and still write to the memory
//! that it had.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use virtio_backend::{Bell, Fault, Request, Ring};

use crate::connection::{Connection, RingFeatures};
use crate::counters::Counters;
use crate::layout::Layout;
use crate::memory::Bounce;
use crate::queue::Queue;
use crate::shadow::ShadowRing;
use crate::trouble::Trouble;
use crate::wire::ConnectionError;

/// How long a backend that has stopped its queues may take to finish what it had taken from them.
const FINISHING: Duration = Duration::from_secs(1);

/// How often that is looked for: once a ring has stopped, nothing calls.
const FINISHING_STEP: Duration = Duration::from_millis(1);

/// A backend at work.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    memory: Bounce,
    layout: Layout,
    queue_size: u16,
    features: RingFeatures,
    queues: Vec<Option<Queue>>,
    counters: Arc<Counters>,
}

/// Where queues were stopped: for each that was in service, the next entry of its available ring.
pub(crate) type Bases = Vec<Option<u16>>;

impl Session {
    /// Begins for a driver that has accepted these features, without queues as yet.
    pub(crate) fn begin(
        mut connection: Connection,
        features: u64,
        layout: Layout,
        queue_size: u16,
        counters: Arc<Counters>,
    ) -> Result<Self, ConnectionError> {
        let memory = Bounce::new(layout.len()).map_err(ConnectionError::Host)?;
        connection.talk().begin(features, &memory)?;
        let features = connection.ring_features();
        Ok(Self { connection, memory, layout, queue_size, features, queues: Vec::new(), counters })
    }

    /// Puts queues into service that are in service with the driver and not yet with the backend, which is to call by
    /// `calls`.
    pub(crate) fn start_queues(&mut self, rings: &[Ring], calls: &[Bell]) -> Result<(), ConnectionError> {
        for ((ring, call), index) in rings.iter().zip(calls).zip(0..) {
            if self.queues.len() <= usize::from(index) {
                self.queues.push(None);
            }
            let Some(place @ None) = self.queues.get_mut(usize::from(index)) else { continue };
            if ring.size() == 0 {
                continue;
            }
            let places = self.layout.ring(index);
            let kick = Bell::new().map_err(ConnectionError::Host)?;
            let mut talk = self.connection.talk();
            talk.start_ring(index, self.queue_size, places, &kick, call)?;
            talk.conclude()?;
            let RingFeatures { event_idx, indirect } = self.features;
            let ring = ShadowRing::new(places, self.queue_size, event_idx);
            let counters = Arc::clone(&self.counters);
            *place = Some(Queue::new(ring, &self.layout, index, self.queue_size, indirect, kick, counters));
        }
        Ok(())
    }

    /// Gives the backend what there is for it in a queue.
    pub(crate) fn serve(
        &mut self,
        index: usize,
        ring: &mut Ring,
        waiting: &mut VecDeque<Request>,
    ) -> Result<(), Fault> {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return Ok(()) };
        let served = queue.serve(&self.memory, ring, waiting);
        queue.publish(&self.memory)?;
        served
    }

    /// Gives the guest what the backend is done with in a queue.
    pub(crate) fn collect(&mut self, index: usize, ring: &mut Ring) -> Result<(), Trouble> {
        match self.queues.get_mut(index) {
            Some(Some(queue)) => queue.collect(&self.memory, ring),
            _ => Ok(()),
        }
    }

    fn collect_all(&mut self, rings: &mut [Ring]) -> Result<(), Trouble> {
        rings.iter_mut().enumerate().try_for_each(|(index, ring)| self.collect(index, ring))
    }

    /// Has the backend stop all queues.
    pub(crate) fn stop(&mut self) -> Result<Bases, ConnectionError> {
        self.connection.give_time();
        let mut talk = self.connection.talk();
        let queues = self.queues.iter().zip(0..);
        queues.map(|(queue, index)| queue.as_ref().map(|_| talk.stop_ring(index)).transpose()).collect()
    }

    /// Gives the guest what a backend has finished that stopped there, and what it finishes within a moment. What it
    /// never took is not waited for.
    pub(crate) fn settle(&mut self, rings: &mut [Ring], bases: &Bases) -> Result<(), Trouble> {
        let deadline = Instant::now() + FINISHING;
        loop {
            self.collect_all(rings)?;
            let mut stopped = self.queues.iter().zip(bases);
            let is_at_work = stopped
                .any(|(queue, base)| queue.as_ref().zip(*base).is_some_and(|(queue, base)| queue.is_at_work(base)));
            if !is_at_work || Instant::now() > deadline {
                return Ok(());
            }
            thread::sleep(FINISHING_STEP);
        }
    }

    /// Ends it. Gives the guest what a backend that is gone had finished, and returns what it had not, by queue.
    pub(crate) fn abandon(mut self, rings: &mut [Ring]) -> Result<Vec<VecDeque<Request>>, Fault> {
        match self.collect_all(rings) {
            Err(Trouble::Fault(fault)) => Err(fault),
            // Whatever else it said is of no interest any more.
            Ok(()) | Err(Trouble::Connection(_)) => Ok(self.into_unfinished().1),
        }
    }

    /// Ends it: the connection, and what was not finished, by queue.
    pub(crate) fn into_unfinished(self) -> (Connection, Vec<VecDeque<Request>>) {
        let Self { connection, queues, .. } = self;
        let unfinished = queues.into_iter().map(|queue| queue.map(Queue::into_unfinished).unwrap_or_default());
        (connection, unfinished.collect())
    }
}
