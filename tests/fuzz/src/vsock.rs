//! Drivers of any kind, of a socket device: see `lanes`. A program of the host listens at one port, and others connect to
//! the guest, say what they like, and go.
//!
//! - However many connections the guest asks for, an honest one at the end is accepted, and its data arrives.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use tempfile::TempDir;
use virtio_backend::reach::{Reach, Then};
use virtio_backend::{Backend, Kind, Owner};
use virtio_vsock::{Config, Vsock};

use crate::guest::{u16_at, u32_at};
use crate::lanes::{Buffer, Personality, Rig, play};

const CID: u64 = 42;
const HOST: u64 = 2;

/// Where a program listens.
const PORT: u32 = 7;

/// Queues (virtio 1.2 §5.10.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Operations (§5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const DATA: u16 = 5;

/// Connections of either side that a run may have.
const MOST: usize = 16;

/// A packet that a driver sends; the numbers are near those that there are.
#[derive(Arbitrary, Debug)]
pub(crate) struct Message {
    guest_port: u8,
    host_port: Port,
    operation: u8,
    flags: u8,
    room: Room,
    data: u8,
    odd: Option<Odd>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Port {
    Listening,
    /// Of one whom the host's side has connected.
    OfHost(u8),
    Any(u32),
}

/// The credit that the driver gives (§5.10.6.3).
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Room {
    Lots,
    Any { buf_alloc: u32, fwd_cnt: u32 },
}

/// What no driver says.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Odd {
    src_cid: Option<u64>,
    dst_cid: Option<u64>,
    kind: Option<u16>,
    operation: Option<u16>,
    len: Option<u32>,
    /// Only so many bytes of the packet are there.
    cut: Option<u8>,
}

/// What programs of the host do.
#[derive(Arbitrary, Debug)]
pub(crate) enum Event {
    /// Connects, and says it wants to this port of the guest, or something else.
    Dials {
        port: u8,
        greeting: Option<Vec<u8>>,
    },
    /// Takes a connection that the guest has made.
    Accepts,
    Says {
        which: u8,
        len: u16,
    },
    Reads {
        which: u8,
    },
    Goes {
        which: u8,
    },
}

struct Sockets {
    device: Arc<dyn Backend>,
    socket: PathBuf,
    listener: UnixListener,
    connections: Vec<UnixStream>,
    _folder: TempDir,
}

/// Connects at once, on the lane's own thread, for a run to be the same each time.
struct Here(Config);

impl Reach for Here {
    fn ask(&self, number: u32, then: Then) {
        then.hear(Vsock::reach(&self.0, number));
    }
}

/// Plays the driver that `bytes` spell.
///
/// # Panics
/// The device did something that it must not do.
pub fn run(bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut config = Config { cid: CID, ..Config::default() };
    let directory = folder.path().to_owned();
    let owner = Owner { guest: "fuzz".into(), identity: "fuzz".into(), index: 0, vcpus: 1, directory };
    let descriptors = Vsock::open(&mut config, &owner).unwrap();
    let device = Vsock::make(&config, descriptors, Arc::new(Here(config.clone()))).unwrap();
    let socket = config.socket.unwrap();
    let listener = UnixListener::bind(format!("{}_{PORT}", socket.display())).unwrap();
    listener.set_nonblocking(true).unwrap();
    let sockets = Sockets { device, socket, listener, connections: Vec::new(), _folder: folder };
    play(sockets, &mut Unstructured::new(bytes));
}

