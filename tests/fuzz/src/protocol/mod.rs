//! What a worker and its broker say to each other. The broker believes nothing of it: messages of any bytes, near those of
//! the protocol or not, with descriptors or without.
//!
//! - The broker hears the answers that came before the first message that is none, in order and as they were sent; then
//!   the worker is killed. The last that is heard of it is that it has ended.
//! - What the broker makes of answers is bounded: a guest's devices are those that the toolstack asked for, each has at
//!   most one way on at a time, and a worker that says anything at all never has one told to be served twice.
//! - What the worker's devices ask, and what the broker says to that: see `questions`.

mod questions;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use arbitrary::{Arbitrary, Unstructured};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::sync::{mpsc, oneshot};
use xen_virtio::broker::worker::{Heard, Spawned, Worker};
use xen_virtio::channel::{Channel, DESCRIPTORS_MAX, MESSAGE_MAX};
use xen_virtio::model::{Class, DeviceId};
use xen_virtio::protocol::{Answer, Counter, DeviceReport, Report};
use xen_virtio::toolstack::events::{Action, Event, Sight};
use xen_virtio::toolstack::lifecycle::Lifecycle;

/// One that the toolstack knows in this run.
const DEVICES: u32 = 3;

/// Messages that a socket takes without anybody who reads.
const MOST: usize = 40;

#[derive(Arbitrary, Debug)]
enum Said {
    Answer(Kind),
    /// The same with some bytes changed.
    Spoilt {
        kind: Kind,
        at: u16,
        byte: u8,
        cut: Option<u16>,
    },
    Bytes(Vec<u8>),
    Long {
        byte: u8,
        more: u8,
    },
    WithDescriptors {
        kind: Kind,
        count: u8,
    },
}

#[derive(Arbitrary, Clone, Debug)]
enum Kind {
    Created(u16),
    Started(u32),
    Unable(String),
    Attached(u8),
    Refused(u8, String),
    Detached(u8, bool),
    Operated(u8, Result<(), String>),
    Holds(u8),
    HandedOver,
    Report(Vec<(u8, String, u64)>),
    Reach(u8, u64, u32),
}

/// What else happens to a guest.
#[derive(Arbitrary, Debug)]
enum Happens {
    Says(Kind),
    Toolstack { device: u8, sight: u8 },
    Prepared(u8),
    WorkerEnds(u8),
    WorkerFollows,
    DomainGone,
    Overdue,
}

fn id(number: u8) -> DeviceId {
    DeviceId { class: Class::VirtioDisk, number: u32::from(number) % (DEVICES + 1) }
}

impl Kind {
    fn answer(&self) -> Answer {
        match self.clone() {
            Self::Created(server) => Answer::Created { server },
            Self::Started(version) => Answer::Started { version },
            Self::Unable(reason) => Answer::Unable { reason },
            Self::Attached(device) => Answer::Attached { id: id(device) },
            Self::Refused(device, reason) => Answer::Refused { id: id(device), reason },
            Self::Detached(device, used) => Answer::Detached { id: id(device), used },
            Self::Operated(device, outcome) => Answer::Operated { id: id(device), outcome },
            Self::Holds(device) => Answer::Holds { id: id(device) },
            Self::HandedOver => Answer::HandedOver,
            Self::Reach(device, ticket, number) => Answer::Reach { id: id(device), ticket, number },
            Self::Report(devices) => {
                let device = |(device, state, value): (u8, String, u64)| DeviceReport {
                    id: id(device),
                    counters: vec![Counter::new(state.clone(), value)],
                    state,
                };
                let devices = devices.into_iter().take(8).map(device).collect();
                Answer::Report(Report { alive: true, counters: Vec::new(), devices })
            }
        }
    }
}

impl Said {
    fn bytes(&self) -> Vec<u8> {
        let text = |kind: &Kind| serde_json::to_vec(&kind.answer()).unwrap();
        match self {
            Self::Answer(kind) | Self::WithDescriptors { kind, .. } => text(kind),
            Self::Spoilt { kind, at, byte, cut } => {
                let mut text = text(kind);
                let at = usize::from(*at) % text.len();
                text[at] = *byte;
                text.truncate(cut.map_or(usize::MAX, |cut| usize::from(cut).max(1)));
                text
            }
            Self::Bytes(bytes) if bytes.is_empty() => b"{".to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Long { byte, more } => vec![*byte; MESSAGE_MAX - 8 + usize::from(more % 16)],
        }
    }

    fn descriptors(&self) -> usize {
        match self {
            Self::WithDescriptors { count, .. } => usize::from(*count),
            _ => 0,
        }
    }

    /// The answer that it is, if it is one.
    fn means(&self) -> Option<Answer> {
        let bytes = self.bytes();
        let fits = bytes.len() <= MESSAGE_MAX && self.descriptors() <= DESCRIPTORS_MAX;
        serde_json::from_slice(&bytes).ok().filter(|_| fits)
    }
}

/// Says what `bytes` make up.
///
/// # Panics
/// The broker has heard something else, or made something of it that must not be.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    match u8::arbitrary(&mut source).map(|which| which % 3) {
        Ok(0) => live(&mut source),
        Ok(1) => listen(&mut source),
        Ok(_) => questions::run(&mut source),
        Err(_) => {}
    }
}

