//! A packet of the driver's on its way out, judged (virtio 1.2 §5.1.6.2).

use guest_memory::Part;
use virtio_backend::Request;
use zerocopy::{FromBytes, IntoBytes};

use crate::engine::{HEADER_LEN, MIN_FRAME, Packet};
use crate::header::Header;
use crate::receive::Place;

/// A packet of the driver's, and what is to become of it.
pub(crate) struct Outgoing {
    pub(crate) request: Request,
    pub(crate) verdict: Verdict,
    /// Bytes from the Ethernet header on.
    pub(crate) len: usize,
    /// Whom it says it comes from.
    pub(crate) source: [u8; 6],
}

/// What is to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes to the host, behind this header.
    Send([u8; HEADER_LEN]),
    /// It is none.
    Malformed,
    /// There is nowhere for it to go.
    NoLink,
}

impl Outgoing {
    /// Judges a packet. What was looked at the driver may change afterwards; the header is one of ours.
    pub(crate) fn judge(request: Request, place: &Place<'_>) -> Self {
        let mut start = [0; HEADER_LEN + MIN_FRAME];
        request.readable.read(0, &mut start);
        let len = request.readable.len().saturating_sub(HEADER_LEN);
        let (header, frame) = start.split_at(HEADER_LEN);
        let source = frame.get(6..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        let verdict = if place.shared.link_is_up() && place.life.is_active(place.pair) {
            let judged = Header::read_from_bytes(header)
                .map_or(Err("has no header"), |header| header.for_host(len, place.life.features));
            judged.map_or_else(|reason| malformed(len, reason), |header| send(&header))
        } else {
            Verdict::NoLink
        };
        Self { request, verdict, len, source }
    }

    /// What goes to the host, if it does.
    pub(crate) fn packet(&self) -> Option<Packet<'_>> {
        match self.verdict {
            Verdict::Send(header) => {
                Some(Packet { header, frame: Part { buffers: &self.request.readable, at: HEADER_LEN, len: self.len } })
            }
            Verdict::Malformed | Verdict::NoLink => None,
        }
    }
}

fn send(header: &Header) -> Verdict {
    let mut bytes = [0; HEADER_LEN];
    bytes.copy_from_slice(header.as_bytes());
    Verdict::Send(bytes)
}

fn malformed(len: usize, reason: &'static str) -> Verdict {
    tracing::debug!(name: "net.malformed", len, reason);
    Verdict::Malformed
}
