//! Every order of events between a lane and those who ask something of it: `make models`.
#![allow(clippy::unwrap_used, reason = "a model reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use loom::model::Builder;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use crate::mailbox::{Command, Mailbox};

/// What a lane does of what it is asked.
#[derive(Default)]
struct Obeyed {
    stops: usize,
    /// Of the memory that was stale when it was asked to let go: whether it has been told of that.
    let_go: [bool; 2],
}

impl Obeyed {
    /// One wake of a lane, if there is one.
    fn wake(&mut self, mailbox: &Mailbox, stale: &[AtomicBool; 2]) {
        if !mailbox.bell().is_ringing() {
            return;
        }
        for command in mailbox.take() {
            match command {
                Command::Stop => self.stops += 1,
                Command::ReleaseMemory => {
                    self.let_go.iter_mut().zip(stale).for_each(|(let_go, stale)| *let_go |= stale.load(Relaxed));
                }
                Command::ResetQueue(..) | Command::EnableQueue(..) => unreachable!("not in this model"),
            }
        }
    }
}

#[test]
fn no_command_waits_in_a_silent_mailbox_and_none_that_was_merged_is_lost() {
    // All orders would take minutes.
    let mut builder = Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(|| {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let stale = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let post = |index: usize, stops: bool| {
            let (mailbox, stale) = (Arc::clone(&mailbox), Arc::clone(&stale));
            thread::spawn(move || {
                stale[index].store(true, Relaxed);
                mailbox.post(Command::ReleaseMemory);
                if stops {
                    mailbox.post(Command::Stop);
                }
            })
        };
        let (pump, broker) = (post(0, false), post(1, true));
        let mut obeyed = Obeyed::default();

        obeyed.wake(&mailbox, &stale);
        obeyed.wake(&mailbox, &stale);
        pump.join().unwrap();
        broker.join().unwrap();
        obeyed.wake(&mailbox, &stale);

        assert!(mailbox.take().is_empty(), "a command waits, and nothing wakes the lane");
        assert_eq!((obeyed.stops, obeyed.let_go), (1, [true, true]));
    });
}
