//! Where the two threads of a console meet: a port's buffers.
//!
//! Each is a fixed number of bytes at most. The lock is held for a copy within them, never for I/O.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::backlog::Backlog;

/// Output kept for a reader that is slow or not there: some screens.
pub(crate) const OUTPUT_BYTES: usize = 64 << 10;

/// Input kept for a guest that does not take it, like a terminal's line buffer. The writer waits after that.
pub(crate) const INPUT_BYTES: usize = 4096;

/// One port, seen from both sides.
pub(crate) struct Port(Mutex<State>);

struct State {
    output: Backlog,
    /// How many of the first bytes of `output` a sink is being asked to take: they are not dropped meanwhile.
    in_hand: usize,
    input: Backlog,
    reader: Reader,
    /// Since when output waits for the reader to make room.
    waiting_since: Option<Instant>,
}

/// Whether someone takes the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reader {
    #[default]
    Absent,
    Attached,
    /// Attached, but has taken nothing for too long to be waited for.
    Stalled,
}

/// What became of offered output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offered {
    /// Bytes that need not be offered again.
    pub(crate) taken: usize,
    /// Bytes lost to make room for them.
    pub(crate) dropped: usize,
    /// The host thread does not know yet that there is output.
    pub(crate) news: bool,
}

impl State {
    /// Puts all of `bytes` in, at the cost of the oldest. Returns how many were lost.
    fn push_evicting(&mut self, bytes: &[u8]) -> usize {
        let most = OUTPUT_BYTES.saturating_sub(self.in_hand);
        let kept = bytes.get(bytes.len().saturating_sub(most)..).unwrap_or(bytes);
        let evicted = (self.output.len() + kept.len()).saturating_sub(OUTPUT_BYTES);
        let oldest = self.in_hand.min(self.output.len());
        self.output.remove_behind(oldest, evicted);
        self.output.push(kept);
        evicted + bytes.len() - kept.len()
    }
}

impl Port {
    /// One whose buffers are these, with what a former process has left in them.
    pub(crate) fn new(output: Backlog, input: Backlog) -> Self {
        Self(Mutex::new(State { output, in_hand: 0, input, reader: Reader::default(), waiting_since: None }))
    }
}

/// The guest's side.
impl Port {
    /// Offers output. All of it is taken unless a reader is there that can be waited for; [`Port::sent`] then tells
    /// when to offer the rest.
    pub(crate) fn offer(&self, bytes: &[u8]) -> Offered {
        let mut state = self.lock();
        let news = state.output.is_empty() && !bytes.is_empty();
        if state.reader != Reader::Attached {
            let dropped = state.push_evicting(bytes);
            return Offered { taken: bytes.len(), dropped, news };
        }
        let taken = state.output.push(bytes);
        if taken == bytes.len() {
            state.waiting_since = None;
        } else if taken > 0 || state.waiting_since.is_none() {
            state.waiting_since = Some(Instant::now());
        }
        // The host thread has to time the wait.
        Offered { taken, dropped: 0, news: news || taken < bytes.len() }
    }

    /// Puts output in whatever the reader does: it cannot be offered again.
    pub(crate) fn force(&self, bytes: &[u8]) -> Offered {
        let mut state = self.lock();
        let news = state.output.is_empty() && !bytes.is_empty();
        Offered { taken: bytes.len(), dropped: state.push_evicting(bytes), news }
    }

    /// Whether there is input.
    pub(crate) fn has_input(&self) -> bool {
        !self.lock().input.is_empty()
    }

    /// Takes input. Returns how many bytes, and whether the host thread waits for room.
    pub(crate) fn take_input(&self, to: &mut [u8]) -> (usize, bool) {
        let state = self.lock();
        let was_full = state.input.len() >= INPUT_BYTES;
        let taken = state.input.peek(to);
        state.input.remove(taken);
        (taken, was_full && taken > 0)
    }

    /// Whether someone has the host's end open (§5.3.6.2, VIRTIO_CONSOLE_PORT_OPEN).
    pub(crate) fn is_attached(&self) -> bool {
        self.lock().reader != Reader::Absent
    }
}

/// The host's side.
impl Port {
    /// Someone reads; false if that was known.
    pub(crate) fn attach(&self) -> bool {
        let mut state = self.lock();
        let is_new = state.reader == Reader::Absent;
        if is_new {
            state.reader = Reader::Attached;
        }
        is_new
    }

    /// Nobody reads any more; false if that was known.
    pub(crate) fn detach(&self) -> bool {
        let mut state = self.lock();
        state.waiting_since = None;
        std::mem::replace(&mut state.reader, Reader::Absent) != Reader::Absent
    }

    /// Copies the next bytes of output, for a sink to take. Returns how many; [`Port::sent`] has to follow.
    pub(crate) fn next_output(&self, to: &mut [u8]) -> usize {
        let mut state = self.lock();
        let count = state.output.peek(to);
        state.in_hand = count;
        count
    }

