//! A front-end that says anything to a device on a vhost-user socket: messages of every number, with flags, sizes and
//! descriptors as they come, in between those that set a ring up well; and a driver that uses the ring meanwhile.
//!
//! - What is answered was asked, in that order, in messages that are whole.
//! - When a connection has ended nothing is left of it: no worker, and no request.
//! - The next front-end, which is honest, is served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use rustix::event::{EventfdFlags, eventfd};
use testkit::device::{Behaviour, TestDevice, eventually};
use testkit::driver::{Descriptor, RawQueue};
use testkit::memory::FakeForeignMemory;
use vhost_user::Server;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const RAM: u64 = 0x4000_0000;
const RAM_LEN: u64 = 1 << 16;
const BUFFERS: u64 = RAM + 0x4000;
/// Where the front-end itself has the memory.
const USER: u64 = 0x7f00_0000_0000;
const SIZE: u16 = 16;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Messages of a run.
const MOST: usize = 60;

const PATIENCE: Duration = Duration::from_secs(20);

/// Requests of the protocol that a sound set-up takes.
mod request {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A part of what sets ring 0 up.
    Sound(u8),
    /// All of it.
    SetUp,
    Message {
        request: u8,
        flags: Flags,
        body: Body,
        files: [Option<File>; 3],
        odd_size: Option<u32>,
    },
    Bytes(Vec<u8>),
    Offer {
        slot: u8,
        at: u16,
        len: u16,
        writable: bool,
    },
    Scribble {
        at: u16,
        value: u32,
    },
    Kick,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Flags {
    Usual,
    WantsReply,
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Body {
    /// A ring and a number.
    Ring {
        index: u8,
        number: u16,
    },
    Number(u64),
    Bit(u8),
    /// A table of memory, or one region.
    Regions {
        count: u8,
        at: u16,
        len: u16,
        offset: u16,
    },
    Addresses {
        index: u8,
        at: [u16; 3],
    },
    Config {
        offset: u16,
        size: u8,
        data: u8,
    },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum File {
    Memory,
    Event,
    Socket,
}

impl Body {
    fn bytes(&self) -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_ne_bytes()).collect::<Vec<_>>();
        match self {
            Self::Ring { index, number } => words(&[u32::from(index % 4), (*number).into()]),
            Self::Number(number) => longs(&[*number]),
            Self::Bit(bit) => longs(&[1 << (bit % 64)]),
            Self::Regions { count, at, len, offset } => {
                let (at, len, offset) = (u64::from(*at) * 16, u64::from(*len) * 16, u64::from(*offset) * 16);
                let region = longs(&[RAM + at, len, USER + at, offset]);
                let count = usize::from(count % 10);
                [words(&[count as u32, 0]), region.repeat(count)].concat()
            }
            Self::Addresses { index, at } => {
                let [descriptors, used, available] = at.map(|at| USER + u64::from(at));
                [words(&[u32::from(index % 4), 0]), longs(&[descriptors, used, available, 0])].concat()
            }
            Self::Config { offset, size, data } => {
                [words(&[(*offset).into(), (*size).into(), 0]), vec![7; (*data).into()]].concat()
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

struct FrontEnd {
    stream: UnixStream,
    memory: FakeForeignMemory,
    queue: RawQueue,
    kick: OwnedFd,
    other: UnixStream,
    /// Requests that were said whole.
    said: Vec<u32>,
    /// Something was said that is no message: what follows is read as chance has it.
    is_garbled: bool,
}

/// Says what `bytes` spell.
///
/// # Panics
/// The device answers what was not asked, keeps something, or is not there any more.
pub fn run(bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let socket = folder.path().join("socket");
    let device = Arc::new(TestDevice::with_lanes(Behaviour::Echo, &[SIZE, SIZE], vec![0..1, 1..2]));
    let server = Server::new("fuzz", Arc::clone(&device) as _, UnixListener::bind(&socket).unwrap()).unwrap();
    let stopper = server.stopper();
    let serving = std::thread::spawn(move || server.serve());
    let mut source = Unstructured::new(bytes);
    let mut front_end = FrontEnd::connect(&socket);
    for _ in 0..MOST {
        let Ok(step) = Step::arbitrary(&mut source) else { break };
        front_end.make(&step);
        if source.is_empty() {
            break;
        }
    }
    front_end.end();
    eventually("the workers are gone", || device.workers.load(SeqCst) == 0);
    let mut honest = FrontEnd::connect(&socket);
    honest.set_up();
    honest.exchange();
    honest.end();
    stopper.stop();
    serving.join().expect("the server does not panic").expect("the socket listens");
}

impl FrontEnd {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
        let queue = RawQueue::new(memory.clone(), RAM, SIZE);
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (other, _) = UnixStream::pair().unwrap();
        Self { stream, memory, queue, kick, other, said: Vec::new(), is_garbled: false }
    }

    fn make(&mut self, step: &Step) {
        match step {
            Step::Sound(part) => self.sound(usize::from(*part) % PARTS),
            Step::SetUp => self.set_up(),
            Step::Message { request, flags, body, files, odd_size } => {
                let flags = match flags {
                    Flags::Usual => 1,
                    Flags::WantsReply => 9,
                    Flags::Any(flags) => *flags,
                };
                let files: Vec<_> = files.iter().flatten().copied().collect();
                self.say(u32::from(request % 48), flags, &body.bytes(), &files, *odd_size);
            }
            Step::Bytes(bytes) => {
                self.is_garbled = true;
                // Who has been let go may not be heard any more.
                let _ = self.stream.write_all(bytes);
            }
            Step::Offer { slot, at, len, writable } => {
                let (at, len) = (BUFFERS + u64::from(at % 0x8000), (*len).into());
                let piece = if *writable { Descriptor::writable(at, len) } else { Descriptor::readable(at, len) };
                self.queue.write_chain(u16::from(*slot) % SIZE, &[piece]);
                self.queue.publish(u16::from(*slot) % SIZE);
            }
            Step::Scribble { at, value } => {
                self.memory.write(RAM + u64::from(at % 0x400) / 4 * 4, &value.to_le_bytes());
            }
            Step::Kick => self.kick(),
        }
    }

    fn kick(&self) {
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }

    fn say(&mut self, request: u32, flags: u32, body: &[u8], files: &[File], odd_size: Option<u32>) {
        let size = odd_size.unwrap_or(body.len() as u32);
        self.is_garbled |= size as usize != body.len();
        let header = [request, flags, size].map(u32::to_ne_bytes).concat();
        let descriptors: Vec<i32> = files.iter().map(|file| self.file(*file).as_raw_fd()).collect();
        let bytes = [&header[..], body].concat();
        // Who has been let go may not be heard any more.
        if self.stream.send_with_fds(&[&bytes[..]], &descriptors).is_ok() {
            self.said.push(request);
        }
    }

    fn file(&self, file: File) -> BorrowedFd<'_> {
        match file {
            File::Memory => self.memory.as_fd(),
            File::Event => self.kick.as_fd(),
            File::Socket => self.other.as_fd(),
        }
    }

    /// One message of those that have ring 0 in service when they have all been said.
    fn sound(&mut self, part: usize) {
        let long = |number: u64| number.to_ne_bytes().to_vec();
        let ring = |number: u32| [0_u32, number].map(u32::to_ne_bytes).concat();
        let user = |address: u64| address - RAM + USER;
        let (request, body, file): (u32, Vec<u8>, &[File]) = match part {
            0 => (request::GET_FEATURES, Vec::new(), &[]),
            1 => (request::SET_OWNER, Vec::new(), &[]),
            2 => (request::SET_FEATURES, long(VERSION_1 | PROTOCOL_FEATURES), &[]),
            3 => {
                let table = [1_u32, 0].map(u32::to_ne_bytes).concat();
                (
                    request::SET_MEM_TABLE,
                    [table, [RAM, RAM_LEN, USER, 0].map(u64::to_ne_bytes).concat()].concat(),
                    &[File::Memory],
                )
            }
            4 => (request::SET_VRING_NUM, ring(SIZE.into()), &[]),
            5 => (request::SET_VRING_BASE, ring(0), &[]),
            6 => {
                let at = [self.queue.desc_table(), self.queue.used_ring(), self.queue.avail_ring()].map(user);
                let body =
                    [[0_u32, 0].map(u32::to_ne_bytes).concat(), at.map(u64::to_ne_bytes).concat(), long(0)].concat();
                (request::SET_VRING_ADDR, body, &[])
            }
            7 => (request::SET_VRING_KICK, long(0), &[File::Event]),
            8 => (request::SET_VRING_CALL, long(0), &[File::Event]),
            _ => (request::SET_VRING_ENABLE, ring(1), &[]),
        };
        self.say(request, 1, &body, file, None);
    }

    fn set_up(&mut self) {
        (0..PARTS).for_each(|part| self.sound(part));
    }

    /// A request of an honest driver.
    fn exchange(&mut self) {
        self.memory.write(BUFFERS, b"well");
        self.queue.write_chain(0, &[Descriptor::readable(BUFFERS, 4), Descriptor::writable(BUFFERS + 64, 4)]);
        self.queue.publish(0);
        self.kick();
        assert_eq!(self.queue.wait_used(1).len, 4);
        let mut echo = [0; 4];
        self.memory.read(BUFFERS + 64, &mut echo);
        assert_eq!(&echo, b"well");
    }

    /// Says no more, and looks at all that was answered until the connection has ended.
    fn end(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut answered = Vec::new();
        match self.stream.read_to_end(&mut answered) {
            // The device went without having read everything.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            outcome => drop(outcome.expect("a connection ends")),
        }
        let mut asked = self.said.iter();
        let mut rest = &answered[..];
        while let Some((header, behind)) = rest.split_at_checked(12) {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
            let (request, flags, size) = (word(0), word(4), word(8) as usize);
            assert_eq!(flags & 0xf, 5, "an answer with flags {flags:#x}");
            assert!(size <= behind.len(), "an answer of {size} bytes of which {} are there", behind.len());
            let was_asked = asked.any(|said| *said == request);
            assert!(was_asked || self.is_garbled, "request {request} is answered and was not made");
            rest = &behind[size..];
        }
        assert!(rest.is_empty(), "a part of an answer");
    }
}

/// Messages of a sound set-up.
const PARTS: usize = 10;
