//! Packets through a tap: small ones many at a time, where the kernel allows; others one by one, between the kernel and
//! guest memory without a copy on the way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use guest_memory::{Part, read_vectored, write_vectored};
use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};

use super::batch::{self, Batch};
use super::{Control, Engine, Packet, Port, is_full, tun};
use crate::features::guest;

/// What kernels could do before 6.2, and since.
const TRIALS: [u64; 2] = [guest::ALL, guest::ALL & !(guest::USO4 | guest::USO6)];

/// From so many packets on a batch takes no more of the CPU than a system call for each, where those are cheap.
const BATCH: usize = 16;

/// A tap of which these are the queues, tied to it and ready (see `host`).
///
/// # Errors
/// They are no such descriptors.
pub(crate) fn tap(queues: Vec<OwnedFd>) -> io::Result<Engine> {
    let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
    let first = queues.first().ok_or(io::ErrorKind::InvalidInput)?;
    // The kernel tells what it can only by doing it.
    let offloads = TRIALS.into_iter().find(|trial| tun::set_offload(first, tun_bits(*trial)).is_ok()).unwrap_or(0);
    tun::set_offload(first, 0)?;
    // A process that has died may have left some out of use. It is an error for the others.
    queues.iter().skip(1).for_each(|queue| drop(tun::set_queue(queue, true)));
    let ports = queues.iter().map(|queue| Box::new(TapPort::new(Arc::clone(queue))) as Box<dyn Port>).collect();
    let active = Mutex::new(queues.len());
    Ok(Engine { ports, control: Box::new(TapControl { queues, offloads, active }) })
}

struct TapControl {
    queues: Vec<Arc<OwnedFd>>,
    offloads: u64,
    /// Queues that are attached, from the first on. Lanes that start, and the one of the control queue, meet here.
    active: Mutex<usize>,
}

impl Control for TapControl {
    fn offloads(&self) -> u64 {
        self.offloads
    }

    fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        self.queues.first().map_or(Ok(()), |first| tun::set_offload(first, tun_bits(offloads))).map_err(told)
    }

    fn set_active(&self, pairs: u16) -> io::Result<()> {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = usize::from(pairs).clamp(1, self.queues.len());
        while *active < wanted {
            let next = self.queues.get(*active).ok_or(io::ErrorKind::InvalidInput)?;
            tun::set_queue(next, true).map_err(told)?;
            *active += 1;
        }
        while *active > wanted {
            let last = self.queues.get(*active - 1).ok_or(io::ErrorKind::InvalidInput)?;
            tun::set_queue(last, false).map_err(told)?;
            *active -= 1;
        }
        Ok(())
    }
}

/// The kernel's names for what a driver can do, as far as it takes them: large UDP packets only over both versions of IP
/// at a time.
fn tun_bits(offloads: u64) -> libc::c_uint {
    let has = |bits: u64| offloads & bits == bits;
    let bits = [
        (has(guest::CSUM), TUN_F_CSUM),
        (has(guest::CSUM | guest::TSO4), TUN_F_TSO4),
        (has(guest::CSUM | guest::TSO6), TUN_F_TSO6),
        (has(guest::CSUM | guest::ECN) && offloads & (guest::TSO4 | guest::TSO6) != 0, TUN_F_TSO_ECN),
        (has(guest::CSUM | guest::USO4 | guest::USO6), TUN_F_USO4 | TUN_F_USO6),
    ];
    bits.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, bit)| all | bit)
}

struct TapPort {
    queue: Arc<OwnedFd>,
    /// If the host allows it.
    batch: Option<Batch>,
    calls: u64,
}

impl TapPort {
    fn new(queue: Arc<OwnedFd>) -> Self {
        let batch = Batch::new(&queue)
            .inspect_err(|error| tracing::debug!(name: "net.no_batch", %error, "Packets go one with each system call"));
        Self { queue, batch: batch.ok(), calls: 0 }
    }

    /// Sends packets as a batch, if they are enough for one.
    fn send_batch(&mut self, packets: &[Packet<'_>], outcomes: &mut Vec<io::Result<()>>) -> bool {
        let Some(batch) = self.batch.as_mut().filter(|_| packets.len() >= BATCH) else { return false };
        let first = outcomes.len();
        let sent = batch.send(self.queue.as_fd(), packets, outcomes, &mut self.calls);
        for outcome in outcomes.iter_mut().skip(first) {
            *outcome = std::mem::replace(outcome, Ok(())).map_err(told);
        }
        if let Err(error) = sent {
            tracing::warn!(name: "net.batch_lost", %error, "io_uring fails; packets go one with each system call now");
            self.batch = None;
        }
        true
    }
}

impl Port for TapPort {
    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        self.calls += 1;
        write_vectored(&self.queue, &packet.header, &[packet.frame]).map(|_whole| ()).map_err(told)
    }

    fn send_all(&mut self, packets: &[Packet<'_>], outcomes: &mut Vec<io::Result<()>>) {
        let mut rest = packets;
        while let Some(first) = rest.first() {
            let together = rest.iter().take(batch::MOST).take_while(|packet| Batch::takes(packet)).count();
            let (now, later) = rest.split_at(together);
            rest = if self.send_batch(now, outcomes) {
                later
            } else {
                outcomes.push(self.send(first));
                rest.get(1..).unwrap_or_default()
            };
            if is_full(outcomes) {
                return;
            }
        }
    }

    fn receive(&mut self, head: &mut [u8], parts: &[Part<'_>]) -> io::Result<usize> {
        self.calls += 1;
        read_vectored(&self.queue, head, parts).map_err(told)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}

/// A failure, as [`Port`] and [`Control`] tell it.
fn told(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        // What is left of a descriptor when its tap was deleted.
        Some(libc::EBADFD) => io::Error::new(io::ErrorKind::UnexpectedEof, error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_for_nothing_that_it_refuses() {
        assert_eq!(tun_bits(0), 0);
        assert_eq!(tun_bits(guest::CSUM), TUN_F_CSUM);
        assert_eq!(tun_bits(guest::CSUM | guest::USO4), TUN_F_CSUM);
        assert_eq!(tun_bits(guest::TSO4), 0);
        assert_eq!(tun_bits(guest::CSUM | guest::ECN), TUN_F_CSUM);
        assert_eq!(tun_bits(guest::CSUM | guest::TSO6 | guest::ECN), TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN);
        let all = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6;
        assert_eq!(tun_bits(guest::ALL), all);
    }
}
