//! A vhost-user backend that says anything to the device whose backend it is to be: when it is first met, and when a driver
//! uses the device.
//!
//! - What is found out about it is within what a device can be.
//! - Whatever it says, the driver's reset is answered, and the device shows no more than that it needs one.
//! - Of the guest's memory it changes nothing but the rings and what was given for writing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use guest_memory::{Budget, MapCache};
use testkit::driver::{Descriptor, RawQueue, Registers, status};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Kind, Owner, reach};
use virtio_mmio::{InterruptLine, Transport};
use virtio_vhost_user::{Config, DeviceType, VhostUser};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const RAM: u64 = 0x4000_0000;
const RAM_LEN: u64 = 1 << 16;
const BUFFERS: u64 = RAM + 0x8000;
const SIZE: u16 = 16;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the backend says of itself, and does otherwise than a backend.
#[derive(Arbitrary, Clone, Debug)]
struct Character {
    device: u8,
    features: u64,
    protocol: u16,
    queues: u8,
    config: u8,
    /// In answer to one request after the other.
    turns: Vec<Turn>,
    /// What it writes to the memory that it was given, at each kick.
    scribbles: Vec<Scribble>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Turn {
    /// What a backend answers.
    Answers,
    /// A number.
    Says(u64),
    Message {
        request: Option<u8>,
        flags: Option<u8>,
        body: Vec<u8>,
    },
    Bytes(Vec<u8>),
    Leaves,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Scribble {
    /// In the used ring of a queue: an index, and the first entries.
    Used {
        queue: u8,
        index: u16,
        id: u16,
        len: u32,
    },
    Anywhere {
        at: u32,
        value: u64,
    },
}

/// A request, as the driver makes it.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Request {
    queue: u8,
    read: u16,
    write: u16,
}

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Plays the backend that `bytes` spell.
///
/// # Panics
/// It got further than it should.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let Ok((requests, character)) = <([Option<Request>; 4], Character)>::arbitrary(&mut source) else { return };
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (hearer, heard) = mpsc::channel::<()>();
    let played = character.clone();
    let backend = thread::spawn(move || {
        let mut turns = played.turns.clone().into_iter();
        // One connection when it is met, one when it is used, and as many more as there are turns to take.
        while let Ok((stream, _)) = listener.accept() {
            if heard.try_recv() == Err(mpsc::TryRecvError::Disconnected) {
                return;
            }
            Backend { stream, character: &played, memory: None, used: Vec::new() }.serve(&mut turns);
        }
    });
    let device = [1, 2, 3, 4, 19, 26][usize::from(character.device % 6)];
    let config = Config { device: Some(DeviceType::of_id(device)), socket: socket.clone(), ..Config::default() };
    meet(config, &requests);
    drop(hearer);
    // It waits for one more connection.
    drop(UnixStream::connect(&socket));
    backend.join().expect("the backend plays its part");
}

fn meet(mut config: Config, requests: &[Option<Request>]) {
    let directory = "/nonexistent".into();
    let owner = Owner { guest: "fuzz".into(), identity: "fuzz".into(), index: 0, vcpus: 1, directory };
    let Ok(descriptors) = VhostUser::open(&mut config, &owner) else { return };
    let found = config.found.clone().expect("what was found");
    assert!((1..=64).contains(&found.queues) && found.config.len() <= 256, "{found:?}");
    let Ok(device) = VhostUser::make(&config, descriptors, reach::directly::<VhostUser>(&config)) else { return };
    let queues = device.identity().queue_sizes.len().min(4);
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    memory.write(BUFFERS, &[0xee; 0x8000]);
    let cache = MapCache::new(memory.clone(), Budget::default());
    let transport = Transport::new(device, Arc::new(NoLine), cache, "fuzz").unwrap();
    let rings: Vec<_> =
        (0..queues as u64).map(|queue| RawQueue::new(memory.clone(), RAM + 0x1000 * queue, SIZE)).collect();
    let mut may_change = Vec::new();
    if transport.negotiate(transport.offered_features() | VERSION_1) {
        (0..).zip(&rings).for_each(|(index, ring)| transport.set_up_queue(index, ring));
        transport.add_status(status::DRIVER_OK);
        for (slot, request) in (0..).step_by(2).zip(requests.iter().flatten()) {
            let queue = usize::from(request.queue) % queues;
            let start = BUFFERS + u64::from(slot) * 0x800;
            let (read, write) = (u32::from(request.read % 0x400), u32::from(request.write % 0x400));
            let pieces = [Descriptor::readable(start, read), Descriptor::writable(start + 0x400, write)];
            rings[queue].write_chain(slot, &pieces);
            rings[queue].publish(slot);
            transport.notify(queue as u32);
            may_change.push((start + 0x400 - BUFFERS) as usize..(start + 0x400 - BUFFERS) as usize + write as usize);
        }
    }
    // A moment for what it makes of them: nothing is waited for that has to come.
    thread::sleep(Duration::from_millis(3));
    transport.reset();
    assert_eq!(transport.status(), 0);
    for ring in &rings {
        assert!(ring.used_idx() <= SIZE, "more comes back than was given");
    }
    let mut buffers = [0; 0x8000];
    memory.read(BUFFERS, &mut buffers);
    let touched =
        (0..buffers.len()).find(|at| buffers[*at] != 0xee && !may_change.iter().any(|part| part.contains(at)));
    assert_eq!(touched, None, "a byte of the guest's that nobody gave");
    let (done, end) = mpsc::channel();
    transport.stop().then(move || done.send(()).unwrap_or_default());
    end.recv_timeout(Duration::from_secs(20)).expect("the device ends");
}

