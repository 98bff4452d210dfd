//! Which lanes run for which rings.
//!
//! A lane starts with the first of its rings and ends with the last, so that its worker dies at a reset as it does
//! under any transport. A lane that ended by a fault stays as it is until all of its rings were stopped.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use guest_memory::MapCache;
use virtio_backend::{Fault, Lane, LaneSetup, QueueSetup, RingPosition};

use crate::device::Device;
use crate::line::LaneLine;

/// The lanes of one connection.
pub(crate) struct Lanes {
    device: Arc<Device>,
    cache: Arc<MapCache>,
    /// As many as the device has.
    lanes: Vec<Option<Running>>,
}

/// A lane that has rings.
struct Running {
    lane: Lane,
    /// For each of its queues that are in service, the position it was started at.
    started: Vec<Option<u16>>,
    say: Sender<Said>,
    heard: Receiver<Said>,
    /// Where its queues stood when it ended, which it has done.
    ended: Option<Vec<RingPosition>>,
}

/// What a lane tells of its queues.
enum Said {
    /// The one that was asked to is out of service.
    Stopped(RingPosition),
    /// All are.
    Ended(Vec<RingPosition>),
}

impl Lanes {
    pub(crate) fn new(device: Arc<Device>, cache: Arc<MapCache>) -> Self {
        let lanes = device.identity().lanes.iter().map(|_| None).collect();
        Self { device, cache, lanes }
    }

    /// Whether this queue is in service, or would be had its lane not ended by a fault.
    pub(crate) fn has(&self, queue: usize) -> bool {
        let running = self.place_of(queue).and_then(|(lane, at)| Some((self.lanes.get(lane)?.as_ref()?, at)));
        running.is_some_and(|(running, at)| matches!(running.started.get(at), Some(Some(_))))
    }

    /// Takes a queue into service.
    pub(crate) fn start(&mut self, queue: usize, setup: QueueSetup, features: u64) {
        let Some((index, at)) = self.place_of(queue) else { return };
        let Some(lane) = self.lanes.get_mut(index) else { return };
        if let Some(running) = lane {
            running.start(at, setup);
            return;
        }
        match Running::spawn(&self.device, &self.cache, index, (at, setup), features) {
            Ok(running) => *lane = Some(running),
            Err(source) => {
                let fault = Fault::Host { doing: "starting a thread for its queues", source };
                self.device.line.report(&fault, self.device.queues_of(index));
            }
        }
    }

    /// Takes a queue out of service, and waits until nothing of it is in flight. Returns the next entry of its
    /// available ring to look at, if it was in service.
    pub(crate) fn stop(&mut self, queue: usize) -> Option<u16> {
        let (lane, at) = self.place_of(queue)?;
        let lane = self.lanes.get_mut(lane)?;
        let running = lane.as_mut()?;
        let base = running.started.get_mut(at)?.take()?;
        let position = if running.started.iter().any(Option::is_some) {
            running.stop_one(at)
        } else {
            lane.take()?.end().get(at).copied()
        };
        // A queue that the lane did not come to take stands where it was set up; the lane has a zero for it.
        Some(position.filter(|position| *position != RingPosition::default()).map_or(base, |at| at.next_avail))
    }

    /// Asks all lanes to end before any is waited for by [`stop`](Self::stop).
    pub(crate) fn begin_end(&self) {
        self.lanes.iter().flatten().for_each(|running| running.lane.stop());
    }

    /// Asks all lanes to let go of memory that no request holds.
    pub(crate) fn release_memory(&self) {
        self.lanes.iter().flatten().for_each(|running| running.lane.release_memory());
    }

    /// A queue's lane, and its index there.
    fn place_of(&self, queue: usize) -> Option<(usize, usize)> {
        let lanes = self.device.identity().lanes.iter().enumerate();
        lanes.filter(|(_, queues)| queues.contains(&queue)).map(|(lane, queues)| (lane, queue - queues.start)).next()
    }
}

impl Running {
    fn spawn(
        device: &Device,
        cache: &Arc<MapCache>,
        index: usize,
        (at, first): (usize, QueueSetup),
        features: u64,
    ) -> std::io::Result<Self> {
        let queues = device.queues_of(index);
        let (say, heard) = channel();
        let tell = say.clone();
        let started = (0..queues.len()).map(|queue| (queue == at).then_some(first.ring.position.next_avail)).collect();
        let mut first = Some(first);
        let lane = Lane::spawn(LaneSetup {
            name: format!("{}.{index}", device.name),
            backend: device.backend.clone(),
            index,
            features,
            cache: cache.clone(),
            queues: (0..queues.len()).map(|queue| first.take_if(|_| queue == at)).collect(),
            signals: Arc::new(LaneLine { line: device.line.clone(), queues }),
            counters: device.counters.clone(),
            // Nobody hears it if the lanes were dropped, which does not wait.
            ended: Box::new(move |positions| drop(tell.send(Said::Ended(positions)))),
        })?;
        Ok(Self { lane, started, say, heard, ended: None })
    }

    fn start(&mut self, at: usize, setup: QueueSetup) {
        let base = setup.ring.position.next_avail;
        if let Some(started) = self.started.get_mut(at) {
            *started = Some(base);
            self.lane.enable_queue(at, setup);
        }
    }

    /// Waits until one queue is out of service and the others go on.
    fn stop_one(&mut self, at: usize) -> Option<RingPosition> {
        if self.ended.is_none() {
            let tell = self.say.clone();
            self.lane.reset_queue(at, Box::new(move |position| drop(tell.send(Said::Stopped(position)))));
            match self.heard.recv().ok()? {
                Said::Stopped(position) => return Some(position),
                Said::Ended(positions) => self.ended = Some(positions),
            }
        }
        self.ended.as_ref()?.get(at).copied()
    }

    /// Waits until the lane has ended.
    fn end(self) -> Vec<RingPosition> {
        let Self { lane, started: _, say, heard, ended } = self;
        lane.stop();
        drop(say);
        let told = || heard.iter().find_map(Said::ended);
        ended.or_else(told).unwrap_or_default()
    }
}

impl Said {
    fn ended(self) -> Option<Vec<RingPosition>> {
        match self {
            Self::Ended(positions) => Some(positions),
            Self::Stopped(_) => None,
        }
    }
}
