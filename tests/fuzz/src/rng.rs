//! Drivers of any kind, of a source of entropy: see `lanes`. The host's source gives less than it is asked for, fails, or
//! says that it gave more.
//!
//! - A byte that the driver gets is one that the source gave.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Unstructured};
use virtio_backend::Backend;
use virtio_rng::{Config, Rng, Source};

use crate::lanes::{Buffer, Personality, Rig, play};

/// What the source gives. It scribbles over what it does not give, which the guest must not see.
const RANDOM: u8 = 0x5a;
const SCRIBBLE: u8 = 0xcc;

/// What the source does from now on.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Mood {
    Gives,
    GivesAtMost(u8),
    Fails(u8),
    Lies,
}

struct Moody {
    mood: Mutex<Mood>,
    asked: AtomicUsize,
}

impl Source for Moody {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.asked.fetch_add(bytes.len(), SeqCst);
        bytes.fill(SCRIBBLE);
        let given = match *self.mood.lock().unwrap() {
            Mood::Gives => bytes.len(),
            Mood::GivesAtMost(most) => bytes.len().min(most.into()),
            Mood::Fails(errno) => return Err(io::Error::from_raw_os_error(errno.into())),
            Mood::Lies => return Ok(bytes.len() + 1),
        };
        bytes[..given].fill(RANDOM);
        Ok(given)
    }
}

struct Entropy {
    source: Arc<Moody>,
    device: Arc<Rng>,
}

/// Plays the driver that `bytes` spell.
///
/// # Panics
/// The device did something that it must not do.
pub fn run(bytes: &[u8]) {
    let source = Arc::new(Moody { mood: Mutex::new(Mood::Gives), asked: AtomicUsize::new(0) });
    let device = Arc::new(Rng::with_source(&Config::default(), Arc::clone(&source) as _).unwrap());
    play(Entropy { source, device }, &mut Unstructured::new(bytes));
}

impl Personality for Entropy {
    type Message = [u8; 3];
    type Event = Mood;

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.device) as _
    }

    /// Most drivers say nothing to a source of entropy.
    fn bytes(&self, _queue: usize, message: &[u8; 3]) -> Vec<u8> {
        message[..usize::from(message[0] % 3)].to_vec()
    }

    fn happen(&mut self, mood: Mood) {
        *self.source.mood.lock().unwrap() = mood;
    }

    fn prove(&mut self, rig: &mut Rig) {
        self.happen(Mood::Gives);
        let (head, at) = rig.offer(0, &[], 100, Buffer::default()).expect("there is room");
        rig.kick(0);
        assert_eq!(rig.take_back(0), [(head, 100)]);
        assert_eq!(rig.memory.snapshot()[at..at + 100], [RANDOM; 100]);
    }
}
