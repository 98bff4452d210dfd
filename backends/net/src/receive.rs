//! Packets from the host to the driver (virtio 1.2 §5.1.6.3, §5.1.6.4).
//!
//! Where a large packet is to be expected it is read right into the driver's buffers, as many as the largest takes; only
//! its first bytes come to us, to be judged. Others are read into a buffer of ours: copying 1,500 bytes costs less than
//! taking buffers for 65,550. They are read one by one: several that were read with one system call would have to be kept
//! if there were no buffers for them. Between passes the buffers stay in the ring, so that an idle card holds no guest
//! memory.

use std::io::{self, ErrorKind};
use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use virtio_backend::{Fault, Ring, count_failure};
use zerocopy::IntoBytes;

use crate::engine::{HEADER_LEN, MAX_FRAME, Port};
use crate::features::{self, guest};
use crate::filter::LOOKED_AT;
use crate::header::Header;
use crate::judge::Judge;
use crate::landing::Landing;
use crate::shared::{Life, Shared};

/// Room for any packet, and a byte more: what fills it was cut off.
const ROOM: usize = HEADER_LEN + MAX_FRAME + 1;

/// What of a packet comes to us before it goes to the driver.
const HEAD: usize = HEADER_LEN + LOOKED_AT;

/// A packet from here on is large, and one that follows it probably, too.
const LARGE: usize = 8 << 10;

/// Packets of a pass. The driver is told at its end, and should still have buffers left then.
const A_PASS: usize = 64;

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// With nothing more to do until something wakes the lane.
    Idle,
    /// With more to do at once.
    More,
}

/// What a receiver works with.
pub(crate) struct Place<'a> {
    pub(crate) port: &'a mut dyn Port,
    pub(crate) shared: &'a Shared,
    pub(crate) life: &'a Life,
    pub(crate) pair: u16,
}

/// Receives by one queue.
pub(crate) struct Receiver {
    landing: Landing,
    judge: Judge,
    mergeable: bool,
    ours: Box<[u8]>,
    /// Bytes in `ours` of a packet that waits for buffers.
    pending: Option<usize>,
    /// The last packet was large.
    expects_large: bool,
    /// Buffers have run out, and kicks are asked for. So it starts: the driver has given none yet.
    waits: bool,
}

/// Whether there was a packet that could go on.
type Moved = bool;

impl Receiver {
    /// A receiver for a driver that was told of this MTU.
    pub(crate) fn new(life: &Life, mtu: Option<u16>) -> Self {
        let mergeable = life.features & features::MRG_RXBUF != 0;
        Self {
            landing: Landing::new(mergeable),
            judge: Judge::new(life, mtu),
            mergeable,
            ours: vec![0; ROOM].into(),
            pending: None,
            expects_large: false,
            waits: true,
        }
    }

    /// Receives what there is, and as there are buffers.
    ///
    /// # Errors
    /// The ring is unusable.
    pub(crate) fn pass(&mut self, ring: &mut Ring, place: &mut Place<'_>) -> Result<Pass, Fault> {
        let mut turns = 0;
        while turns < A_PASS && self.turn(ring, place)? {
            turns += 1;
        }
        // A packet that waits for more buffers keeps those it has: back in the ring they would look like new ones.
        if self.pending.is_some() {
            self.landing.keep();
        } else {
            self.landing.put_back(ring);
        }
        Ok(if turns < A_PASS { Pass::Idle } else { Pass::More })
    }

    /// Gives the driver back what was taken from the ring.
    ///
    /// # Errors
    /// The ring is unusable.
    pub(crate) fn give_back(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        self.landing.give_back(ring)
    }

    fn turn(&mut self, ring: &mut Ring, place: &mut Place<'_>) -> Result<Moved, Fault> {
        if ring.size() == 0 || !place.life.is_active(place.pair) {
            return Ok(false);
        }
        if !place.shared.link_is_up() {
            return Ok(self.discard(place));
        }
        if let Some(len) = self.pending.take() {
            return self.deliver(ring, len, place);
        }
        let may_be_large = self.expects_large && place.life.offloads() & guest::LARGE != 0;
        self.landing.gather(ring, if may_be_large { ROOM } else { 1 })?;
        if self.landing.is_empty() {
            return Ok(self.wait(ring, place));
        }
        if std::mem::take(&mut self.waits) {
            ring.decline_kicks()?;
        }
        self.receive(ring, place)
    }

