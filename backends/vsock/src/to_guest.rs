//! Fills the guest's buffers (virtio 1.2 §5.10.6.1): each connection one packet, then the next.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use virtio_backend::{Fault, Request, Ring};
use zerocopy::IntoBytes;

use crate::connection::{Fetched, Phase};
use crate::hub::{Hub, LINGER};
use crate::packet::{HEADER_LEN, Header, Op};
use crate::table::Key;

/// Packets of a pass, for the driver's own packets to have their turn.
const MOST_PACKETS: usize = 256;

/// What the guest is to hear next.
#[derive(Clone, Copy)]
enum Next {
    /// There is no such connection.
    Reset(Header),
    /// Something of this one.
    Of(Key, Op),
}

impl Hub {
    /// Fills buffers as long as there are some and something to put into them. True if it stopped before that, for the
    /// sake of others. Without buffers the driver is asked to say when there are new ones.
    ///
    /// # Errors
    /// As of [`Ring::pop`] and [`Ring::push`].
    pub(crate) fn fill(&mut self, rx: &mut Ring) -> Result<bool, Fault> {
        for _ in 0..MOST_PACKETS {
            let Some(next) = self.next() else { return Ok(false) };
            let Some(buffer) = rx.pop()? else {
                rx.ask_for_kicks();
                return Ok(false);
            };
            if buffer.writable.len() <= HEADER_LEN {
                // Given back empty, as no packet is.
                self.counters().malformed.fetch_add(1, Relaxed);
                rx.push(buffer, 0)?;
                continue;
            }
            match self.write(next, &buffer) {
                Some(len) => rx.push(buffer, len)?,
                None => rx.unpop(buffer),
            }
        }
        Ok(self.next().is_some())
    }

    fn next(&mut self) -> Option<Next> {
        if let Some(reset) = self.resets.front() {
            return Some(Next::Reset(*reset));
        }
        let (key, connection) = self.table.first_in_line()?;
        connection.next().map(|op| Next::Of(key, op))
    }

    /// Writes a packet into a buffer. Returns its length, or `None` if there is none after all.
    fn write(&mut self, next: Next, buffer: &Request) -> Option<usize> {
        let (header, len) = match next {
            Next::Reset(header) => {
                self.resets.pop_front();
                (header, 0)
            }
            Next::Of(key, op) => self.compose(key, op, buffer)?,
        };
        tracing::trace!(name: "vsock.to_guest", ?header);
        buffer.writable.write(0, header.as_bytes());
        let counters = self.counters();
        counters.packets_out.fetch_add(1, Relaxed);
        counters.bytes_to_guest.fetch_add(len as u64, Relaxed);
        if header.op() == Some(Op::Rst) {
            counters.resets_sent.fetch_add(1, Relaxed);
        }
        Some(HEADER_LEN + len)
    }

    /// Puts a connection's data into a buffer, if it is data that it has, and makes the header to it.
    fn compose(&mut self, key: Key, op: Op, buffer: &Request) -> Option<(Header, usize)> {
        let cid = self.place.cid;
        let connection = self.table.get(key)?;
        let mut header = Header::to_guest(cid, connection.ports, op);
        let mut len = 0;
        if op == Op::Rw {
            match connection.fetch(&buffer.writable) {
                Ok(Fetched::Bytes(bytes)) => {
                    header.len = bytes.into();
                    len = bytes as usize;
                }
                Ok(Fetched::Nothing) => return None,
                Err(error) => {
                    self.break_off(key, &error);
                    return None;
                }
            }
        }
        if op == Op::Shutdown {
            header.flags = connection.shutdown().into();
        }
        connection.said(op);
        connection.credit.tell(&mut header);
        let (is_over, goes) = (connection.is_told_of_the_end(), connection.phase == Phase::Ended);
        self.table.next_in_line();
        if op == Op::CreditRequest {
            self.counters().credit_waits.fetch_add(1, Relaxed);
        }
        if goes {
            self.forget(key);
        } else if op == Op::Shutdown && is_over {
            self.table.set_deadline(key, Some(Instant::now() + LINGER));
        }
        Some((header, len))
    }
}
