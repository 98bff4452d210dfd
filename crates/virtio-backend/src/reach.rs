//! How a device comes to a connection while it runs: it asks, and somebody else connects.
//!
//! The process that serves a guest may be its guest's one day, so it has no right to connect anywhere. What a device's
//! configuration names is connected to by [`Kind::reach`] in a process that has the right, and comes as a descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use crate::Kind;

/// What becomes of the connection, or of the reason why there is none.
pub type Then = Box<dyn FnOnce(io::Result<OwnedFd>) + Send>;

/// Whom a device asks.
pub trait Reach: Send + Sync {
    /// Asks for a connection; `number` is as for [`Kind::reach`]. Never waits.
    ///
    /// `then` is called exactly once, whatever happens: on another thread, or, where it is clear at once that nothing comes
    /// of it, on this one before this returns. So no lock may be held meanwhile that `then` takes.
    fn ask(&self, number: u32, then: Then);
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
                then(K::reach(&config, number));
            }
        })?;
        Ok(desk.insert(new).clone())
    }
}

impl<K: Kind> Reach for Directly<K> {
    fn ask(&self, number: u32, then: Then) {
        match self.desk() {
            Ok(desk) => {
                if let Err(mpsc::SendError((_, then))) = desk.send((number, then)) {
                    then(Err(io::ErrorKind::BrokenPipe.into()));
                }
            }
            Err(error) => then(Err(error)),
        }
    }
}
