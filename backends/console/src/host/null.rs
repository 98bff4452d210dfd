//! A port that leads nowhere.

use std::io;

use super::{End, Side};

/// Takes everything.
pub(super) struct Null;

impl End for Null {
    fn start(&mut self, side: &Side<'_>) -> io::Result<()> {
        side.attach();
        Ok(())
    }

    fn pump(&mut self, side: &Side<'_>) -> bool {
        let count = side.port.next_output(&mut [0; 4096]);
        side.sent(count);
        count > 0
    }
}
