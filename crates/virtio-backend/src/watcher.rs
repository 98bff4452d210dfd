//! Descriptors that come and go, as one source of a worker.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// What to watch a descriptor for. Its end and its errors are always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// There is something to read, or the peer has finished.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What it was added as.
    pub token: u64,
    /// A read will not block; it may fail or find the end.
    pub readable: bool,
    /// A write will not block; it may fail.
    pub writable: bool,
    /// Both directions have ended, or it failed.
    pub hung_up: bool,
}

/// Watches many descriptors, level-triggered unless asked otherwise. Given as a source, it wakes the lane when one of
/// them becomes ready; the worker then asks [`Watcher::ready`] until there is no more, or must expect no further wake.
///
/// What stays ready and is not wanted for the moment is to be told so by [`Watcher::change`]: it would be told of again
/// and again.
pub struct Watcher {
    epoll: OwnedFd,
}

/// How many descriptors are told of at a time.
const BATCH: usize = 64;

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Watches `descriptor`; it is known by `token` from now on, until it is removed or closed.
    ///
    /// # Errors
    /// It is watched already, cannot be watched (a regular file), or the host has no memory for it.
    pub fn add(&self, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, descriptor, EventData::new_u64(token), flags(interest))?)
    }

    /// Watches `descriptor` for everything, edge-triggered: it is told of once whenever it becomes ready anew. For a
    /// worker that keeps in mind what is ready until a read or a write would block; there is nothing to change then.
    ///
    /// # Errors
    /// As for [`Watcher::add`].
    pub fn add_for_changes(&self, descriptor: impl AsFd, token: u64) -> io::Result<()> {
        let everything = flags(Interest { readable: true, writable: true }) | EventFlags::ET;
        Ok(epoll::add(&self.epoll, descriptor, EventData::new_u64(token), everything)?)
    }

    /// Watches a descriptor, known by `token` from now on, for something else.
    ///
    /// # Errors
    /// It is not watched.
    pub fn change(&self, descriptor: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, descriptor, EventData::new_u64(token), flags(interest))?)
    }

    /// Watches a descriptor no longer. Closing it does that as well, if nobody else holds it open.
    ///
    /// # Errors
    /// It is not watched.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, descriptor)?)
    }

    /// Some of those that are ready now; none if there are none.
    ///
    /// # Errors
    /// The kernel fails, which it has no reason to.
    pub fn ready(&mut self) -> io::Result<impl Iterator<Item = Ready> + use<>> {
        // Not kept in between: the kernel's struct has a pointer among its variants and could not change threads.
        let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
        let told = match epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())) {
            Ok((told, _)) => told.iter().map(ready).collect(),
            Err(Errno::INTR) => Vec::new(),
            Err(errno) => return Err(errno.into()),
        };
        Ok(told.into_iter())
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn flags(interest: Interest) -> EventFlags {
    let readable = if interest.readable { EventFlags::IN | EventFlags::RDHUP } else { EventFlags::empty() };
    let writable = if interest.writable { EventFlags::OUT } else { EventFlags::empty() };
    readable | writable
}

fn ready(event: &Event) -> Ready {
    // Copied out: the kernel's struct is packed.
    let (flags, data) = (event.flags, event.data);
    let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
    Ready {
        token: data.u64(),
        readable: hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
        writable: hung_up || flags.contains(EventFlags::OUT),
        hung_up,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const READ: Interest = Interest { readable: true, writable: false };
    const BOTH: Interest = Interest { readable: true, writable: true };
    const NONE: Interest = Interest { readable: false, writable: false };

    fn ready_of(watcher: &mut Watcher) -> Vec<Ready> {
        watcher.ready().unwrap().collect()
    }

    #[test]
    fn it_goes_with_the_worker_to_its_thread() {
        fn is_send<T: Send>() {}
        is_send::<Watcher>();
    }

    #[test]
    fn what_is_ready_is_told_by_its_token_until_it_is_dealt_with() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(&there, 7, READ).unwrap();
        assert_eq!(ready_of(&mut watcher), []);

        here.write_all(b"x").unwrap();

        let told = [Ready { token: 7, readable: true, writable: false, hung_up: false }];
        assert_eq!(ready_of(&mut watcher), told);
        assert_eq!(ready_of(&mut watcher), told, "nobody has read yet");
        (&there).read_exact(&mut [0]).unwrap();
        assert_eq!(ready_of(&mut watcher), []);
    }

    #[test]
    fn interest_can_change_and_end() {
        let (_here, there) = UnixStream::pair().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(&there, 1, NONE).unwrap();
        assert_eq!(ready_of(&mut watcher), []);

        watcher.change(&there, 2, BOTH).unwrap();
        assert_eq!(ready_of(&mut watcher), [Ready { token: 2, readable: false, writable: true, hung_up: false }]);

        watcher.remove(&there).unwrap();
        assert_eq!(ready_of(&mut watcher), []);
    }

    #[test]
    fn what_is_watched_for_changes_is_told_once_for_each() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add_for_changes(&there, 5).unwrap();
        let writable = Ready { token: 5, readable: false, writable: true, hung_up: false };
        assert_eq!(ready_of(&mut watcher), [writable]);
        assert_eq!(ready_of(&mut watcher), []);

        for _ in 0..2 {
            here.write_all(b"x").unwrap();
            assert_eq!(ready_of(&mut watcher), [Ready { readable: true, ..writable }]);
            assert_eq!(ready_of(&mut watcher), [], "nobody has read, and nothing is new");
        }
    }

    #[test]
    fn the_end_of_a_peer_is_told_whatever_was_asked() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(&there, 3, NONE).unwrap();

        drop(here);

        assert_eq!(ready_of(&mut watcher), [Ready { token: 3, readable: true, writable: true, hung_up: true }]);
    }
}
