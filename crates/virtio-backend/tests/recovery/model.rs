//! What a driver may expect of a queue whose device is killed again and again, and a queue that is held to it.

use std::collections::{BTreeSet, VecDeque};

use virtio_backend::{Request, Ring, RingPosition};

use crate::rig::Rig;

/// One atomic step of a queue's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The driver makes a request available.
    Offer,
    Pop,
    /// The request taken last is put back.
    PutBack,
    PushOldest,
    PushNewest,
    Publish,
    /// The process ends, and another goes on.
    Kill,
    /// It ends while it publishes: the index is shown, and the words of some of those heads are cleared. A bit for each
    /// says whether its is, in the order of pushing; the last bit stands for all that follow.
    KillInPublish {
        cleared: u8,
    },
}

/// A request, as its place among all that were ever offered.
type Serial = u64;

/// What is true of a queue.
#[derive(Clone)]
pub(crate) struct Model {
    /// By serial.
    heads: Vec<u16>,
    free: BTreeSet<u16>,
    /// What comes out next, in order.
    waiting: VecDeque<Serial>,
    in_hand: Vec<Serial>,
    /// Pushed, and not shown yet, in order.
    pushed: Vec<Serial>,
    /// How many the driver has got back.
    shown: u64,
    /// Entries of the available ring that count as looked at.
    looked_at: u64,
    /// Requests below were taken by a process before this.
    replays_below: Serial,
    /// Behind the last one that this process has pushed; those below cannot be put back.
    settled: Serial,
}

impl Model {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            heads: Vec::new(),
            free: (0..size).collect(),
            waiting: VecDeque::new(),
            in_hand: Vec::new(),
            pushed: Vec::new(),
            shown: 0,
            looked_at: 0,
            replays_below: 0,
            settled: 0,
        }
    }

    /// Whether the step can be made, and is worth it.
    pub(crate) fn allows(&self, step: Step) -> bool {
        match step {
            Step::Offer => !self.free.is_empty(),
            Step::Pop | Step::Kill => true,
            Step::PutBack => self.in_hand.last().is_some_and(|serial| *serial >= self.settled),
            Step::PushOldest => !self.in_hand.is_empty(),
            Step::PushNewest => self.in_hand.len() > 1,
            Step::Publish => !self.pushed.is_empty(),
            Step::KillInPublish { cleared } => {
                !self.pushed.is_empty() && u32::from(cleared) < 1 << self.pushed.len().min(8)
            }
        }
    }

    /// Makes the step; returns the request that it is about, if it is about one.
    pub(crate) fn make(&mut self, step: Step) -> Option<Serial> {
        match step {
            Step::Offer => {
                self.heads.push(self.free.pop_first().unwrap());
                let serial = self.heads.len() as u64 - 1;
                self.waiting.push_back(serial);
                Some(serial)
            }
            Step::Pop => {
                let serial = self.waiting.pop_front()?;
                self.in_hand.push(serial);
                self.looked_at = self.looked_at.max(serial + 1);
                Some(serial)
            }
            Step::PutBack => {
                let serial = self.in_hand.pop().unwrap();
                self.waiting.push_front(serial);
                if serial >= self.replays_below {
                    self.looked_at = serial;
                }
                Some(serial)
            }
            Step::PushOldest => Some(self.push(0)),
            Step::PushNewest => Some(self.push(self.in_hand.len() - 1)),
            Step::Publish => {
                self.publish();
                None
            }
            Step::Kill => {
                self.kill();
                None
            }
            Step::KillInPublish { .. } => {
                self.publish();
                self.kill();
                None
            }
        }
    }

    fn push(&mut self, nth: usize) -> Serial {
        let serial = self.in_hand.remove(nth);
        self.pushed.push(serial);
        self.settled = self.settled.max(serial + 1);
        serial
    }

    fn publish(&mut self) {
        self.shown += self.pushed.len() as u64;
        let heads = &self.heads;
        self.free.extend(self.pushed.drain(..).map(|serial| heads[serial as usize]));
    }

    /// All that was not shown comes again, in the order in which it came.
    fn kill(&mut self) {
        self.waiting.extend(self.in_hand.drain(..).chain(self.pushed.drain(..)));
        self.waiting.make_contiguous().sort_unstable();
        self.replays_below = self.looked_at;
        self.settled = 0;
    }
}

