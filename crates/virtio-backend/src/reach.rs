//! How a device comes to a connection while it runs: it asks, and somebody else connects.
//!
//! The process that serves a guest may be its guest's one day, so it has no right to connect anywhere. What a device's
//! configuration names is connected to by [`Kind::reach`] in a process that has the right, and comes as a descriptor.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use crate::Kind;

/// Whom a device asks.
pub trait Reach: Send + Sync {
    /// Asks for a connection; `number` is as for [`Kind::reach`]. Never waits.
    ///
    /// The answer comes on another thread, or, where it is clear at once that nothing comes of it, on this one before this
    /// returns. So no lock may be held meanwhile that `then` takes.
    fn ask(&self, number: u32, then: Then);
}

/// What becomes of the answer. It is called exactly once, whatever happens: one that is dropped says that the connection
/// was given up ([`io::ErrorKind::ConnectionAborted`]).
pub struct Then(Option<Box<dyn FnOnce(io::Result<OwnedFd>) + Send>>);

impl Then {
    /// Calls this.
    pub fn new(then: impl FnOnce(io::Result<OwnedFd>) + Send + 'static) -> Self {
        Self(Some(Box::new(then)))
    }

    /// Here is the connection, or why there is none.
    pub fn hear(mut self, outcome: io::Result<OwnedFd>) {
        if let Some(then) = self.0.take() {
            then(outcome);
        }
    }
}

impl Drop for Then {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(Err(io::ErrorKind::ConnectionAborted.into()));
        }
    }
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Then").finish_non_exhaustive()
    }
}

/// The way of a program that has the rights itself: a thread connects, to one after the other. It is there from the first
/// question until this is dropped and all are answered.
pub fn directly<K: Kind>(config: &K::Config) -> Arc<dyn Reach> {
    Arc::new(Directly::<K> { config: config.clone(), desk: Mutex::default() })
}

struct Directly<K: Kind> {
    config: K::Config,
    /// Where the thread takes questions from; none before there is one.
    desk: Mutex<Option<mpsc::Sender<(u32, Then)>>>,
}

impl<K: Kind> Directly<K> {
    fn desk(&self) -> io::Result<mpsc::Sender<(u32, Then)>> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(desk) = &*desk {
            return Ok(desk.clone());
        }
        let (new, questions) = mpsc::channel::<(u32, Then)>();
        let config = self.config.clone();
        thread::Builder::new().name("reach".to_owned()).spawn(move || {
            for (number, then) in questions {
                then.hear(K::reach(&config, number));
            }
        })?;
        Ok(desk.insert(new).clone())
    }
}

impl<K: Kind> Reach for Directly<K> {
    fn ask(&self, number: u32, then: Then) {
        match self.desk() {
            // A thread that has ended, which takes a panic, answers by dropping what it is asked.
            Ok(desk) => drop(desk.send((number, then))),
            Err(error) => then.hear(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::{Backend, Owner};

    /// A kind that reaches the number of its configuration, and panics at 13.
    struct Told;

    impl Kind for Told {
        type Config = u32;
        type Error = io::Error;
        const NAME: &'static str = "told";
        const DEVICE_ID: Option<u32> = None;

        fn check(_config: &u32) -> io::Result<()> {
            Ok(())
        }

        fn exclusive(_config: &u32) -> Vec<String> {
            Vec::new()
        }

        fn host_end(config: &u32) -> String {
            config.to_string()
        }

        fn open(_config: &mut u32, _owner: &Owner) -> io::Result<Vec<OwnedFd>> {
            Ok(Vec::new())
        }

        fn make(_config: &u32, _opened: Vec<OwnedFd>, _reach: Arc<dyn Reach>) -> io::Result<Arc<dyn Backend>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn reach(config: &u32, number: u32) -> io::Result<OwnedFd> {
            assert_ne!(number, 13);
            if number == *config { Ok(File::open("/dev/null")?.into()) } else { Err(io::ErrorKind::NotFound.into()) }
        }
    }

    fn answer_to(reach: &Arc<dyn Reach>, number: u32) -> io::Result<OwnedFd> {
        let (says, said) = mpsc::channel();
        reach.ask(number, Then::new(move |outcome| says.send(outcome).unwrap()));
        let answer = said.recv().unwrap();
        assert!(said.recv().is_err(), "it is answered once");
        answer
    }

    #[test]
    fn who_asks_gets_what_the_configuration_names_by_that_number() {
        let reach = directly::<Told>(&7);
        assert!(answer_to(&reach, 7).is_ok());
        assert_eq!(answer_to(&reach, 8).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(answer_to(&reach, 7).is_ok());
    }

    #[test]
    fn what_was_asked_is_answered_though_nobody_could_ask_more_and_nobody_answers_more() {
        let reach = directly::<Told>(&7);
        let (says, said) = mpsc::channel();
        for number in 11..16 {
            let says = says.clone();
            reach.ask(number, Then::new(move |outcome| says.send((number, outcome.unwrap_err().kind())).unwrap()));
        }
        drop((reach, says));
        let mut answers: Vec<_> = said.iter().collect();
        answers.sort_by_key(|(number, _)| *number);
        let (absent, aborted) = (io::ErrorKind::NotFound, io::ErrorKind::ConnectionAborted);
        assert_eq!(answers, [(11, absent), (12, absent), (13, aborted), (14, aborted), (15, aborted)]);
    }
}