/// One connection of the backend.
struct Backend<'a> {
    stream: UnixStream,
    character: &'a Character,
    memory: Option<GuestMemoryMmap<()>>,
    /// By queue, where its used ring is.
    used: Vec<(u32, u64)>,
}

impl Backend<'_> {
    fn serve(&mut self, turns: &mut impl Iterator<Item = Turn>) {
        while let Some((request, flags, body, file)) = self.hear() {
            self.understand(request, &body, file);
            let says = match turns.next() {
                None | Some(Turn::Answers) => self.answer(request, flags, &body),
                Some(Turn::Says(number)) => Some(message(request, 5, &number.to_ne_bytes())),
                Some(Turn::Message { request: other, flags, body }) => {
                    let request = other.map_or(request, |other| u32::from(other % 48));
                    Some(message(request, flags.map_or(5, u32::from), &body))
                }
                Some(Turn::Bytes(bytes)) => Some(bytes),
                Some(Turn::Leaves) => return,
            };
            if says.is_some_and(|bytes| self.stream.write_all(&bytes).is_err()) {
                return;
            }
            self.scribble();
        }
    }

    fn hear(&mut self) -> Option<(u32, u32, Vec<u8>, Option<File>)> {
        let mut header = [0; 12];
        let (received, file) = self.stream.recv_with_fd(&mut header).ok().filter(|(len, _)| *len > 0)?;
        self.stream.read_exact(&mut header[received..]).ok()?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut body = vec![0; word(8) as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((word(0), word(4), body, file))
    }

    fn understand(&mut self, request: u32, body: &[u8], file: Option<File>) {
        let long = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        match request {
            // SET_MEM_TABLE: one region.
            5 => {
                let region =
                    file.map(|file| (GuestAddress(long(8)), long(16) as usize, Some(FileOffset::new(file, long(32)))));
                self.memory = region.and_then(|region| GuestMemoryMmap::from_ranges_with_files([region]).ok());
            }
            // SET_VRING_ADDR.
            9 => self.used.push((u32::from_ne_bytes(body[..4].try_into().unwrap()), long(16))),
            _ => {}
        }
    }

    fn answer(&self, request: u32, flags: u32, body: &[u8]) -> Option<Vec<u8>> {
        let Character { features, protocol, queues, config, .. } = self.character;
        let number = match request {
            1 => features | VERSION_1 | PROTOCOL_FEATURES,
            15 => (*protocol).into(),
            17 => (*queues).into(),
            11 => u64::from_ne_bytes(body[..8].try_into().unwrap()) & 0xffff_ffff,
            24 => {
                let len = (body.len() - 12).min(usize::from(*config) + 1);
                return Some(message(request, 5, &[&body[..12], &vec![7; len]].concat()));
            }
            _ if flags & 8 != 0 => 0,
            _ => return None,
        };
        Some(message(request, 5, &number.to_ne_bytes()))
    }

    fn scribble(&self) {
        let Some(memory) = &self.memory else { return };
        let base = 1 << 32;
        for scribble in &self.character.scribbles {
            // What is beyond the end is nobody's.
            match *scribble {
                Scribble::Used { queue, index, id, len } => {
                    let ring = self.used.iter().rfind(|(number, _)| *number == u32::from(queue % 4));
                    let Some((_, used)) = ring else { continue };
                    let _ = memory.write_obj(u64::from(id % 20) | u64::from(len) << 32, GuestAddress(used + 4));
                    let _ = memory.write_obj(index % 20, GuestAddress(used + 2));
                }
                Scribble::Anywhere { at, value } => {
                    drop(memory.write_obj(value, GuestAddress(base + u64::from(at % 0x10_0000))))
                }
            }
        }
    }
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    [&[request, flags, body.len() as u32].map(u32::to_ne_bytes).concat(), body].concat()
}
