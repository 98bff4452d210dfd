//! Configuration space, as the guest sees it: a copy of the backend's, which the guest's reads never wait for.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_backend::copy_config;

use crate::device_type::{FS_TAG_SIZE, QueueCount};

/// The copy. The thread that serves the guest's accesses and the device's lane meet here, each for a moment.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    state: Mutex<State>,
    /// What is said in place of what the backend says.
    own: Own,
}

/// What of configuration space is not the backend's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// How many queues there are, and where that is said.
    pub(crate) queues: Option<(QueueCount, u16)>,
    /// How many buffers a request may have at the most, and where that is said. A backend need not know how large a
    /// queue is, and a driver believes what it reads.
    pub(crate) most_segments: Option<(usize, u32)>,
    /// A file system's tag.
    pub(crate) tag: Option<String>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    /// Where the driver wrote, each with how many bytes, and whether the backend has yet to hear of it. A driver can
    /// write anywhere in any width, and no more often than that do entries come.
    written: BTreeMap<(usize, usize), bool>,
}

impl Own {
    /// Puts it in its place in `bytes`.
    pub(crate) fn complete(&self, bytes: &mut [u8]) {
        if let Some(tag) = &self.tag
            && let Some(place) = bytes.get_mut(..FS_TAG_SIZE)
        {
            place.fill(0);
            place.iter_mut().zip(tag.bytes()).for_each(|(to, from)| *to = from);
        }
        if let Some((QueueCount { at, len, others }, queues)) = self.queues
            && let Some(place) = bytes.get_mut(at..at + len)
        {
            let count = u32::from(queues.saturating_sub(others)).to_le_bytes();
            place.iter_mut().zip(count).for_each(|(to, from)| *to = from);
        }
        if let Some((at, most)) = self.most_segments
            && let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut)
        {
            *place = u32::from_le_bytes(*place).min(most).to_le_bytes();
        }
    }
}

impl ConfigSpace {
    /// Complete bytes, and what to complete later ones with.
    pub(crate) fn new(bytes: Vec<u8>, own: Own) -> Self {
        Self { state: Mutex::new(State { bytes, written: BTreeMap::new() }), own }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.state().bytes, offset, data);
    }

    /// Takes a write of the driver's. The backend is to hear of it.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        if let Some(place) = state.bytes.get_mut(offset..offset.saturating_add(data.len())) {
            place.copy_from_slice(data);
            state.written.insert((offset, data.len()), true);
        }
    }

    /// What the backend has yet to hear of: where, and the bytes there.
    pub(crate) fn take_unheard(&self) -> Vec<(usize, Vec<u8>)> {
        let State { bytes, written } = &mut *self.state();
        let unheard = written.iter_mut().filter_map(|(place, unheard)| mem::take(unheard).then_some(*place));
        unheard.filter_map(|(at, len)| Some((at, bytes.get(at..at + len)?.to_vec()))).collect()
    }

    /// What the driver wrote: where, and the bytes there.
    pub(crate) fn written(&self) -> Vec<(usize, Vec<u8>)> {
        let state = self.state();
        let places = state.written.keys();
        places.filter_map(|&(at, len)| Some((at, state.bytes.get(at..at + len)?.to_vec()))).collect()
    }

    /// The backend has lost what the driver wrote, and is to hear of it again.
    pub(crate) fn repeat(&self) {
        self.state().written.values_mut().for_each(|unheard| *unheard = true);
    }

    /// The driver has gone, and with it what it wrote.
    pub(crate) fn forget(&self) {
        self.state().written.clear();
    }

    /// Takes what the backend says now. If that is something else, `tell` is to change the generation, before which nobody
    /// sees any of it: a driver that reads fields one by one takes them for belonging together if the generation is the same
    /// before and after (§2.5.3).
    pub(crate) fn replace(&self, mut bytes: Vec<u8>, tell: impl FnOnce()) {
        self.own.complete(&mut bytes);
        let mut state = self.state();
        let is_new = bytes.len() == state.bytes.len() && bytes != state.bytes;
        if is_new {
            state.bytes = bytes;
            tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether these are told of, as they have to be before anybody sees them.
    fn replace(space: &ConfigSpace, bytes: Vec<u8>) -> bool {
        let mut is_told = false;
        space.replace(bytes, || {
            is_told = true;
            assert!(space.state.try_lock().is_err(), "seen before it is told of");
        });
        is_told
    }

    fn read(space: &ConfigSpace, offset: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        space.read(offset, &mut data);
        data
    }

    #[test]
    fn the_number_of_queues_and_the_tag_are_ours_to_say() {
        let count = QueueCount { at: FS_TAG_SIZE, len: 4, others: 1 };
        let own = Own { queues: Some((count, 3)), tag: Some("share".into()), ..Own::default() };
        let mut bytes = vec![0xff; 40];
        own.complete(&mut bytes);
        assert_eq!(bytes[..8], *b"share\0\0\0");
        assert_eq!(bytes[35..], [0, 2, 0, 0, 0]);

        let space = ConfigSpace::new(bytes.clone(), own);
        assert!(!replace(&space, vec![7; 40]), "all of it is ours");
        assert_eq!(read(&space, 0, 40), bytes);
    }

    #[test]
    fn a_request_has_no_more_buffers_than_fit_its_queue() {
        let own = Own { most_segments: Some((2, 126)), ..Own::default() };
        for (said, seen) in [(u32::MAX, 126), (126, 126), (4, 4)] {
            let mut bytes = [&[9, 9][..], &said.to_le_bytes(), &[9]].concat();
            own.complete(&mut bytes);
            assert_eq!(bytes, [&[9, 9][..], &u32::to_le_bytes(seen), &[9]].concat());
        }
        own.complete(&mut [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_the_driver_writes_is_read_back_and_told_once() {
        let space = ConfigSpace::new(vec![0; 8], Own::default());
        space.write(2, &[1, 2]);
        space.write(2, &[3, 4]);
        space.write(7, &[5]);
        space.write(7, &[6, 7]);
        assert_eq!(read(&space, 0, 8), [0, 0, 3, 4, 0, 0, 0, 5]);
        assert_eq!(space.take_unheard(), [(2, vec![3, 4]), (7, vec![5])]);
        assert_eq!(space.take_unheard(), []);
        space.repeat();
        assert_eq!(space.take_unheard().len(), 2);
        space.forget();
        space.repeat();
        assert_eq!(space.take_unheard(), []);
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let space = ConfigSpace::new(vec![1, 2], Own::default());
        assert!(!replace(&space, vec![1, 2]));
        assert!(replace(&space, vec![1, 3]));
        assert!(!replace(&space, vec![1]), "a backend cannot make it shorter");
        assert_eq!(read(&space, 0, 2), [1, 3]);
    }
}
