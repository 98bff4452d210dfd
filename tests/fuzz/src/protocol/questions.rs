//! What a worker's devices ask of its broker, and what they hear of that: orders for any ticket, with connections or without,
//! and brokers that go.
//!
//! - Each question is answered once: by what the broker says to its ticket, or else by an error of its own.
//! - The broker never has more to answer than it allows, and nothing waits while it has less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};

use arbitrary::{Arbitrary, Unstructured};
use virtio_backend::reach::Then;
use xen_virtio::channel::Channel;
use xen_virtio::protocol::{Answer, Order, REACHES_MAX, Unreached};
use xen_virtio::worker::reach::{Question, Questions};

use super::id;

/// Questions that are asked in all; the broker allows fewer at a time.
const MOST: u32 = 4 * REACHES_MAX as u32;

#[derive(Arbitrary, Debug)]
enum Happens {
    /// So many questions at once.
    Asked(u8),
    /// Of those that are open, this one.
    Answered {
        which: u8,
        outcome: Outcome,
        connections: u8,
    },
    AnsweredForNobody {
        ticket: u64,
        outcome: Outcome,
    },
    /// It ends, and the next one comes. So many questions are asked before the worker sees that, and after.
    BrokerEnds {
        unseen: u8,
        seen: u8,
    },
}

#[derive(Arbitrary, Debug)]
enum Outcome {
    Connected,
    Failed(i32, String),
    Refused(String),
}

impl Outcome {
    fn said(self) -> Result<(), Unreached> {
        match self {
            Self::Connected => Ok(()),
            Self::Failed(errno, reason) => Err(Unreached { errno: Some(errno), reason }),
            Self::Refused(reason) => Err(Unreached { errno: None, reason }),
        }
    }
}

/// What a device is to see of an answer.
fn seen(outcome: &Result<(), Unreached>, connections: usize) -> Result<(), ErrorKind> {
    match outcome {
        Ok(()) if connections == 0 => Err(ErrorKind::NotConnected),
        Ok(()) => Ok(()),
        Err(Unreached { errno: None, .. }) => Err(ErrorKind::Other),
        Err(Unreached { errno: Some(errno), .. }) => Err(io::Error::from_raw_os_error(*errno).kind()),
    }
}

/// A question's number, and what came of it.
type Answered = (u32, Result<(), ErrorKind>);

/// A worker's questions, with both ends of the channel.
struct World {
    questions: Questions,
    broker: Channel,
    worker: Channel,
    /// By ticket, the number of each question that the broker has heard and has not answered.
    open: BTreeMap<u64, u32>,
    /// Those that were asked and not answered.
    asked: BTreeSet<u32>,
    next: u32,
    says: Sender<Answered>,
    answers: Receiver<Answered>,
}

impl World {
    fn new() -> Self {
        let (broker, worker) = Channel::pair().unwrap();
        let (says, answers) = mpsc::channel();
        let (open, asked) = (BTreeMap::new(), BTreeSet::new());
        Self { questions: Questions::default(), broker, worker, open, asked, next: 0, says, answers }
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::Asked(count) => {
                let new = self.ask(count);
                self.questions.pass_on(new, Some(&self.worker));
                self.expect([]);
            }
            Happens::Answered { which, outcome, connections } => {
                let ticket = self.open.keys().nth(usize::from(which) % self.open.len().max(1)).copied();
                if let Some(ticket) = ticket {
                    self.answer(ticket, outcome, usize::from(connections % 4));
                }
            }
            Happens::AnsweredForNobody { ticket, outcome } if !self.open.contains_key(&ticket) => {
                self.answer(ticket, outcome, 0);
            }
            Happens::AnsweredForNobody { .. } => {}
            Happens::BrokerEnds { unseen, seen } => self.next_broker(unseen, seen),
        }
        self.listen();
    }

    fn ask(&mut self, count: u8) -> Vec<Question> {
        let numbers = self.next..MOST.min(self.next + u32::from(count));
        self.next = numbers.end;
        self.asked.extend(numbers.clone());
        let question = |number: u32| {
            let says = self.says.clone();
            let then = move |outcome: io::Result<OwnedFd>| {
                says.send((number, outcome.map(drop).map_err(|error| error.kind()))).unwrap();
            };
            Question::new(id(number as u8), number, Then::new(then))
        };
        numbers.map(question).collect()
    }

    /// The broker gives an order, which the worker's main thread hears.
    fn answer(&mut self, ticket: u64, outcome: Outcome, connections: usize) {
        let file = File::open("/dev/null").unwrap();
        let order = Order::Reached { id: id(0), ticket, outcome: outcome.said() };
        self.broker.send(&order, &vec![file.as_fd(); connections]).unwrap();
        let (heard, descriptors) = self.worker.try_receive::<Order>().unwrap().unwrap();
        assert_eq!((&heard, descriptors.len()), (&order, connections));
        let Order::Reached { ticket, outcome, .. } = heard else { unreachable!("it was compared") };
        let expected = self.open.remove(&ticket).map(|number| (number, seen(&outcome, connections)));
        self.questions.hear(ticket, outcome, descriptors);
        self.expect(expected);
        self.questions.pass_on(Vec::new(), Some(&self.worker));
    }

    fn next_broker(&mut self, unseen: u8, seen: u8) {
        let (broker, worker) = Channel::pair().unwrap();
        self.broker = broker;
        let first = self.next;
        let new = self.ask(unseen);
        // Where as many are open as may be, they wait with the others.
        let refused = if self.open.len() < REACHES_MAX { first..self.next } else { first..first };
        self.questions.pass_on(new, Some(&self.worker));
        self.expect(refused.map(|number| (number, Err(ErrorKind::WouldBlock))));
        self.questions.give_up();
        self.open.clear();
        self.expect_all_given_up();
        let new = self.ask(seen);
        self.questions.pass_on(new, None);
        self.expect_all_given_up();
        self.worker = worker;
    }

    /// The broker hears what is asked.
    fn listen(&mut self) {
        while let Ok(Some((answer, descriptors))) = self.broker.try_receive::<Answer>() {
            let Answer::Reach { id: of, ticket, number } = answer else { panic!("{answer:?} was not said") };
            assert_eq!((of, descriptors.len()), (id(number as u8), 0));
            assert_eq!(self.open.insert(ticket, number), None, "two questions have ticket {ticket}");
        }
        assert!(self.open.len() <= REACHES_MAX, "the broker is to answer {} at a time", self.open.len());
        assert!(self.open.len() == self.asked.len().min(REACHES_MAX), "{:?} of {:?}", self.open, self.asked);
    }

    /// These were answered since the last look, and no others.
    fn expect(&mut self, answers: impl IntoIterator<Item = Answered>) {
        let expected: BTreeMap<_, _> = answers.into_iter().collect();
        let mut answered = BTreeMap::new();
        for (number, outcome) in self.answers.try_iter() {
            assert_eq!(answered.insert(number, outcome), None, "question {number} was answered twice");
            assert!(self.asked.remove(&number), "question {number} was answered before");
        }
        assert_eq!(answered, expected);
    }

    fn expect_all_given_up(&mut self) {
        let asked = self.asked.clone();
        self.expect(asked.into_iter().map(|number| (number, Err(ErrorKind::ConnectionAborted))));
    }
}

pub(super) fn run(source: &mut Unstructured<'_>) {
    let mut world = World::new();
    while !source.is_empty() {
        let Ok(next) = Happens::arbitrary(source) else { break };
        world.happens(next);
    }
    world.questions = Questions::default();
    world.expect_all_given_up();
}
