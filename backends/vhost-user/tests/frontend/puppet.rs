//! A backend that does as a test says: it answers as a good one does unless it is told otherwise, keeps what it was
//! told, and works its queues by hand.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use tempfile::TempDir;
use testkit::device::eventually;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Requests, by their numbers in the protocol.
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
}

/// Features of the protocol.
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const ALL: u64 = MQ | REPLY_ACK | BACKEND_REQ | CONFIG | RESET_DEVICE;
}

/// Where the memory starts that it is given.
pub const BASE: u64 = 1 << 32;

pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What the puppet does at a request instead of what a backend does.
#[derive(Clone, Debug)]
pub enum Turn {
    /// Answers with these bytes, header and all.
    Says(Vec<u8>),
    /// The same, and sends a descriptor along.
    SaysWithDescriptor(Vec<u8>),
    /// Never answers, and never listens again on this connection.
    Hangs,
    /// Answers as a backend does, and takes a second for each byte.
    Trickles,
    /// Ends the connection.
    Leaves,
    /// Acknowledges with a failure.
    Refuses,
}

/// What the puppet says of itself.
#[derive(Clone)]
pub struct Character {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub config: Vec<u8>,
    /// What it does otherwise than a backend, by request.
    pub turns: HashMap<u32, Turn>,
}

impl Default for Character {
    fn default() -> Self {
        let features = crate::harness::VERSION_1 | PROTOCOL_FEATURES;
        Self { features, protocol: protocol::ALL, queues: 8, config: vec![7; 256], turns: HashMap::new() }
    }
}

/// A message as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub request: u32,
    pub body: Vec<u8>,
    pub wants_reply: bool,
}

#[derive(Default)]
struct Vring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    kick: Option<File>,
    call: Option<File>,
    next: u16,
    given_back: u16,
}

#[derive(Default)]
struct Known {
    heard: Vec<Message>,
    connections: usize,
    stream: Option<UnixStream>,
    channel: Option<UnixStream>,
    memory: Option<(GuestMemoryMmap<()>, u64)>,
    vrings: HashMap<u32, Vring>,
}

/// The backend.
pub struct Puppet {
    folder: TempDir,
    known: Arc<Mutex<Known>>,
    character: Arc<Mutex<Character>>,
}

/// A chain that the puppet has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    /// Its descriptors: address, length, and whether it can be written.
    pub buffers: Vec<(u64, u32, bool)>,
    /// Whether they were in a table.
    pub by_table: bool,
    /// The readable bytes.
    pub bytes: Vec<u8>,
}