/// A queue and what should be true of it.
pub(crate) struct Life<'a> {
    rig: &'a Rig,
    model: Model,
    ring: Ring,
    in_hand: Vec<Request>,
}

impl<'a> Life<'a> {
    pub(crate) fn new(rig: &'a Rig) -> Self {
        Self { rig, model: Model::new(rig.setup.size), ring: rig.ring().unwrap(), in_hand: Vec::new() }
    }

    /// Makes a step if it can be made.
    pub(crate) fn step(&mut self, step: Step) {
        if !self.model.allows(step) {
            return;
        }
        let to_show: Vec<_> = self.model.pushed.iter().map(|&serial| self.head(serial)).collect();
        let is_shown = matches!(step, Step::Publish | Step::KillInPublish { .. });
        let shown = self.model.shown;
        let about = self.model.make(step).map(|serial| self.head(serial));
        match step {
            Step::Offer => self.rig.offer(about.unwrap()),
            Step::Pop => {
                let request = self.ring.pop().unwrap();
                assert_eq!(request.as_ref().map(|request| request.head()), about);
                self.in_hand.extend(request);
            }
            Step::PutBack => self.ring.unpop(self.in_hand.pop().unwrap()),
            Step::PushOldest | Step::PushNewest => {
                let place = self.in_hand.iter().position(|request| Some(request.head()) == about).unwrap();
                let request = self.in_hand.remove(place);
                request.writable.write(0, b"done");
                self.ring.push(request, 4).unwrap();
            }
            Step::Publish => self.ring.publish().unwrap(),
            Step::Kill => self.go_on(),
            Step::KillInPublish { cleared } => self.die_in_publish(&to_show, cleared),
        }
        if is_shown {
            for (nth, head) in (0..).zip(to_show) {
                let used = self.rig.queue.used(self.index(shown + nth));
                assert_eq!((used.id, used.len), (head.into(), 4));
            }
        }
        self.check();
    }

    /// What holds after each step.
    fn check(&self) {
        assert_eq!(self.rig.queue.used_idx(), self.index(self.model.shown), "shown once, and when published");
        assert_eq!(self.ring.in_flight(), self.in_hand.len());
        let RingPosition { next_avail, next_used } = self.ring.position();
        assert_eq!(next_avail, self.index(self.model.looked_at));
        // What is to be copied to the driver is put into the ring when it is shown.
        let ahead = next_used.wrapping_sub(self.index(self.model.shown));
        assert!(usize::from(ahead) <= self.model.pushed.len());
    }

    /// Serves what is left, in another process. Each request must have been given back once then.
    pub(crate) fn finish(mut self) {
        self.step(Step::Kill);
        while !self.model.waiting.is_empty() {
            self.step(Step::Pop);
            self.step(Step::PushOldest);
        }
        self.step(Step::Publish);
        self.step(Step::Pop);
        assert_eq!(self.model.shown, self.model.heads.len() as u64);
        assert!(self.rig.ledger_words().iter().skip(8).all(|word| *word == 0), "no request is held");
    }

    fn go_on(&mut self) {
        self.in_hand.clear();
        self.ring = self.rig.ring().unwrap();
    }

    /// Publishes, and puts back the words that would not have been written yet.
    fn die_in_publish(&mut self, heads: &[u16], cleared: u8) {
        let before = self.rig.ledger_words();
        self.ring.publish().unwrap();
        let after = self.rig.ledger_words();
        let is_cleared =
            |head| heads.iter().position(|shown| *shown == head).is_some_and(|nth| cleared >> nth.min(7) & 1 == 1);
        for (nth, _) in before.iter().zip(&after).enumerate().filter(|(_, (before, after))| before != after) {
            // Behind the header; the index is in there.
            let head = nth.checked_sub(8).map(|head| u16::try_from(head).unwrap());
            if !head.is_some_and(is_cleared) {
                self.rig.set_ledger_word(nth, before[nth]);
            }
        }
        self.go_on();
    }

    fn head(&self, serial: Serial) -> u16 {
        self.model.heads[serial as usize]
    }

    /// The index of an entry that is counted from the start.
    fn index(&self, count: u64) -> u16 {
        self.rig.setup.position.next_avail.wrapping_add(count as u16)
    }
}
