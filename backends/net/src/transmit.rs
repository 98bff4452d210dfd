//! Packets from the driver to the host (virtio 1.2 §5.1.6.2).

use std::io::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;

use guest_memory::{Buffers, Part};
use virtio_backend::{Fault, Ring};
use zerocopy::{FromBytes, IntoBytes};

use crate::engine::{HEADER_LEN, MIN_FRAME};
use crate::filter::Filter;
use crate::header::Header;
use crate::published::Reader;
use crate::receive::Place;

/// Packets of a pass. The driver is told at its end, and gets its buffers back.
const A_PASS: usize = 64;

/// Sends by one queue.
pub(crate) struct Sender {
    filter: Reader<Filter>,
    /// The host had no room; the packet is back in the ring.
    blocked: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The host has it, or nobody.
    Gone,
    /// It is to be tried again.
    Stays,
}

impl Sender {
    pub(crate) fn new(filter: Reader<Filter>) -> Self {
        Self { filter, blocked: false }
    }

    /// Sends what there is, and as the host has room. Whether it has none is told by
    /// [`is_blocked`](Self::is_blocked).
    ///
    /// # Errors
    /// The ring is unusable.
    pub(crate) fn pass(&mut self, ring: &mut Ring, place: &mut Place<'_>) -> Result<(), Fault> {
        if self.blocked {
            return Ok(());
        }
        ring.decline_kicks()?;
        for _ in 0..A_PASS {
            let Some(request) = ring.pop()? else { break };
            if self.send(&request.readable, place) == Fate::Stays {
                ring.unpop(request);
                place.shared.counters.tx_waits.fetch_add(1, Relaxed);
                self.blocked = true;
                // Not before there is room does a kick help.
                return Ok(());
            }
            ring.push(request, 0)?;
        }
        // If there is more, another pass follows at once.
        ring.ask_for_kicks();
        Ok(())
    }

    /// The host has no room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The host may have room again.
    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    fn send(&mut self, packet: &Buffers, place: &mut Place<'_>) -> Fate {
        let counters = &place.shared.counters;
        if !place.shared.link_is_up() || !place.life.is_active(place.pair) {
            counters.tx_dropped_link_down.fetch_add(1, Relaxed);
            return Fate::Gone;
        }
        let mut start = [0; HEADER_LEN + MIN_FRAME];
        packet.read(0, &mut start);
        let len = packet.len().saturating_sub(HEADER_LEN);
        let judged = match Header::read_from_prefix(&start) {
            Ok((header, _)) => header.for_host(len, place.life.features),
            Err(_) => Err("has no header"),
        };
        let sent = match judged {
            Ok(header) => {
                let mut bytes = [0; HEADER_LEN];
                bytes.copy_from_slice(header.as_bytes());
                place.port.send(&bytes, Part { buffers: packet, at: HEADER_LEN, len })
            }
            Err(reason) => {
                tracing::debug!(name: "net.malformed", len, reason);
                Err(ErrorKind::InvalidInput.into())
            }
        };
        match sent {
            Ok(()) => {
                self.note_source(&start, place);
                counters.tx_packets.fetch_add(1, Relaxed);
                counters.tx_bytes.fetch_add(len as u64, Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Fate::Stays,
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                counters.tx_dropped_malformed.fetch_add(1, Relaxed);
            }
            Err(error) => {
                if error.kind() == ErrorKind::UnexpectedEof && place.pair == 0 {
                    place.shared.lose_carrier(&error);
                }
                let failures = counters.tx_dropped_host.fetch_add(1, Relaxed).wrapping_add(1);
                // A guest can repeat what fails as fast as it likes: the first, the second, the fourth, ...
                if failures.is_power_of_two() {
                    tracing::warn!(name: "net.tx_error", %error, failures, "The host failed to take a packet");
                }
            }
        }
        Fate::Gone
    }

    fn note_source(&mut self, start: &[u8; HEADER_LEN + MIN_FRAME], place: &Place<'_>) {
        let source = start.get(HEADER_LEN + 6..HEADER_LEN + 12);
        if source != Some(&self.filter.look(&place.life.filter).mac) {
            place.shared.counters.tx_spoofed_mac.fetch_add(1, Relaxed);
        }
    }
}