impl Puppet {
    pub fn new(character: Character) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let puppet = Self { folder, known: Arc::default(), character: Arc::new(Mutex::new(character)) };
        puppet.listen();
        puppet
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("backend.sock")
    }

    /// Serves one connection after the other at the socket.
    pub fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (known, character) = (Arc::clone(&self.known), Arc::clone(&self.character));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                serve(stream.try_clone().unwrap(), &known, &character);
                // It may have ended otherwise already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    /// Has nobody listen at the socket from now on.
    pub fn hide(&self) {
        std::fs::remove_file(self.socket()).unwrap();
    }

    pub fn change(&self, change: impl FnOnce(&mut Character)) {
        change(&mut self.character.lock().unwrap());
    }

    /// What it does at a request from now on.
    pub fn turn(&self, request: u32, turn: Turn) {
        self.change(|character| drop(character.turns.insert(request, turn)));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    pub fn connections(&self) -> usize {
        self.known().connections
    }

    /// The bodies of all messages with this request, over all connections.
    pub fn heard(&self, request: u32) -> Vec<Vec<u8>> {
        let known = self.known();
        known.heard.iter().filter(|message| message.request == request).map(|message| message.body.clone()).collect()
    }

    /// The requests that were heard, in order.
    pub fn requests(&self) -> Vec<u32> {
        self.known().heard.iter().map(|message| message.request).collect()
    }

    /// Ends the connection of the moment.
    pub fn hang_up(&self) {
        let mut known = self.known();
        known.vrings.clear();
        known.stream.take().unwrap().shutdown(Shutdown::Both).unwrap();
    }

    /// Says something on the connection that nobody asked for.
    pub fn blurt(&self, bytes: &[u8]) {
        self.known().stream.as_ref().unwrap().write_all(bytes).unwrap();
    }

    /// Says something on its own channel, and returns the answer if one is wanted.
    pub fn say(&self, code: u32, wants_reply: bool) -> Option<u64> {
        eventually("there is a channel", || self.known().channel.is_some());
        let mut channel = self.known().channel.as_ref().unwrap().try_clone().unwrap();
        channel.write_all(&message(code, if wants_reply { 9 } else { 1 }, &[])).unwrap();
        wants_reply.then(|| {
            let mut answer = [0; 20];
            channel.read_exact(&mut answer).unwrap();
            u64::from_ne_bytes(answer[12..].try_into().unwrap())
        })
    }

    /// Says these bytes on its own channel.
    pub fn say_raw(&self, bytes: &[u8]) {
        eventually("there is a channel", || self.known().channel.is_some());
        // Not with the lock held: it may take until the other side has listened.
        let mut channel = self.known().channel.as_ref().unwrap().try_clone().unwrap();
        channel.write_all(bytes).unwrap();
    }

    /// Whether a queue is there to be worked.
    pub fn has_queue(&self, queue: u32) -> bool {
        self.known().vrings.get(&queue).is_some_and(|vring| vring.kick.is_some() && vring.call.is_some())
    }

    /// Bytes of the memory that it was given.
    pub fn memory_len(&self) -> u64 {
        self.known().memory.as_ref().unwrap().1
    }

    /// Its own view of the memory of the moment, to be kept beyond its end.
    pub fn memory(&self) -> GuestMemoryMmap<()> {
        self.known().memory.as_ref().unwrap().0.clone()
    }

    /// Where a queue's used ring is in the memory.
    pub fn used_ring(&self, queue: u32) -> u64 {
        self.known().vrings[&queue].used
    }

    /// How many chains of a queue it could take.
    pub fn available(&self, queue: u32) -> u16 {
        let known = self.known();
        let Some((vring, (memory, _))) = known.vrings.get(&queue).zip(known.memory.as_ref()) else { return 0 };
        if vring.available == 0 || vring.kick.is_none() {
            return 0;
        }
        let index: u16 = memory.read_obj(GuestAddress(vring.available + 2)).unwrap();
        index.wrapping_sub(vring.next)
    }

    /// Takes the next chain of a queue, as soon as there is one.
    pub fn take(&self, queue: u32) -> Chain {
        eventually("there is a chain", || self.available(queue) > 0);
        let mut known = self.known();
        let memory = known.memory.as_ref().unwrap().0.clone();
        let vring = known.vrings.get_mut(&queue).unwrap();
        let entry = vring.available + 4 + 2 * u64::from(vring.next % vring.size);
        vring.next = vring.next.wrapping_add(1);
        let head: u16 = memory.read_obj(GuestAddress(entry)).unwrap();
        let (buffers, by_table) = walk(&memory, vring.descriptors, head);
        let mut bytes = Vec::new();
        for (address, len, _) in buffers.iter().filter(|(_, _, writable)| !writable) {
            let mut part = vec![0; *len as usize];
            memory.read_slice(&mut part, GuestAddress(*address)).unwrap();
            bytes.extend(part);
        }
        Chain { head, buffers, by_table, bytes }
    }

    /// Writes to a chain's writable part from `at` on.
    pub fn write(&self, chain: &Chain, at: usize, bytes: &[u8]) {
        let memory = self.memory();
        let (mut start, mut rest) = (0, bytes);
        for (address, len, _) in chain.buffers.iter().filter(|(_, _, writable)| *writable) {
            let end = start + *len as usize;
            let from = (at + bytes.len() - rest.len()).max(start);
            let part = rest.len().min(end.saturating_sub(from));
            memory.write_slice(&rest[..part], GuestAddress(address + (from - start) as u64)).unwrap();
            rest = &rest[part..];
            start = end;
        }
        assert!(rest.is_empty(), "the chain has no room for {} more bytes", rest.len());
    }

    /// Says of a chain that it is done, and calls.
    pub fn done(&self, queue: u32, id: u32, len: u32) {
        let mut known = self.known();
        let memory = known.memory.as_ref().unwrap().0.clone();
        let vring = known.vrings.get_mut(&queue).unwrap();
        let entry = vring.used + 4 + 8 * u64::from(vring.given_back % vring.size);
        memory.write_obj(id, GuestAddress(entry)).unwrap();
        memory.write_obj(len, GuestAddress(entry + 4)).unwrap();
        vring.given_back = vring.given_back.wrapping_add(1);
        memory.store(vring.given_back, GuestAddress(vring.used + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
        call(vring);
    }

    /// Answers a chain: writes to it from its start, and gives it back.
    pub fn answer(&self, queue: u32, chain: &Chain, bytes: &[u8]) {
        self.write(chain, 0, bytes);
        self.done(queue, chain.head.into(), bytes.len() as u32);
    }

    /// Says that so many chains were given back, whether they were or not, and calls.
    pub fn set_used_index(&self, queue: u32, index: u16) {
        let mut known = self.known();
        let memory = known.memory.as_ref().unwrap().0.clone();
        let vring = known.vrings.get_mut(&queue).unwrap();
        memory.store(index, GuestAddress(vring.used + 2), std::sync::atomic::Ordering::SeqCst).unwrap();
        call(vring);
    }

    /// Kicks that it was given for a queue since this was last asked.
    pub fn kicks(&self, queue: u32) -> u64 {
        let known = self.known();
        let mut count = [0; 8];
        let mut kick = known.vrings[&queue].kick.as_ref().unwrap();
        kick.read(&mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

fn call(vring: &Vring) {
    vring.call.as_ref().unwrap().write_all(&1u64.to_ne_bytes()).unwrap();
}

/// A message's bytes.
pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    [&[code, flags, body.len() as u32].map(u32::to_ne_bytes).concat(), body].concat()
}

/// The answer to a request that a number is asked by.
pub fn reply(request: u32, value: u64) -> Vec<u8> {
    message(request, 5, &value.to_ne_bytes())
}

/// Answers that are none to this question.
pub fn wrong_answers(question: u32) -> [Turn; 13] {
    [
        // Another answer, and requests in the place of one.
        Turn::Says(reply(question + 1, 0)),
        Turn::Says(reply(0, 0)),
        Turn::Says(reply(u32::MAX, 0)),
        Turn::Says(message(question, 1, &[0; 8])),
        // Other versions.
        Turn::Says(message(question, 4, &[0; 8])),
        Turn::Says(message(question, 6, &[0; 8])),
        Turn::Says(message(question, 7, &[0; 8])),
        // Too short, too long, and too much.
        Turn::Says(message(question, 5, &[])),
        Turn::Says(message(question, 5, &[0; 4])),
        Turn::Says(message(question, 5, &[0; 12])),
        Turn::Says(message(question, 5, &[0; 4096])),
        Turn::Says([question, 5, u32::MAX].map(u32::to_ne_bytes).concat()),
        Turn::SaysWithDescriptor(reply(question, 0)),
    ]
}

fn walk(memory: &GuestMemoryMmap<()>, table: u64, head: u16) -> (Vec<(u64, u32, bool)>, bool) {
    let descriptor = |table: u64, index: u16| -> (u64, u32, u16, u16) {
        let at = table + 16 * u64::from(index);
        let raw: [u8; 16] = memory.read_obj(GuestAddress(at)).unwrap();
        let value = u128::from_le_bytes(raw);
        (value as u64, (value >> 64) as u32, (value >> 96) as u16, (value >> 112) as u16)
    };
    let (address, _, flags, _) = descriptor(table, head);
    let by_table = flags & 4 != 0;
    let (table, mut index) = if by_table { (address, 0) } else { (table, head) };
    let mut buffers = Vec::new();
    loop {
        let (address, len, flags, next) = descriptor(table, index);
        buffers.push((address, len, flags & 2 != 0));
        if flags & 1 == 0 {
            return (buffers, by_table);
        }
        index = next;
    }
}

/// Serves one connection until it ends.
fn serve(mut stream: UnixStream, known: &Mutex<Known>, character: &Mutex<Character>) {
    {
        let mut known = known.lock().unwrap();
        known.connections += 1;
        known.stream = Some(stream.try_clone().unwrap());
        known.channel = None;
        known.memory = None;
        known.vrings.clear();
    }
    while let Some((message, descriptor)) = receive(&mut stream) {
        let request = message.request;
        let Character { features, protocol, queues, config, turns } = character.lock().unwrap().clone();
        let wants_reply = message.wants_reply;
        let answer = {
            let mut known = known.lock().unwrap();
            known.heard.push(message.clone());
            understand(&mut known, &message, descriptor)
        };
        let done = match turns.get(&request) {
            Some(Turn::Says(bytes)) => stream.write_all(bytes),
            Some(Turn::SaysWithDescriptor(bytes)) => {
                let file = File::open("/dev/null").unwrap();
                stream.send_with_fd(&bytes[..], std::os::fd::AsRawFd::as_raw_fd(&file)).map(drop).map_err(Into::into)
            }
            Some(Turn::Hangs) => {
                // Until the other side has had enough.
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
            Some(Turn::Trickles) => reply(request, 0).iter().try_for_each(|byte| {
                thread::sleep(std::time::Duration::from_secs(1));
                stream.write_all(&[*byte])
            }),
            Some(Turn::Leaves) => return,
            Some(Turn::Refuses) => stream.write_all(&reply(request, 1)),
            None => match (request, answer) {
                (request::GET_FEATURES, _) => stream.write_all(&reply(request, features)),
                (request::GET_PROTOCOL_FEATURES, _) => stream.write_all(&reply(request, protocol)),
                (request::GET_QUEUE_NUM, _) => stream.write_all(&reply(request, queues)),
                (request::GET_CONFIG, _) => {
                    let size = message.body.len() - 12;
                    let body = [&message.body[..12], &config[..size.min(config.len())]].concat();
                    stream.write_all(&self::message(request, 5, if size > config.len() { &[] } else { &body }))
                }
                (_, Some(answer)) => stream.write_all(&answer),
                _ if wants_reply => stream.write_all(&reply(request, 0)),
                _ => Ok(()),
            },
        };
        if done.is_err() {
            return;
        }
    }
}

fn receive(stream: &mut UnixStream) -> Option<(Message, Option<File>)> {
    let mut header = [0; 12];
    let (received, descriptor) = stream.recv_with_fd(&mut header).ok()?;
    stream.read_exact(&mut header[received..]).ok().filter(|()| received > 0)?;
    let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; field(8) as usize];
    stream.read_exact(&mut body).ok()?;
    Some((Message { request: field(0), body, wants_reply: field(4) & 8 != 0 }, descriptor))
}

/// Keeps what a message tells. Returns the answer to one that has an answer of its own.
fn understand(known: &mut Known, message: &Message, descriptor: Option<File>) -> Option<Vec<u8>> {
    let word = |at: usize| u32::from_ne_bytes(message.body[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_ne_bytes(message.body[at..at + 8].try_into().unwrap());
    match message.request {
        request::SET_MEM_TABLE => {
            let (start, len, offset) = (long(8), long(16), long(32));
            assert_eq!((word(0), start), (1, long(24)), "one region, with one address");
            let file = FileOffset::new(descriptor.unwrap(), offset);
            let regions = [(GuestAddress(start), len as usize, Some(file))];
            known.memory = Some((GuestMemoryMmap::from_ranges_with_files(regions).unwrap(), len));
        }
        request::SET_BACKEND_REQ_FD => {
            known.channel = descriptor.map(|file| UnixStream::from(std::os::fd::OwnedFd::from(file)));
        }
        request::SET_VRING_NUM => known.vrings.entry(word(0)).or_default().size = word(4) as u16,
        request::SET_VRING_BASE => {
            let vring = known.vrings.entry(word(0)).or_default();
            (vring.next, vring.given_back) = (word(4) as u16, word(4) as u16);
        }
        request::SET_VRING_ADDR => {
            let vring = known.vrings.entry(word(0)).or_default();
            (vring.descriptors, vring.used, vring.available) = (long(8), long(16), long(24));
        }
        request::SET_VRING_KICK => known.vrings.entry(word(0)).or_default().kick = descriptor,
        request::SET_VRING_CALL => known.vrings.entry(word(0)).or_default().call = descriptor,
        request::GET_VRING_BASE => {
            let vring = known.vrings.entry(word(0)).or_default();
            vring.kick = None;
            let body = [word(0), vring.next.into()].map(u32::to_ne_bytes).concat();
            return Some(self::message(message.request, 5, &body));
        }
        _ => {}
    }
    None
}
