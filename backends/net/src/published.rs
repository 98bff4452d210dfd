//! A value that one lane changes now and then, and others look at for each packet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The latest edition of a value.
#[derive(Debug)]
pub(crate) struct Published<T> {
    /// Held to exchange the value, and to get at a new one: never for each packet, and never for long.
    current: Mutex<Arc<T>>,
    edition: AtomicU64,
}

/// One lane's look at a published value.
#[derive(Debug)]
pub(crate) struct Reader<T> {
    edition: u64,
    value: Arc<T>,
}

impl<T: Clone> Published<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { current: Mutex::new(Arc::new(value)), edition: AtomicU64::new(0) }
    }

    /// Changes the value. Who looks at it after this has returned sees the change.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = T::clone(&current);
        change(&mut next);
        *current = Arc::new(next);
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// The value of the moment.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn reader(&self) -> Reader<T> {
        // The edition first: a change in between makes the reader look once more than needed.
        let edition = self.edition.load(Ordering::Acquire);
        Reader { edition, value: self.get() }
    }
}

impl<T: Clone> Reader<T> {
    /// The value of the moment, without a lock where it has not changed.
    pub(crate) fn look(&mut self, published: &Published<T>) -> &T {
        let edition = published.edition.load(Ordering::Acquire);
        if edition != self.edition {
            *self = Self { edition, value: published.get() };
        }
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_each_change() {
        let published = Published::new(1);
        let mut reader = published.reader();
        assert_eq!(*reader.look(&published), 1);
        published.change(|value| *value += 1);
        assert_eq!(*reader.look(&published), 2);
        assert_eq!(*published.reader().look(&published), 2);
    }
}
