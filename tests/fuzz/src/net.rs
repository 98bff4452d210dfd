//! Drivers of any kind, of a network card: see `lanes`. All queues are there, the control queue among them. What the card
//! sends is put on a wire, where anything may arrive; the host refuses packets and settings now and then.
//!
//! - What reaches the host is a whole frame of a length that there is, behind a header that asks for nothing but what the
//!   driver may ask for, and points nowhere beyond the frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::Part;
use virtio_backend::{Backend, Bell, Operation};
use virtio_net::engine::{Control, Engine, HEADER_LEN, MAX_FRAME, MIN_FRAME, Packet, Port};
use virtio_net::{Config, Net, guest};

use crate::lanes::{Buffer, Personality, Rig, play};

const MAC: [u8; 6] = [0, 0x16, 0x3e, 1, 2, 3];
const PEER: [u8; 6] = [0, 0x16, 0x3e, 9, 9, 9];

/// Pairs of queues.
const PAIRS: u16 = 2;
/// The control queue, behind the pairs.
const CONTROL: usize = 2 * PAIRS as usize;

/// What a driver says.
#[derive(Arbitrary, Debug)]
pub(crate) enum Message {
    /// A frame behind a header.
    Frame { header: Option<Header>, to: Address, len: u16 },
    /// A command of the control queue, by its class and number.
    Command { class: u8, command: u8, data: Vec<u8> },
    /// Nothing: the chain is room alone.
    Nothing,
}

