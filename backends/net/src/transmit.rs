//! Packets from the driver to the host (virtio 1.2 §5.1.6.2).

use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering::Relaxed;

use smallvec::SmallVec;
use virtio_backend::{Fault, Ring, count_failure};

use crate::engine::Packet;
use crate::filter::Filter;
use crate::outgoing::{Outgoing, Verdict};
use crate::published::Reader;
use crate::receive::Place;

/// Packets of a pass, which go to the host together. The driver is told at its end, and gets its buffers back.
const A_PASS: usize = 64;

/// Sends by one queue.
pub(crate) struct Sender {
    filter: Reader<Filter>,
    /// The packets of a pass; none between passes.
    taken: Vec<Outgoing>,
    /// What became of those that the host got.
    outcomes: Vec<io::Result<()>>,
    /// The host had no room; what it did not take is back in the ring.
    blocked: bool,
}

impl Sender {
    pub(crate) fn new(filter: Reader<Filter>) -> Self {
        Self { filter, taken: Vec::new(), outcomes: Vec::new(), blocked: false }
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
        // What comes before a malformed chain is sent all the same.
        let taken = self.take(ring, place);
        let gone = self.send(place);
        self.blocked = gone < self.taken.len();
        self.taken.drain(gone..).rev().for_each(|outgoing| ring.unpop(outgoing.request));
        self.taken.drain(..).try_for_each(|outgoing| ring.push(outgoing.request, 0))?;
        taken?;
        if self.blocked {
            // Not before there is room does a kick help.
            place.shared.counters.tx_waits.fetch_add(1, Relaxed);
        } else {
            // If there is more, another pass follows at once.
            ring.ask_for_kicks();
        }
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

    /// Takes the packets of a pass.
    fn take(&mut self, ring: &mut Ring, place: &Place<'_>) -> Result<(), Fault> {
        for _ in 0..A_PASS {
            let Some(request) = ring.pop()? else { break };
            self.taken.push(Outgoing::judge(request, place));
        }
        Ok(())
    }

    /// Sends what was taken. Returns how many packets that is the end of; the others wait for room.
    fn send(&mut self, place: &mut Place<'_>) -> usize {
        let packets: SmallVec<[Packet<'_>; A_PASS]> = self.taken.iter().filter_map(Outgoing::packet).collect();
        self.outcomes.clear();
        place.port.send_all(&packets, &mut self.outcomes);
        drop(packets);
        let mac = self.filter.look(&place.life.filter).mac;
        let mut outcomes = self.outcomes.drain(..);
        let waits = self.taken.iter().position(|outgoing| {
            let outcome = match outgoing.verdict {
                Verdict::Send(_) => outcomes.next().unwrap_or_else(|| Err(ErrorKind::WouldBlock.into())),
                Verdict::Malformed => Err(ErrorKind::InvalidInput.into()),
                Verdict::NoLink => {
                    place.shared.counters.tx_dropped_link_down.fetch_add(1, Relaxed);
                    return false;
                }
            };
            let waits = matches!(&outcome, Err(error) if error.kind() == ErrorKind::WouldBlock);
            if !waits {
                count(outgoing, outcome, mac, place);
            }
            waits
        });
        waits.unwrap_or(self.taken.len())
    }
}

/// Counts a packet that the host has, or nobody.
fn count(outgoing: &Outgoing, outcome: io::Result<()>, mac: [u8; 6], place: &Place<'_>) {
    let counters = &place.shared.counters;
    match outcome {
        Ok(()) => {
            counters.tx_packets.fetch_add(1, Relaxed);
            counters.tx_bytes.fetch_add(outgoing.len as u64, Relaxed);
            counters.tx_spoofed_mac.fetch_add(u64::from(outgoing.source != mac), Relaxed);
        }
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            counters.tx_dropped_malformed.fetch_add(1, Relaxed);
        }
        Err(error) => {
            if error.kind() == ErrorKind::UnexpectedEof && place.pair == 0 {
                place.shared.lose_carrier(&error);
            }
            if let Some(failures) = count_failure(&counters.tx_dropped_host) {
                tracing::warn!(name: "net.tx_error", %error, failures, "The host failed to take a packet");
            }
        }
    }
}
