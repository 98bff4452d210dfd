//! The host's end of the card at work: packets in and out. Knows no queues.
//!
//! A packet travels with a `struct virtio_net_hdr` before it, as the driver and the tap have it (virtio 1.2 §5.1.6).
//! What stands in it was judged before it gets here.

mod batch;
mod passt;
mod tap;
pub(crate) mod tun;

use std::io;
use std::os::fd::BorrowedFd;

use guest_memory::Part;

pub(crate) use passt::passt;
pub(crate) use tap::tap;

/// Bytes of `struct virtio_net_hdr`, with `num_buffers`.
pub const HEADER_LEN: usize = 12;

/// The longest packet, from the Ethernet header on: an IP packet of 65,535 bytes with a VLAN's tag.
pub const MAX_FRAME: usize = 65_535 + 14 + 4;

/// The shortest: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// The host's end of a card.
pub struct Engine {
    /// What concerns all of it.
    pub control: Box<dyn Control>,
    /// One for each pair of queues.
    pub ports: Vec<Box<dyn Port>>,
}

/// What can be set for all ports of a card together. Called from any lane.
pub trait Control: Send + Sync {
    /// The offloads that [`set_offloads`](Self::set_offloads) can ask for, as in [`guest`](crate::guest).
    fn offloads(&self) -> u64;

    /// Says what the receiver of packets can do itself, as in [`guest`](crate::guest).
    ///
    /// # Errors
    /// The host does not do it; all is as before. [`io::ErrorKind::UnexpectedEof`]: its end is gone for good.
    fn set_offloads(&self, offloads: u64) -> io::Result<()>;

    /// Receives by the first `pairs` ports only; at least one.
    ///
    /// # Errors
    /// The host does not do it for each port. [`io::ErrorKind::UnexpectedEof`]: its end is gone for good.
    fn set_active(&self, pairs: u16) -> io::Result<()>;
}

/// A packet to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// What goes before it.
    pub header: [u8; HEADER_LEN],
    /// The packet, from its Ethernet header on.
    pub frame: Part<'a>,
}

/// Sends and receives packets without waiting. Used by one lane at a time.
pub trait Port: Send {
    /// Sends a packet. It may be kept to be sent with others until [`flush`](Self::flush).
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there is no room until the descriptor can be written.
    /// [`io::ErrorKind::InvalidInput`]: the host finds the packet malformed. [`io::ErrorKind::UnexpectedEof`]: the host's
    /// end is gone for good. Else the host has failed. The packet was not sent.
    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()>;

    /// Sends packets, one behind the other, and adds to `outcomes` what [`send`](Self::send) tells of each. Ends with the
    /// first for which there is no room.
    fn send_all(&mut self, packets: &[Packet<'_>], outcomes: &mut Vec<io::Result<()>>) {
        for packet in packets {
            outcomes.push(self.send(packet));
            if is_full(outcomes) {
                return;
            }
        }
    }

    /// Sends what was kept.
    ///
    /// # Errors
    /// As [`send`](Self::send). Unless it was for want of room, what was kept is lost.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Receives a packet, header first, into `head`, and what that does not hold into `parts`. Returns how many bytes
    /// that was; what has no room is lost.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there is none until the descriptor can be read.
    /// [`io::ErrorKind::UnexpectedEof`]: the host's end is gone for good.
    fn receive(&mut self, head: &mut [u8], parts: &[Part<'_>]) -> io::Result<usize>;

    /// What becomes ready for it.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// How many system calls were made since it was last asked.
    fn take_calls(&mut self) -> u64;
}

/// Whether the last packet found no room.
fn is_full(outcomes: &[io::Result<()>]) -> bool {
    matches!(outcomes.last(), Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock)
}