/// `struct virtio_net_hdr` (virtio 1.2 §5.1.6).
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Header {
    flags: u8,
    gso_type: u8,
    numbers: [u16; 4],
    num_buffers: u16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Address {
    Peer,
    Card,
    Broadcast,
    Any([u8; 6]),
}

/// What happens at the host.
#[derive(Arbitrary, Debug)]
pub(crate) enum Event {
    Arrives {
        header: Option<Header>,
        to: Address,
        len: u16,
        cut: Option<u8>,
    },
    /// The next packet is not taken, for this reason.
    FailSend(u8),
    Refuse(bool),
    Link(bool),
}

impl Header {
    fn bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        for (number, place) in self.numbers.into_iter().chain([self.num_buffers]).zip(bytes[2..].chunks_exact_mut(2)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

fn packet(header: Option<Header>, to: Address, len: u16) -> Vec<u8> {
    let header = header.map_or([0; HEADER_LEN], Header::bytes);
    let to = match to {
        Address::Peer => PEER,
        Address::Card => MAC,
        Address::Broadcast => [0xff; 6],
        Address::Any(to) => to,
    };
    let len = usize::from(len) % 5000;
    let frame: Vec<u8> = to.into_iter().chain(MAC).chain((0..).map(|at: usize| at as u8)).take(len).collect();
    [&header[..], &frame].concat()
}

/// The host's end.
#[derive(Clone)]
struct Wire(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    failures: VecDeque<ErrorKind>,
    refuses: bool,
    /// Of the last thing that was set.
    offloads: u64,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control for Wire {
    fn offloads(&self) -> u64 {
        guest::ALL
    }

    fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.refuses {
            return Err(ErrorKind::Unsupported.into());
        }
        assert_eq!(offloads & !guest::ALL, 0, "offloads that the host does not have");
        state.offloads = offloads;
        Ok(())
    }

    fn set_active(&self, pairs: u16) -> io::Result<()> {
        assert!((1..=PAIRS).contains(&pairs), "{pairs} pairs");
        if self.state().refuses { Err(ErrorKind::Unsupported.into()) } else { Ok(()) }
    }
}

struct End {
    wire: Wire,
    /// Rung when something has arrived.
    bell: Arc<Bell>,
}

impl Port for End {
    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut state = self.wire.state();
        if let Some(kind) = state.failures.pop_front() {
            return Err(kind.into());
        }
        let Packet { header, frame } = packet;
        assert!((MIN_FRAME..=MAX_FRAME).contains(&frame.len), "a frame of {} bytes", frame.len);
        let mut bytes = header.to_vec();
        bytes.resize(HEADER_LEN + frame.len, 0);
        assert_eq!(frame.buffers.read(frame.at, &mut bytes[HEADER_LEN..]), frame.len, "a frame that is not there");
        judge(header, frame.len);
        state.sent.push(bytes);
        Ok(())
    }

    fn receive(&mut self, head: &mut [u8], parts: &[Part<'_>]) -> io::Result<usize> {
        let Some(packet) = self.wire.state().arrived.pop_front() else {
            self.bell.silence();
            return Err(ErrorKind::WouldBlock.into());
        };
        let (first, mut rest) = packet.split_at(packet.len().min(head.len()));
        head[..first.len()].copy_from_slice(first);
        for part in parts {
            let (here, later) = rest.split_at(rest.len().min(part.len));
            assert_eq!(part.buffers.write(part.at, here), here.len(), "room that is not there");
            rest = later;
        }
        Ok(packet.len() - rest.len())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn take_calls(&mut self) -> u64 {
        1
    }
}

/// What a host may be told before a frame (§5.1.6.2): one flag, the kinds of segmentation there are, and places that are
/// within the frame.
fn judge(header: &[u8; HEADER_LEN], len: usize) {
    let number = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (flags, kind, head, size) = (header[0], header[1], number(2), number(4));
    assert_eq!(flags & !1, 0, "{header:x?} has flags that a driver must not set");
    assert!(matches!(kind & !0x80, 0 | 1 | 3 | 4 | 5), "{header:x?} asks for a segmentation that there is not");
    assert!(kind != 0x80 && (kind & !0x80 == 0 || size > 0), "{header:x?} segments into nothing");
    assert!(head <= len, "{header:x?} has headers longer than its frame of {len}");
    if flags & 1 != 0 {
        assert!(number(6) + number(8) + 2 <= len, "{header:x?} has a checksum beyond its frame of {len}");
    }
}

struct Card {
    device: Arc<Net>,
    wire: Wire,
    bells: Vec<Arc<Bell>>,
}

/// Plays the driver that `bytes` spell.
///
/// # Panics
/// The card did something that it must not do.
pub fn run(bytes: &[u8]) {
    let wire = Wire(Arc::default());
    let bells: Vec<_> = (0..PAIRS).map(|_| Arc::new(Bell::new().unwrap())).collect();
    let end = |bell: &Arc<Bell>| Box::new(End { wire: wire.clone(), bell: Arc::clone(bell) }) as Box<dyn Port>;
    let engine = Engine { control: Box::new(wire.clone()), ports: bells.iter().map(end).collect() };
    let config = Config { mac: Some(MAC.try_into().unwrap()), queues: PAIRS, ..Config::default() };
    let device = Arc::new(Net::with_engine(&config, engine).unwrap());
    play(Card { device, wire, bells }, &mut Unstructured::new(bytes));
}

impl Personality for Card {
    type Message = Message;
    type Event = Event;

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.device) as _
    }

    fn bytes(&self, _queue: usize, message: &Message) -> Vec<u8> {
        match message {
            Message::Frame { header, to, len } => packet(*header, *to, *len),
            Message::Command { class, command, data } => [&[class % 7, command % 8], &data[..]].concat(),
            Message::Nothing => Vec::new(),
        }
    }

    fn least_room(&self, queue: usize) -> usize {
        // The control queue's answers (§5.1.6.5). It is the third queue where the driver wants one pair only (§5.1.2).
        usize::from(queue >= 2)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrives { header, to, len, cut } => {
                let mut packet = packet(header, to, len);
                packet.truncate(cut.map_or(usize::MAX, usize::from));
                let mut state = self.wire.state();
                if state.arrived.len() < 64 {
                    state.arrived.push_back(packet);
                }
                drop(state);
                self.bells.iter().for_each(|bell| bell.ring());
            }
            Event::FailSend(reason) => {
                let kinds = [ErrorKind::InvalidInput, ErrorKind::OutOfMemory, ErrorKind::PermissionDenied];
                self.wire.state().failures.push_back(kinds[usize::from(reason) % kinds.len()]);
            }
            Event::Refuse(refuses) => self.wire.state().refuses = refuses,
            Event::Link(up) => self.device.operate(Operation::Link { up }).expect("a card has a cable"),
        }
    }

    fn look(&mut self) {
        self.wire.state().sent.clear();
    }

    fn prove(&mut self, rig: &mut Rig) {
        let mut state = self.wire.state();
        (state.refuses, state.arrived, state.failures) = (false, VecDeque::new(), VecDeque::new());
        state.sent.clear();
        drop(state);
        self.happen(Event::Link(true));
        let sent = packet(None, Address::Peer, 100);
        let (head, _) = rig.offer(1, &sent, 0, Buffer::default()).expect("there is room");
        rig.kick(1);
        assert_eq!(rig.take_back(1), [(head, 0)]);
        assert!(self.wire.state().sent == [sent], "a packet is sent as it was made");
        let (head, at) = rig.offer(0, &[], 2048, Buffer::default()).expect("there is room");
        rig.kick(0);
        self.happen(Event::Arrives { header: None, to: Address::Card, len: 100, cut: None });
        rig.kick(0);
        assert_eq!(rig.take_back(0), [(head, HEADER_LEN + 100)]);
        let received = packet(None, Address::Card, 100);
        assert!(rig.memory.snapshot()[at + HEADER_LEN..at + HEADER_LEN + 100] == received[HEADER_LEN..]);
        // VIRTIO_NET_CTRL_RX, promiscuous, on.
        let (head, at) = rig.offer(CONTROL, &[0, 0, 1], 1, Buffer::default()).expect("there is room");
        rig.kick(CONTROL);
        assert_eq!((rig.take_back(CONTROL), rig.memory.snapshot()[at]), (vec![(head, 1)], 0));
    }
}
