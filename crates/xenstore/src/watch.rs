//! Watches: which nodes changed, coalesced so that a flood neither grows nor gets lost.
//!
//! Any domain that may write below a watched node can make events as fast as it likes (XSA-349). Events of one path
//! that wait to be read are one event; when too many paths wait, one event for the watch's own path replaces them all.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::connection::{Command, Link};

/// Most paths that wait in one watch: more than the devices of a large host, and some hundred KiB at the very most.
const PATHS_MAX: usize = 256;

/// A registered watch. Dropping it unregisters it.
#[derive(Debug)]
pub struct Watch {
    token: u64,
    queue: Arc<Queue>,
    /// Taken from the queue as a whole: a path that changes all the time cannot starve those after it.
    batch: BTreeSet<String>,
    link: Link,
}

impl Watch {
    pub(crate) fn new(path: &str, link: Link) -> Self {
        Self { token: link.next_token(), queue: Arc::new(Queue::of(path)), batch: BTreeSet::new(), link }
    }

    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    pub(crate) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }

    /// The path that was registered.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.queue.path
    }

    /// Waits for the next event: the path that was written, made or removed, at or below the watched one; relative
    /// if the watch's path is. The path of the watch itself also means that anything below it may have changed; it is
    /// the first event of every watch, and comes after the connection was lost and made again.
    ///
    /// How often a path changed is not told, nor in which order paths did. Cancel safe.
    pub async fn next(&mut self) -> String {
        loop {
            if let Some(path) = self.batch.pop_first() {
                return path;
            }
            self.batch = self.queue.take();
            if self.batch.is_empty() {
                self.queue.arrived.notified().await;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.link.send(Command::Unwatch(self.token));
    }
}

/// Events between the connection's task, which fills it, and a [`Watch`], which empties it.
#[derive(Debug)]
pub(crate) struct Queue {
    path: String,
    /// Locked by those two only, for the time of an insertion or a swap.
    waiting: Mutex<BTreeSet<String>>,
    arrived: Notify,
}

impl Queue {
    pub(crate) fn of(path: &str) -> Self {
        Self { path: path.to_owned(), waiting: Mutex::default(), arrived: Notify::new() }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn push(&self, path: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.contains(path) {
            if waiting.len() >= PATHS_MAX {
                waiting.clear();
                waiting.insert(self.path.clone());
            } else {
                waiting.insert(path.to_owned());
            }
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Says that anything at or below the watched path may have changed.
    pub(crate) fn push_everything(&self) {
        self.push(&self.path);
    }

    fn take(&self) -> BTreeSet<String> {
        mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
