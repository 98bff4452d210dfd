//! Each kind of device, with its end on the host as the test has it, and what an honest driver asks of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use vhost_user::{Server, Stopper};
use virtio_backend::{Backend, Kind as _, Owner, reach};
use virtio_console::{Console, Port, Sink};
use virtio_disk::Disk;
use virtio_net::Net;
use virtio_rng::Rng;
use virtio_vhost_user::{DeviceType, VhostUser};
use virtio_vsock::Vsock;

/// How long what must happen on the host may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of a disk's sector.
const SECTOR: usize = 512;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Disk,
    Net,
    Console,
    Rng,
    Vsock,
    VhostUser,
}

impl Kind {
    pub const ALL: [Self; 6] = [Self::Disk, Self::Net, Self::Console, Self::Rng, Self::Vsock, Self::VhostUser];

    /// Queues of which the device takes every chain as soon as it is offered.
    pub fn prompt_queues(self) -> &'static [u32] {
        match self {
            Self::Disk | Self::Rng | Self::VhostUser => &[0],
            Self::Net | Self::Console | Self::Vsock => &[1],
        }
    }

    /// Queues of which the device takes chains when something comes from the host.
    pub fn receive_queues(self) -> &'static [u32] {
        match self {
            Self::Net | Self::Console | Self::Vsock => &[0],
            Self::Disk | Self::Rng | Self::VhostUser => &[],
        }
    }

    /// Whether what serves the device is another program, which may say nothing of a request that makes no sense to it. It
    /// has no way to say that the device needs a reset, which is what ends the request.
    pub fn may_be_silent(self) -> bool {
        self == Self::VhostUser
    }

    /// Where the device writes a byte that says how a request ended, whatever else it says that it wrote.
    pub fn has_status_byte(self) -> bool {
        matches!(self, Self::Disk | Self::VhostUser)
    }
}

/// A request that an honest driver makes: what the device reads, and how much it may write.
pub struct Request {
    pub queue: u32,
    pub readable: Vec<u8>,
    pub writable: usize,
}

/// A device, and its end on the host.
pub struct Host {
    kind: Kind,
    pub device: Arc<dyn Backend>,
    far: Far,
    /// Makes each request different from the one before.
    seed: AtomicU8,
    _directory: TempDir,
}

/// What the test holds of a device's end.
enum Far {
    /// An image of [`sector`]s.
    Image,
    /// What comes from a card, taken by a thread; what goes to it; and the card's end of that, to see what it has not taken.
    Wire(Receiver<Vec<u8>>, UnixStream, UnixStream),
    /// The same of a console, which takes what comes and drops it.
    Terminal(Receiver<Vec<u8>>, UnixStream),
    /// Where programs on the host connect to the guest, and the last one that did.
    Socket(PathBuf, Mutex<Option<UnixStream>>),
    /// An image that another program serves, which ends with the device.
    Program(Stopper),
    Nothing,
}

impl Host {
    /// Opens and makes a device of this kind.
    pub fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (device, far) = match kind {
            Kind::Disk => (disk(directory.path()), Far::Image),
            Kind::Net => net(),
            Kind::Console => console(directory.path()),
            Kind::Rng => (made::<Rng>(&virtio_rng::Config::default(), vec![]), Far::Nothing),
            Kind::Vsock => vsock(directory.path()),
            Kind::VhostUser => vhost_user(directory.path()),
        };
        Self { kind, device, far, seed: AtomicU8::new(0), _directory: directory }
    }

    /// The next request of an honest driver.
    pub fn request(&self) -> Request {
        let seed = self.seed.fetch_add(1, Relaxed);
        let (queue, readable, writable) = match self.kind {
            Kind::Disk | Kind::VhostUser => {
                (0, [&[0; 8][..], &u64::from(seed % 16).to_le_bytes()].concat(), SECTOR + 1)
            }
            Kind::Net => (1, [&[0; 12][..], &frame(seed)].concat(), 0),
            Kind::Console => (1, line(seed), 0),
            Kind::Rng => (0, vec![], 48),
            Kind::Vsock => (1, connect_request(seed), 0),
        };
        Request { queue, readable, writable }
    }

    /// Sees that the device did what `request` asks for: it has written `written`.
    pub fn expect(&self, request: &Request, written: &[u8]) {
        match &self.far {
            Far::Image | Far::Program(_) => {
                assert_eq!(written.len(), SECTOR + 1);
                assert!(written[..SECTOR] == sector(request.readable[8]) && written[SECTOR] == 0, "another sector");
            }
            Far::Wire(received, ..) => expect_in(received, &request.readable[12..]),
            Far::Terminal(received, _) => expect_in(received, &request.readable),
            Far::Nothing => assert!(written.iter().any(|byte| *byte != 0), "random bytes are not zero"),
            // It answers in another queue.
            Far::Socket(..) => {}
        }
        assert_eq!(written.len(), request.writable);
    }

    /// Has something come for the guest, so that the device takes a chain of its receive queue.
    pub fn nudge(&self) {
        match &self.far {
            Far::Wire(_, stream, card) => {
                // What is cut off in the middle of a frame would be the end of the card's connection.
                if rustix::io::ioctl_fionread(card).unwrap() == 0 {
                    let (mut stream, frame) = (stream, frame(0xee));
                    stream.write_all(&[&(frame.len() as u32).to_be_bytes()[..], &frame].concat()).unwrap();
                }
            }
            Far::Terminal(_, stream) => {
                let mut stream = stream;
                // A console that holds its input back needs no more of it.
                let _ = stream.write_all(b"typed\n");
            }
            Far::Socket(socket, program) => {
                let mut connecting = UnixStream::connect(socket).unwrap();
                connecting.write_all(b"CONNECT 5\n").unwrap();
                *program.lock().unwrap() = Some(connecting);
            }
            Far::Image | Far::Program(_) | Far::Nothing => {}
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Far::Program(stopper) = &self.far {
            stopper.stop();
        }
    }
}