    /// Reads a packet away that the driver is not to have: it would be old when the link comes up.
    fn discard(&mut self, place: &mut Place<'_>) -> Moved {
        let waited = self.pending.take().is_some();
        let received = waited || place.port.receive(&mut [0; HEADER_LEN], &[]).is_ok();
        place.shared.counters.rx_dropped_link_down.fetch_add(received.into(), Relaxed);
        received
    }

    fn receive(&mut self, ring: &mut Ring, place: &mut Place<'_>) -> Result<Moved, Fault> {
        let mut head = [0; HEAD];
        let parts = self.landing.parts(HEAD, ROOM);
        let received = match &parts {
            Some(parts) => place.port.receive(&mut head, parts),
            None => place.port.receive(&mut self.ours, &[]),
        };
        let is_in_place = parts.is_some();
        drop(parts);
        let len = match received {
            Ok(len) => len,
            Err(error) => return Ok(note_failure(&error, place)),
        };
        self.expects_large = len >= LARGE;
        let start = if is_in_place { &mut head } else { self.ours.first_chunk_mut().unwrap_or(&mut head) };
        let start = start.get_mut(..len.min(HEAD)).unwrap_or_default();
        match self.judge.judge(start, len, place.shared, place.life) {
            Ok(header) => put_header(start, header),
            Err(counter) => {
                counter.fetch_add(1, Relaxed);
                return Ok(true);
            }
        }
        if !is_in_place {
            return self.deliver(ring, len, place);
        }
        let Some(chains) = self.landing.chains_for(len) else { return Ok(drop_unfit(place)) };
        put_count(start, chains);
        self.landing.write(start);
        self.give(ring, chains, len, place)
    }

    /// Gives the driver a packet that lies in `ours`, or keeps it there until there are buffers.
    fn deliver(&mut self, ring: &mut Ring, len: usize, place: &mut Place<'_>) -> Result<Moved, Fault> {
        self.landing.gather(ring, len)?;
        if let Some(chains) = self.landing.chains_for(len) {
            let packet = self.ours.get_mut(..len).unwrap_or_default();
            put_count(packet, chains);
            self.landing.write(packet);
            return self.give(ring, chains, len, place);
        }
        // A driver that has nothing more to give waits for us.
        if !self.mergeable || ring.in_flight() >= usize::from(ring.size()) {
            return Ok(drop_unfit(place));
        }
        self.pending = Some(len);
        Ok(self.wait(ring, place))
    }

    fn give(&mut self, ring: &mut Ring, chains: u16, len: usize, place: &Place<'_>) -> Result<Moved, Fault> {
        let counters = &place.shared.counters;
        counters.rx_packets.fetch_add(1, Relaxed);
        counters.rx_bytes.fetch_add(len.saturating_sub(HEADER_LEN) as u64, Relaxed);
        self.landing.give(ring, chains, len)?;
        Ok(true)
    }

    fn wait(&mut self, ring: &mut Ring, place: &Place<'_>) -> Moved {
        ring.ask_for_kicks();
        if !std::mem::replace(&mut self.waits, true) {
            place.shared.counters.rx_no_buffers.fetch_add(1, Relaxed);
        }
        false
    }
}

fn put_header(start: &mut [u8], header: Header) {
    start.iter_mut().zip(header.as_bytes()).for_each(|(to, from)| *to = *from);
}

/// Says in the header how many buffers the packet takes.
fn put_count(start: &mut [u8], chains: u16) {
    let field = start.get_mut(offset_of!(Header, num_buffers)..).unwrap_or_default();
    field.iter_mut().zip(chains.to_le_bytes()).for_each(|(to, from)| *to = from);
}

fn drop_unfit(place: &Place<'_>) -> Moved {
    place.shared.counters.rx_dropped_no_fit.fetch_add(1, Relaxed);
    true
}

/// What the host did not give. The next packet's event makes another try.
fn note_failure(error: &io::Error, place: &Place<'_>) -> Moved {
    match error.kind() {
        ErrorKind::WouldBlock => {}
        // Of the other queues it is told, too, when they are just being put out of use.
        ErrorKind::UnexpectedEof if place.pair == 0 => place.shared.lose_carrier(error),
        ErrorKind::UnexpectedEof => {}
        _ => {
            if let Some(failures) = count_failure(&place.shared.counters.rx_host_failures) {
                tracing::warn!(name: "net.rx_error", %error, failures, "The host failed to give the network card a packet");
            }
        }
    }
    false
}