fn listen(source: &mut Unstructured<'_>) {
    let (ours, theirs) = Channel::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let mut said = Vec::new();
    while !source.is_empty() && said.len() < MOST {
        let Ok(next) = Said::arbitrary(source) else { break };
        // Of more than a socket holds nobody has to hear.
        if !send(&theirs, &next.bytes(), file.as_fd(), next.descriptors()) {
            break;
        }
        said.push(next);
    }
    let good: Vec<_> = said.iter().map_while(Said::means).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (heard, end) = runtime.block_on(hear(ours, good.len(), good.len() == said.len()));
    assert!(heard == good, "heard is {heard:?}, and {good:?} was said");
    let expected = if good.len() < said.len() { "it was killed because it broke the protocol" } else { ENDS };
    assert_eq!(end, expected);
}

/// How a worker ends that was heard to the end.
const ENDS: &str = "by itself";

/// What a broker hears of a worker that ends when `good` answers of it were heard, or, if it goes on with something else,
/// when it is killed; and its end.
async fn hear(channel: Channel, good: usize, is_good: bool) -> (Vec<Answer>, String) {
    let (kill, killed) = oneshot::channel();
    let (finish, finished) = oneshot::channel::<()>();
    let ended = Box::pin(async move {
        tokio::select! {
            _ = killed => {}
            _ = finished => {}
        }
        ENDS.to_owned()
    });
    let (tell, mut heard) = mpsc::channel(4);
    let _worker = Worker::watch(7, Spawned { channel, kill, ended }, tell).unwrap();
    let mut answers = Vec::new();
    let mut finish = Some(finish);
    loop {
        if answers.len() == good {
            // One that goes on with what is no answer is killed for it.
            drop(finish.take_if(|_| is_good));
        }
        match heard.recv().await.expect("its end is heard of") {
            (7, Heard::Answer(answer)) => answers.push(answer),
            (7, Heard::Ended(how)) => return (answers, how),
            other => panic!("heard of another guest: {other:?}"),
        }
    }
}

/// Whether there was room for it.
fn send(channel: &Channel, bytes: &[u8], file: BorrowedFd<'_>, descriptors: usize) -> bool {
    let files = vec![file; descriptors.min(250)];
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(channel, &[std::io::IoSlice::new(bytes)], &mut ancillary, flags).is_ok()
}

/// What the broker makes of what it hears, as the guest's lifecycle decides it.
fn live(source: &mut Unstructured<'_>) {
    let mut lifecycle = Lifecycle::default();
    // By device: whether the worker of the moment was told to serve it and not to let go since.
    let mut told: BTreeMap<DeviceId, bool> = BTreeMap::new();
    while !source.is_empty() {
        let Ok(next) = Happens::arbitrary(source) else { break };
        let is_end = matches!(next, Happens::WorkerEnds(_));
        let Some(event) = event(next) else { continue };
        // A broker reports what it was asked to do, and no more.
        let is_news = match &event {
            Event::Prepared(id) => lifecycle.stage(*id).is_some(),
            Event::WorkerFollows => lifecycle.wants_worker(),
            Event::WorkerEnded(_) | Event::WorkerDied(_) | Event::WorkersDie(_) => {
                lifecycle.is_in_use() && !lifecycle.wants_worker()
            }
            _ => true,
        };
        if !is_news {
            continue;
        }
        if is_end {
            told.clear();
        }
        // What a worker does not have, by its own word, it can be told to serve.
        if let Event::Refused(id, _) | Event::Detached(id) = &event {
            told.insert(*id, false);
        }
        for action in lifecycle.handle(event) {
            match action {
                Action::Attach(id) => {
                    let before = told.insert(id, true);
                    assert_ne!(before, Some(true), "{id} is to be served twice");
                }
                Action::Detach(id) | Action::Vacate(id) | Action::GiveUp(id) => drop(told.insert(id, false)),
                Action::StopWorker | Action::KillWorker | Action::FollowWorker => {}
                Action::Reserve(id) | Action::Prepare(id) | Action::Publish(id, _) | Action::Report(id, _) => {
                    assert!(id.number < DEVICES, "{id} is none of this guest's devices");
                }
            }
        }
        let unknown = lifecycle.devices().find(|(id, _)| id.number >= DEVICES);
        assert_eq!(unknown, None, "a worker has made up a device");
    }
    // Whatever it has said: when its domain and its process are gone, nothing is left to be done for it.
    let _ = lifecycle.handle(Event::DomainGone);
    let _ = lifecycle.handle(Event::WorkerEnded(String::new()));
    for number in 0..DEVICES {
        let id = DeviceId { class: Class::VirtioDisk, number };
        let _ = lifecycle.handle(Event::Seen(id, Sight::Absent));
    }
    assert!(!lifecycle.is_in_use() && !lifecycle.is_closing(), "a guest that is gone is waited for");
}

fn event(happens: Happens) -> Option<Event> {
    Some(match happens {
        Happens::Says(kind) => match kind.answer() {
            Answer::Attached { id } => Event::Attached(id),
            Answer::Refused { id, reason } => Event::Refused(id, reason),
            Answer::Detached { id, .. } => Event::Detached(id),
            _ => return None,
        },
        Happens::Toolstack { device, sight } => {
            let sights = [Sight::Absent, Sight::New, Sight::Live, Sight::Closing, Sight::Closed];
            let number = u32::from(device) % DEVICES;
            Event::Seen(DeviceId { class: Class::VirtioDisk, number }, sights[usize::from(sight) % sights.len()])
        }
        Happens::Prepared(device) => Event::Prepared(id(device)),
        Happens::WorkerEnds(how) => match how % 3 {
            0 => Event::WorkerEnded("by itself".into()),
            1 => Event::WorkerDied("signal: 9".into()),
            _ => Event::WorkersDie("signal: 9".into()),
        },
        Happens::WorkerFollows => Event::WorkerFollows,
        Happens::DomainGone => Event::DomainGone,
        Happens::Overdue => Event::Overdue,
    })
}