/// Waits until `sent` comes out. What earlier inputs sent comes first.
fn expect_in(received: &Receiver<Vec<u8>>, sent: &[u8]) {
    let mut seen = Vec::new();
    while !seen.windows(sent.len()).any(|part| part == sent) {
        seen.extend(received.recv_timeout(PATIENCE).expect("what the guest sent comes out"));
    }
}

/// What a sector of a disk reads as.
fn sector(number: u8) -> Vec<u8> {
    (0..SECTOR).map(|at| (at as u8).wrapping_mul(7) ^ number).collect()
}

/// An image of sixteen sectors, opened.
fn image(directory: &Path) -> File {
    let path = directory.join("disk.img");
    std::fs::write(&path, (0..16).flat_map(sector).collect::<Vec<_>>()).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

/// The engine without a ring of the kernel's: a disk is started here for each of thousands of inputs.
fn disk(directory: &Path) -> Arc<dyn Backend> {
    let config = virtio_disk::Config {
        engine: virtio_disk::EngineKind::Plain,
        read_only: true,
        ..virtio_disk::Config::default()
    };
    made::<Disk>(&config, vec![image(directory).into()])
}

/// A frame that nobody else sends.
fn frame(seed: u8) -> Vec<u8> {
    [&[0, 0x16, 0x3e, 9, 9, 9, 0, 0x16, 0x3e, 1, 2, 3, 0x88, 0xb5][..], &[seed; 32]].concat()
}

fn net() -> (Arc<dyn Backend>, Far) {
    let (passt, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mac = [0, 0x16, 0x3e, 1, 2, 3].try_into().unwrap();
    let config =
        virtio_net::Config { passt: Some("/run/passt.socket".into()), mac: Some(mac), ..virtio_net::Config::default() };
    let far = Far::Wire(taken_from(&passt), passt, socket.try_clone().unwrap());
    (made::<Net>(&config, vec![socket.into()]), far)
}

/// A line that nobody else prints.
fn line(seed: u8) -> Vec<u8> {
    format!("<line {seed:3}>\n").into_bytes()
}

fn console(directory: &Path) -> (Arc<dyn Backend>, Far) {
    let path = directory.join("console.sock");
    let port = Port { sink: Sink::Socket, path: Some(path.clone()), ..Port::default() };
    let mut config = virtio_console::Config { ports: vec![port], ..virtio_console::Config::default() };
    let descriptors = Console::open(&mut config, &owner(directory)).unwrap();
    let device = made::<Console>(&config, descriptors);
    let stream = UnixStream::connect(path).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    (device, Far::Terminal(taken_from(&stream), stream))
}

/// Takes all that comes, so that no device waits for its reader.
fn taken_from(stream: &UnixStream) -> Receiver<Vec<u8>> {
    let (taken, received) = mpsc::channel();
    let mut reader = stream.try_clone().unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(len @ 1..) = reader.read(&mut bytes) {
            if taken.send(bytes[..len].to_vec()).is_err() {
                break;
            }
        }
    });
    received
}

/// The header of a packet (virtio 1.2 §5.10.6) that asks for a connection to a port at which nobody listens.
fn connect_request(seed: u8) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(CID.to_le_bytes());
    header.extend(2_u64.to_le_bytes());
    header.extend((1000 + u32::from(seed)).to_le_bytes());
    header.extend(77_u32.to_le_bytes());
    header.extend(0_u32.to_le_bytes());
    // A stream, and a request.
    header.extend([1, 0, 1, 0]);
    header.extend([0_u32, 1 << 16, 0].iter().flat_map(|field| field.to_le_bytes()));
    header
}

const CID: u64 = 42;

fn vsock(directory: &Path) -> (Arc<dyn Backend>, Far) {
    let socket = directory.join("vsock.sock");
    let mut config = virtio_vsock::Config { cid: CID, socket: Some(socket.clone()) };
    let descriptors = Vsock::open(&mut config, &owner(directory)).unwrap();
    (made::<Vsock>(&config, descriptors), Far::Socket(socket, Mutex::default()))
}

/// A disk of another program's: of a thread's.
fn vhost_user(directory: &Path) -> (Arc<dyn Backend>, Far) {
    let socket = directory.join("backend.sock");
    let server = Server::new("backend", disk(directory), UnixListener::bind(&socket).unwrap()).unwrap();
    let stopper = server.stopper();
    thread::spawn(|| server.serve());
    let mut config = virtio_vhost_user::Config {
        device: Some(DeviceType::of_id(2)),
        socket,
        ..virtio_vhost_user::Config::default()
    };
    let descriptors = VhostUser::open(&mut config, &owner(directory)).unwrap();
    (made::<VhostUser>(&config, descriptors), Far::Program(stopper))
}

/// A device that connects by itself where it has to.
fn made<K: virtio_backend::Kind>(config: &K::Config, descriptors: Vec<OwnedFd>) -> Arc<dyn Backend> {
    K::make(config, descriptors, reach::directly::<K>(config)).unwrap()
}

fn owner(directory: &Path) -> Owner {
    Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: directory.to_owned() }
}
