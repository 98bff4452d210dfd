//! A host that does as a test says: packets go through datagram sockets, and calls fail when they are told to.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use guest_memory::Part;
use virtio_net::engine::{Control, Engine, HEADER_LEN, Packet, Port};
use virtio_net::guest;

/// The test's end of a fake host. Clones are the same host.
#[derive(Clone)]
pub struct FakeHost {
    /// By pair: what the card sends comes out here, and what is put in here it receives; header first.
    pub wires: Vec<Arc<UnixDatagram>>,
    /// The card's ends of the wires.
    theirs: Vec<Arc<UnixDatagram>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    offloads: u64,
    active: u16,
    send_failures: VecDeque<io::Error>,
    receive_failures: VecDeque<io::Error>,
    refuses: bool,
    receives: u64,
}

impl FakeHost {
    /// A host with this many ports, and its engine.
    pub fn new(pairs: u16) -> (Self, Engine) {
        let state = Arc::<Mutex<State>>::default();
        let (mut wires, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (here, there) = UnixDatagram::pair().unwrap();
            here.set_read_timeout(Some(crate::guest::PATIENCE)).unwrap();
            there.set_nonblocking(true).unwrap();
            wires.push(Arc::new(here));
            theirs.push(Arc::new(there));
        }
        let host = Self { wires, theirs, state };
        let engine = host.engine();
        (host, engine)
    }

    /// Another engine over the same host, for the process that follows.
    pub fn engine(&self) -> Engine {
        let port = |wire: &UnixDatagram| FakePort { wire: wire.try_clone().unwrap(), state: Arc::clone(&self.state) };
        let ports = self.theirs.iter().map(|wire| Box::new(port(wire)) as Box<dyn Port>).collect();
        Engine { control: Box::new(FakeControl(Arc::clone(&self.state))), ports }
    }

    /// Puts a packet on the wire to the card, with a header that says nothing.
    pub fn put(&self, frame: &[u8]) {
        self.put_with(&[0; HEADER_LEN], frame);
    }

    /// The same, with a header.
    pub fn put_with(&self, header: &[u8; HEADER_LEN], frame: &[u8]) {
        self.wires[0].send(&[header, frame].concat()).unwrap();
    }

    /// The next packet that the card sends: header and frame.
    pub fn take(&self) -> (Vec<u8>, Vec<u8>) {
        take_from(&self.wires[0])
    }

    /// The next calls of `send` fail like this, one each.
    pub fn fail_sends(&self, errors: impl IntoIterator<Item = io::Error>) {
        self.state.lock().unwrap().send_failures.extend(errors);
    }

    /// The next calls of `receive` fail like this, one each.
    pub fn fail_receives(&self, errors: impl IntoIterator<Item = io::Error>) {
        self.state.lock().unwrap().receive_failures.extend(errors);
    }

    /// Nothing can be set any more.
    pub fn refuse(&self) {
        self.state.lock().unwrap().refuses = true;
    }

    /// The offloads that are set.
    pub fn offloads(&self) -> u64 {
        self.state.lock().unwrap().offloads
    }

    /// The pairs that are active.
    pub fn active(&self) -> u16 {
        self.state.lock().unwrap().active
    }

    /// Calls of `receive` so far.
    pub fn receives(&self) -> u64 {
        self.state.lock().unwrap().receives
    }
}

/// The next packet that comes out of a wire: header and frame.
pub fn take_from(wire: &UnixDatagram) -> (Vec<u8>, Vec<u8>) {
    let mut packet = vec![0; 1 << 17];
    let len = wire.recv(&mut packet).expect("the card should have sent a packet");
    let frame = packet[HEADER_LEN..len].to_vec();
    (packet[..HEADER_LEN].to_vec(), frame)
}

struct FakeControl(Arc<Mutex<State>>);

impl Control for FakeControl {
    fn offloads(&self) -> u64 {
        guest::ALL
    }

    fn set_offloads(&self, offloads: u64) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.refuses {
            return Err(ErrorKind::Unsupported.into());
        }
        state.offloads = offloads;
        Ok(())
    }

    fn set_active(&self, pairs: u16) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.refuses {
            return Err(ErrorKind::Unsupported.into());
        }
        state.active = pairs;
        Ok(())
    }
}

struct FakePort {
    wire: UnixDatagram,
    state: Arc<Mutex<State>>,
}

impl Port for FakePort {
    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let Packet { header, frame } = packet;
        if let Some(error) = self.state.lock().unwrap().send_failures.pop_front() {
            return Err(error);
        }
        let mut bytes = vec![0; HEADER_LEN + frame.len];
        bytes[..HEADER_LEN].copy_from_slice(header);
        frame.buffers.read(frame.at, &mut bytes[HEADER_LEN..]);
        self.wire.send(&bytes).map(|_whole| ())
    }

    fn receive(&mut self, head: &mut [u8], parts: &[Part<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock().unwrap();
        state.receives += 1;
        if let Some(error) = state.receive_failures.pop_front() {
            return Err(error);
        }
        drop(state);
        let mut packet = vec![0; 1 << 17];
        let len = self.wire.recv(&mut packet)?;
        let (first, mut rest) = packet[..len].split_at(len.min(head.len()));
        head[..first.len()].copy_from_slice(first);
        for part in parts {
            let (here, later) = rest.split_at(rest.len().min(part.len));
            assert_eq!(part.buffers.write(part.at, here), here.len());
            rest = later;
        }
        Ok(len - rest.len())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }

    fn take_calls(&mut self) -> u64 {
        1
    }
}
