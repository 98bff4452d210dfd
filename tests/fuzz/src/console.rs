//! Drivers of any kind, of a console with two ports: see `lanes`. All queues are there, those of the control protocol among
//! them. The first port is a socket, at which a reader comes, types and goes; the second one ends nowhere.
//!
//! - What an honest driver prints at the end comes out, and what is typed then comes in.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use tempfile::TempDir;
use virtio_backend::reach::directly;
use virtio_backend::{Backend, Kind, Owner};
use virtio_console::{Config, Console};

use crate::lanes::{Buffer, Personality, Rig, play};

/// How long the host's end, which has a thread of its own, may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Queues, by what the driver does with them (virtio 1.2 §5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;

/// Control messages (§5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

/// What a driver says.
#[derive(Arbitrary, Debug)]
pub(crate) enum Message {
    Prints(Vec<u8>),
    PrintsMuch { byte: u8, len: u16 },
    Control { port: u8, event: u8, value: u8 },
    OddControl { port: u32, event: u16, value: u16, more: u8 },
    Nothing,
}

/// What people do.
#[derive(Arbitrary, Debug)]
pub(crate) enum Event {
    Comes,
    Goes,
    Types(Vec<u8>),
    /// Takes what is there to be read.
    Reads,
}

struct Terminal {
    device: Arc<dyn Backend>,
    socket: PathBuf,
    reader: Option<UnixStream>,
    _folder: TempDir,
}

/// Plays the driver that `bytes` spell.
///
/// # Panics
/// The console did something that it must not do.
pub fn run(bytes: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let socket = folder.path().join("port");
    let written = format!(
        "sink = 'socket'\npath = '{}'\ncols = 80\nrows = 24\n[[port]]\nname = 'agent'\nsink = 'null'",
        socket.display()
    );
    let mut config: Config = toml::from_str(&written).unwrap();
    let directory = folder.path().to_owned();
    let owner = Owner { guest: "fuzz".into(), identity: "fuzz".into(), index: 0, vcpus: 1, directory };
    let descriptors = Console::open(&mut config, &owner).unwrap();
    let device = Console::make(&config, descriptors, directly::<Console>(&config)).unwrap();
    play(Terminal { device, socket, reader: None, _folder: folder }, &mut Unstructured::new(bytes));
}

fn control(port: u32, event: u16, value: u16) -> Vec<u8> {
    [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

impl Terminal {
    fn come(&mut self) {
        let reader = UnixStream::connect(&self.socket).expect("the socket listens");
        reader.set_nonblocking(true).unwrap();
        self.reader = Some(reader);
    }

    /// Sends a control message, as an honest driver does.
    fn say(rig: &mut Rig, message: &[u8]) {
        let (head, _) = rig.offer(CONTROL_TRANSMIT, message, 0, Buffer::default()).expect("there is room");
        rig.kick(CONTROL_TRANSMIT);
        assert_eq!(rig.take_back(CONTROL_TRANSMIT), [(head, 0)]);
    }
}

impl Personality for Terminal {
    type Message = Message;
    type Event = Event;

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.device)
    }

    fn bytes(&self, _queue: usize, message: &Message) -> Vec<u8> {
        match message {
            Message::Prints(bytes) => bytes.clone(),
            Message::PrintsMuch { byte, len } => vec![*byte; (*len).into()],
            Message::Control { port, event, value } => {
                control(u32::from(port % 3), u16::from(event % 9), u16::from(value % 3))
            }
            Message::OddControl { port, event, value, more } => {
                let mut bytes = control(*port, *event, *value);
                bytes.resize(usize::from(more % 20), 0);
                bytes
            }
            Message::Nothing => Vec::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Comes => self.come(),
            Event::Goes => self.reader = None,
            Event::Types(bytes) => {
                if let Some(mut reader) = self.reader.as_ref() {
                    // Nobody has to listen.
                    drop(reader.write(&bytes));
                }
            }
            Event::Reads => {
                if let Some(mut reader) = self.reader.as_ref() {
                    drop(reader.read(&mut [0; 4096]));
                }
            }
        }
    }

    /// From the first control message to a line each way.
    fn prove(&mut self, rig: &mut Rig) {
        for _ in 0..8 {
            rig.offer(CONTROL_RECEIVE, &[], 64, Buffer::default()).expect("there is room");
        }
        Self::say(rig, &control(u32::MAX, DEVICE_READY, 1));
        assert_eq!(rig.take_back(CONTROL_RECEIVE).len(), 2, "a port is added, and another");
        Self::say(rig, &control(0, PORT_READY, 1));
        Self::say(rig, &control(0, PORT_OPEN, 1));
        // One at a time may read: who was there before has to go.
        self.reader = None;
        let line = b"the last line";
        let deadline = Instant::now() + PATIENCE;
        let mut printed = Vec::new();
        let mut lines = 0;
        while !printed.ends_with(line) {
            assert!(
                Instant::now() < deadline,
                "what was printed does not come out: {:?}",
                String::from_utf8_lossy(&printed)
            );
            if self.reader.is_none() {
                self.come();
                rig.offer(TRANSMIT, line, 0, Buffer::default()).expect("there is room");
                lines += 1;
            }
            // It waits while the console believes in a reader who takes nothing, as the last one who has just gone.
            rig.kick(TRANSMIT);
            let mut bytes = [0; 4096];
            match self.reader.as_ref().unwrap().read(&mut bytes) {
                // It was taken for a second reader, and sent away.
                Ok(0) => self.reader = None,
                Ok(len) => printed.extend(&bytes[..len]),
                Err(_) => std::thread::yield_now(),
            }
        }
        assert_eq!(rig.take_back(TRANSMIT).len(), lines, "what was printed comes back");
        rig.offer(RECEIVE, &[], 256, Buffer::default()).expect("there is room");
        self.happen(Event::Types(b"y".to_vec()));
        while rig.take_back(RECEIVE).is_empty() {
            assert!(Instant::now() < deadline, "what was typed does not come in");
            rig.kick(RECEIVE);
            std::thread::yield_now();
        }
    }
}