    /// The sink has taken the first `count` of these bytes, and the others not. True if the lane waits to hear of it.
    pub(crate) fn sent(&self, count: usize) -> bool {
        let mut state = self.lock();
        state.in_hand = 0;
        let count = count.min(state.output.len());
        state.output.remove(count);
        if state.reader == Reader::Stalled && state.output.len() <= OUTPUT_BYTES / 2 {
            state.reader = Reader::Attached;
        }
        count > 0 && state.waiting_since.is_some()
    }

    /// How much input there is room for.
    pub(crate) fn input_room(&self) -> usize {
        INPUT_BYTES.saturating_sub(self.lock().input.len())
    }

    /// Adds input for which there is room.
    pub(crate) fn put_input(&self, bytes: &[u8]) {
        self.lock().input.push(bytes);
    }

    /// Since when output waits for the reader.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.lock().waiting_since
    }

    /// Waits no longer, until the reader has caught up.
    pub(crate) fn give_up_on_reader(&self) {
        let mut state = self.lock();
        state.waiting_since = None;
        if state.reader == Reader::Attached {
            state.reader = Reader::Stalled;
        }
    }

    /// A panic with the lock held leaves bytes in an order that is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backlog;

    fn port() -> Port {
        backlog::ports(backlog::memory(1).unwrap(), 1).unwrap().remove(0)
    }

    fn output(port: &Port) -> Vec<u8> {
        let mut bytes = vec![0; 2 * OUTPUT_BYTES];
        let count = port.next_output(&mut bytes);
        bytes.truncate(count);
        port.sent(0);
        bytes
    }

    fn numbered(count: usize) -> Vec<u8> {
        (0..count).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    #[test]
    fn g01_without_a_reader_all_is_taken_and_the_last_bytes_are_kept() {
        let port = port();
        let bytes = numbered(3 * OUTPUT_BYTES + 5);

        let mut dropped = 0;
        for chunk in bytes.chunks(1000) {
            let offered = port.offer(chunk);
            assert_eq!(offered.taken, chunk.len());
            dropped += offered.dropped;
        }

        assert_eq!(dropped, 2 * OUTPUT_BYTES + 5);
        assert_eq!(output(&port), bytes[dropped..]);
    }

    #[test]
    fn g01_one_offer_larger_than_the_buffer_leaves_its_end() {
        let port = port();
        port.offer(b"old");
        let bytes = numbered(OUTPUT_BYTES + 7);

        let offered = port.offer(&bytes);

        assert_eq!((offered.taken, offered.dropped), (bytes.len(), 7 + 3));
        assert_eq!(output(&port), bytes[7..]);
    }

    #[test]
    fn a_reader_is_waited_for_until_given_up_on_and_again_when_it_has_caught_up() {
        let port = port();
        port.attach();
        let full = numbered(OUTPUT_BYTES);
        assert_eq!(port.offer(&full).taken, OUTPUT_BYTES);
        assert_eq!(port.offer(b"x"), Offered { taken: 0, dropped: 0, news: true });
        assert!(port.waiting_since().is_some());

        port.give_up_on_reader();
        assert_eq!(port.offer(b"x"), Offered { taken: 1, dropped: 1, news: false });

        port.sent(OUTPUT_BYTES / 2);
        assert_eq!(port.offer(&full).taken, OUTPUT_BYTES / 2, "waited for again");
        assert!(port.sent(1), "the lane is to be told of room");
        assert_eq!(port.offer(b"yz").taken, 1);
    }

    #[test]
    fn what_a_sink_is_being_asked_to_take_is_not_dropped_and_all_around_it_is_bounded() {
        let port = port();
        let bytes = numbered(OUTPUT_BYTES);
        port.offer(&bytes);
        assert_eq!(port.next_output(&mut [0; 100]), 100);
        assert_eq!(port.offer(&[1; 60]).dropped, 60);
        assert_eq!(port.offer(&[2; OUTPUT_BYTES]).dropped, OUTPUT_BYTES);

        let left = output(&port);
        assert_eq!(left.len(), OUTPUT_BYTES);
        assert_eq!(left[..100], bytes[..100]);
        assert!(left[100..].iter().all(|byte| *byte == 2));

        port.sent(30);
        assert_eq!(output(&port)[..71], [&bytes[30..100], &[2]].concat());
        port.offer(&[3; OUTPUT_BYTES]);
        assert_eq!(output(&port), [3; OUTPUT_BYTES], "no longer in hand");
    }

    #[test]
    fn input_is_bounded_and_whoever_waits_for_room_is_told() {
        let port = port();
        assert_eq!(port.input_room(), INPUT_BYTES);
        port.put_input(&numbered(INPUT_BYTES));
        assert_eq!(port.input_room(), 0);

        let mut to = [0; 10];
        assert_eq!(port.take_input(&mut to), (10, true));
        assert_eq!(to, numbered(10)[..]);
        assert_eq!(port.take_input(&mut to), (10, false));
        assert_eq!(port.input_room(), 20);
    }

    #[test]
    fn a_reader_comes_and_goes_once() {
        let port = port();
        assert!(!port.detach() && port.attach() && !port.attach() && port.is_attached() && port.detach());
        assert!(!port.is_attached());
    }
}
