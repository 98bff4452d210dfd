//! A port that ends in the program's standard input and output.

use std::io;
use std::os::fd::OwnedFd;

use virtio_backend::Ready;

use super::stream::{Pumped, Stream};
use super::{End, Side};

const INPUT: u64 = 0;
const OUTPUT: u64 = 1;

/// See the module.
pub(super) struct Stdio {
    input: Stream,
    output: Stream,
}

impl Stdio {
    pub(super) fn new(input: OwnedFd, output: OwnedFd) -> Self {
        Self { input: Stream::input(input, INPUT), output: Stream::output(output, OUTPUT) }
    }
}

impl End for Stdio {
    fn start(&mut self, side: &Side<'_>) -> io::Result<()> {
        side.attach();
        Ok(())
    }

    fn ready(&mut self, role: u64, ready: Ready) {
        if role == INPUT { self.input.ready(ready) } else { self.output.ready(ready) }
    }

    fn pump(&mut self, side: &Side<'_>) -> bool {
        let taken = self.input.pump(side);
        let given = self.output.pump(side);
        if given == Pumped::Ended {
            side.detach();
        }
        taken == Pumped::More || given == Pumped::More
    }
}
