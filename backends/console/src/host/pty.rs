//! A port that ends in a pseudo-terminal.
//!
//! A reader is whoever has the terminal open. That the last has closed it, the master reports by hanging up; that one
//! has opened it, inotify does.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;
use virtio_backend::Ready;

use super::stream::{Pumped, Stream};
use super::{End, Side};
use crate::shared::Size;

/// See the module.
pub(super) struct Pty {
    master: Stream,
    /// Something happened: perhaps the terminal has another size.
    was_touched: bool,
}

impl Pty {
    pub(super) fn new(master: OwnedFd) -> Self {
        Self { master: Stream::dormant(master, 0), was_touched: false }
    }

    /// Nothing tells of a terminal that is resized, so it is asked whenever something else happens.
    fn ask_size(&mut self, side: &Side<'_>) {
        if std::mem::take(&mut self.was_touched)
            && let Ok(size) = tcgetwinsize(self.master.fd())
        {
            side.resize(Size { cols: size.ws_col, rows: size.ws_row });
        }
    }

    fn has_reader(&self) -> bool {
        let mut master = [PollFd::new(self.master.fd(), PollFlags::IN)];
        let polled = poll(&mut master, Some(&Timespec::default()));
        polled.is_ok() && master.iter().all(|master| !master.revents().contains(PollFlags::HUP))
    }
}

impl End for Pty {
    fn start(&mut self, side: &Side<'_>) -> io::Result<()> {
        self.opened(side);
        // Before a driver looks, which may have seen it already.
        self.ask_size(side);
        Ok(())
    }

    fn ready(&mut self, _role: u64, ready: Ready) {
        self.was_touched = true;
        self.master.ready(ready);
    }

    fn opened(&mut self, side: &Side<'_>) {
        self.was_touched = true;
        let stays = self.has_reader();
        // One that has gone already may have left input.
        self.master.revive(stays);
        if stays {
            side.attach();
        }
    }

    fn pump(&mut self, side: &Side<'_>) -> bool {
        self.ask_size(side);
        let pumped = self.master.pump(side);
        if pumped == Pumped::Ended {
            side.detach();
        }
        pumped == Pumped::More
    }
}
