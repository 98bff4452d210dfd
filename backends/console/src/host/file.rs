//! A port whose output goes to a file of limited size.
//!
//! The thread may not have the right to rename files, so it moves what a full file holds: into the second file, from
//! which on the first begins anew. A program that follows the file sees it shrink, which `tail` understands.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, Write};
use std::os::fd::OwnedFd;

use super::{End, Side};

/// Bytes written by one call.
const CHUNK: usize = 4096;

/// Calls before others have their turn.
const MOST_CALLS: usize = 16;

/// See the module.
pub(super) struct LogFile {
    file: File,
    previous: File,
    /// Bytes that `file` may have.
    limit: u64,
    /// Bytes that it has.
    len: u64,
}

impl LogFile {
    pub(super) fn new(file: OwnedFd, previous: OwnedFd, limit: u64) -> Self {
        Self { file: file.into(), previous: previous.into(), limit, len: 0 }
    }

    fn begin_anew(&mut self, side: &Side<'_>) {
        if let Err(error) = self.move_to_previous() {
            side.note_failure("keeping the former part of a full file", &error);
        }
        match self.file.set_len(0) {
            Ok(()) => self.len = 0,
            Err(error) => side.note_failure("emptying a full file", &error),
        }
    }

    fn move_to_previous(&mut self) -> io::Result<()> {
        self.previous.set_len(0)?;
        self.previous.rewind()?;
        self.file.rewind()?;
        io::copy(&mut self.file, &mut self.previous)?;
        Ok(())
    }
}

impl End for LogFile {
    fn start(&mut self, side: &Side<'_>) -> io::Result<()> {
        self.len = self.file.metadata()?.len();
        side.attach();
        Ok(())
    }

    fn pump(&mut self, side: &Side<'_>) -> bool {
        let mut bytes = [0; CHUNK];
        for _ in 0..MOST_CALLS {
            let count = side.port.next_output(&mut bytes);
            let Some(bytes) = bytes.get(..count).filter(|bytes| !bytes.is_empty()) else { return false };
            if self.len.saturating_add(count as u64) > self.limit {
                self.begin_anew(side);
            }
            match self.file.write(bytes) {
                Ok(written) => {
                    self.len = self.len.saturating_add(written as u64);
                    side.sent(written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Later output may fit again, as when somebody makes room.
                Err(error) => {
                    side.note_failure("writing to a file", &error);
                    side.lost(count);
                }
            }
        }
        true
    }
}
