//! How the worker's devices come to connections: it has no right to connect anywhere, so the broker does.
//!
//! A device leaves a question with the errands, and the main thread passes it on. The broker answers each, and lets so many
//! wait; the others wait here, where they are bounded by what the devices ask.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use virtio_backend::Reach;
use virtio_backend::reach::Then;

use super::errands::Errands;
use crate::channel::Channel;
use crate::model::DeviceId;
use crate::protocol::{Answer, REACHES_MAX, Unreached};

/// What a device asks.
#[derive(Debug)]
pub struct Question {
    id: DeviceId,
    number: u32,
    then: Then,
}

impl Question {
    /// One of this device's; `number` is as for [`Kind::reach`](virtio_backend::Kind::reach).
    pub fn new(id: DeviceId, number: u32, then: Then) -> Self {
        Self { id, number, then }
    }
}

/// A device's way to ask.
pub(super) struct ThroughBroker {
    /// Where the main thread finds what is asked.
    pub(super) errands: Errands,
    /// Who asks.
    pub(super) id: DeviceId,
}

impl Reach for ThroughBroker {
    fn ask(&self, number: u32, then: Then) {
        self.errands.ask(Question::new(self.id, number, then));
    }
}

/// What the devices have asked and have not been answered.
#[derive(Default)]
pub struct Questions {
    /// What the broker has not heard yet.
    waiting: VecDeque<Question>,
    /// What it has, by ticket.
    asked: BTreeMap<u64, Then>,
    last_ticket: u64,
}

impl Questions {
    /// Passes questions on, behind those that wait. Where there is no broker, all are answered: nothing comes of them.
    pub fn pass_on(&mut self, new: Vec<Question>, channel: Option<&Channel>) {
        self.waiting.extend(new);
        let Some(channel) = channel else { return self.give_up() };
        while self.asked.len() < REACHES_MAX {
            let Some(Question { id, number, then }) = self.waiting.pop_front() else { return };
            self.last_ticket += 1;
            let ticket = self.last_ticket;
            match channel.send(&Answer::Reach { id, ticket, number }, &[]) {
                Ok(()) => drop(self.asked.insert(ticket, then)),
                // It is about to be replaced, or is busy.
                Err(error) => then.hear(Err(io::Error::new(ErrorKind::WouldBlock, error))),
            }
        }
    }

    /// Takes the broker's answer to the question of this ticket.
    pub fn hear(&mut self, ticket: u64, outcome: Result<(), Unreached>, descriptors: Vec<OwnedFd>) {
        let Some(then) = self.asked.remove(&ticket) else { return };
        then.hear(match outcome {
            Ok(()) => descriptors.into_iter().next().ok_or_else(|| ErrorKind::NotConnected.into()),
            Err(unreached) => Err(unreached.into()),
        });
    }

    /// Nobody answers any more what was asked.
    pub fn give_up(&mut self) {
        // Dropped, they are answered.
        self.waiting.clear();
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::mpsc::{self, Receiver};

    use rustix::io::Errno;

    use super::*;
    use crate::model::sample;

    type Answered = Receiver<(u32, Result<(), ErrorKind>)>;

    /// Questions with these numbers, and where their answers come.
    fn questions(numbers: impl IntoIterator<Item = u32>) -> (Vec<Question>, Answered) {
        let (says, answered) = mpsc::channel();
        let question = |number| {
            let says = says.clone();
            let then = move |outcome: io::Result<OwnedFd>| {
                says.send((number, outcome.map(drop).map_err(|error| error.kind()))).unwrap();
            };
            Question::new(sample::disk("xvda").id, number, Then::new(then))
        };
        (numbers.into_iter().map(question).collect(), answered)
    }

    /// What the broker hears: tickets with the numbers asked for.
    fn heard(broker: &Channel) -> Vec<(u64, u32)> {
        let next = || broker.try_receive::<Answer>().ok().flatten();
        let asked = std::iter::from_fn(next).map(|(answer, _)| match answer {
            Answer::Reach { ticket, number, .. } => (ticket, number),
            other => panic!("{other:?}"),
        });
        asked.collect()
    }

    #[test]
    fn each_question_gets_the_answer_of_its_ticket_in_whatever_order() {
        let ((broker, channel), mut all) = (Channel::pair().unwrap(), Questions::default());
        let (new, answered) = questions([5, 6, 7]);
        all.pass_on(new, Some(&channel));
        let tickets = heard(&broker);
        assert_eq!(tickets.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [5, 6, 7]);

        let connection = || vec![File::open("/dev/null").unwrap().as_fd().try_clone_to_owned().unwrap()];
        all.hear(tickets[2].0, Ok(()), connection());
        let busy = Unreached::from(&io::Error::from(Errno::AGAIN));
        all.hear(tickets[0].0, Err(busy), Vec::new());
        // A broker that says so and sends nothing.
        all.hear(tickets[1].0, Ok(()), Vec::new());
        assert_eq!(answered.recv().unwrap(), (7, Ok(())));
        assert_eq!(answered.recv().unwrap(), (5, Err(ErrorKind::WouldBlock)));
        assert_eq!(answered.recv().unwrap(), (6, Err(ErrorKind::NotConnected)));
        // Once more, and for nobody.
        all.hear(tickets[2].0, Ok(()), connection());
        assert!(answered.try_recv().is_err());
    }

    #[test]
    fn the_broker_is_never_asked_more_at_a_time_than_it_allows() {
        let ((broker, channel), mut all) = (Channel::pair().unwrap(), Questions::default());
        let many = 3 * u32::try_from(REACHES_MAX).unwrap();
        let (new, answered) = questions(0..many);
        all.pass_on(new, Some(&channel));
        let mut numbers = Vec::new();
        let mut under_way = VecDeque::new();
        loop {
            under_way.extend(heard(&broker));
            assert!(under_way.len() <= REACHES_MAX);
            let Some((ticket, number)) = under_way.pop_front() else { break };
            numbers.push(number);
            all.hear(ticket, Err(Unreached::from(&io::Error::other("no"))), Vec::new());
            all.pass_on(Vec::new(), Some(&channel));
        }
        assert_eq!(numbers, (0..many).collect::<Vec<_>>());
        assert_eq!(answered.try_iter().count(), numbers.len());
    }

    #[test]
    fn without_a_broker_all_are_answered_and_later_ones_at_once() {
        let ((broker, channel), mut all) = (Channel::pair().unwrap(), Questions::default());
        let (new, answered) = questions(0..100);
        all.pass_on(new, Some(&channel));
        drop(broker);
        assert!(answered.try_recv().is_err());
        all.give_up();
        assert_eq!(answered.try_iter().map(|(_, outcome)| outcome.unwrap_err()).collect::<Vec<_>>().len(), 100);
        for channel in [None, Some(&channel)] {
            let (new, answered) = questions([1]);
            all.pass_on(new, channel);
            assert!(answered.try_recv().unwrap().1.is_err());
        }
    }
}