fn header(guest: u32, host: u32, len: u32, operation: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(CID.to_le_bytes());
    bytes.extend(HOST.to_le_bytes());
    [guest, host, len].into_iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    [1, operation].into_iter().for_each(|half| bytes.extend(half.to_le_bytes()));
    [0, 1 << 20, 0_u32].into_iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let host = match self.host_port {
            Port::Listening => PORT,
            Port::OfHost(port) => 1024 + u32::from(port % 8),
            Port::Any(port) => port,
        };
        let data = if u16::from(self.operation % 8) == DATA { vec![0xd0; self.data.into()] } else { Vec::new() };
        let mut bytes = header(u32::from(self.guest_port % 8), host, data.len() as u32, u16::from(self.operation % 8));
        bytes[32] = self.flags % 4;
        if let Room::Any { buf_alloc, fwd_cnt } = self.room {
            bytes[36..40].copy_from_slice(&buf_alloc.to_le_bytes());
            bytes[40..44].copy_from_slice(&fwd_cnt.to_le_bytes());
        }
        bytes.extend(data);
        if let Some(odd) = self.odd {
            let mut set = |at: usize, value: Option<Vec<u8>>| {
                value.into_iter().for_each(|value| bytes[at..at + value.len()].copy_from_slice(&value));
            };
            set(0, odd.src_cid.map(|cid| cid.to_le_bytes().to_vec()));
            set(8, odd.dst_cid.map(|cid| cid.to_le_bytes().to_vec()));
            set(24, odd.len.map(|len| len.to_le_bytes().to_vec()));
            set(28, odd.kind.map(|kind| kind.to_le_bytes().to_vec()));
            set(30, odd.operation.map(|operation| operation.to_le_bytes().to_vec()));
            bytes.truncate(odd.cut.map_or(usize::MAX, usize::from));
        }
        bytes
    }
}

impl Sockets {
    fn with(&mut self, which: u8, act: impl FnOnce(&mut UnixStream)) {
        let count = self.connections.len().max(1);
        if let Some(stream) = self.connections.get_mut(usize::from(which) % count) {
            act(stream);
        }
    }

    fn keep(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.connections.push(stream);
    }
}

impl Personality for Sockets {
    type Message = Message;
    type Event = Event;

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.device)
    }

    fn bytes(&self, queue: usize, message: &Message) -> Vec<u8> {
        if queue == TRANSMIT { message.bytes() } else { Vec::new() }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Dials { port, greeting } if self.connections.len() < MOST => {
                let mut stream = UnixStream::connect(&self.socket).expect("the device listens");
                let greeting = greeting.unwrap_or_else(|| format!("CONNECT {}\n", port % 8).into_bytes());
                stream.write_all(&greeting).expect("a greeting is taken");
                self.keep(stream);
            }
            Event::Accepts if self.connections.len() < MOST => {
                if let Ok((stream, _)) = self.listener.accept() {
                    self.keep(stream);
                }
            }
            Event::Dials { .. } | Event::Accepts => {}
            // Nobody has to listen, or to say anything.
            Event::Says { which, len } => self.with(which, |stream| drop(stream.write(&vec![0xaa; len.into()]))),
            Event::Reads { which } => self.with(which, |stream| drop(stream.read(&mut [0; 8192]))),
            Event::Goes { which } => {
                let count = self.connections.len().max(1);
                if !self.connections.is_empty() {
                    self.connections.swap_remove(usize::from(which) % count);
                }
            }
        }
    }

    /// A connection to the program that listens, and a word over it.
    fn prove(&mut self, rig: &mut Rig) {
        self.connections.clear();
        while self.listener.accept().is_ok() {}
        let guest = 0x1234_5678;
        rig.offer(TRANSMIT, &header(guest, PORT, 0, REQUEST), 0, Buffer::default()).expect("there is room");
        rig.kick(TRANSMIT);
        // Those who have dialled before, and have gone, may be announced first.
        let is_accepted = (0..64).any(|_| {
            rig.offer(RECEIVE, &[], 512, Buffer::default());
            rig.kick(RECEIVE);
            let memory = rig.memory.snapshot();
            (0..memory.len() - 44).step_by(16).map(|at| &memory[at..at + 44]).any(|packet| {
                u32_at(packet, 16) == PORT && u32_at(packet, 20) == guest && u16_at(packet, 30) == RESPONSE
            })
        });
        assert!(rig.is_well() && is_accepted, "an honest request is accepted");
        let mut word = header(guest, PORT, 5, DATA);
        word.extend(b"hello");
        rig.offer(TRANSMIT, &word, 0, Buffer::default()).expect("there is room");
        rig.kick(TRANSMIT);
        let (mut stream, _) = self.listener.accept().expect("the connection has been made");
        let mut bytes = [0; 6];
        stream.set_nonblocking(true).unwrap();
        let outcome = stream.read(&mut bytes);
        assert!(!matches!(&outcome, Err(error) if error.kind() == ErrorKind::WouldBlock), "the word has not arrived");
        assert_eq!((outcome.unwrap(), &bytes[..5]), (5, &b"hello"[..]));
    }
}
