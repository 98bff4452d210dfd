//! Where random bytes come from.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Gives random bytes.
pub trait Source: Send + Sync + 'static {
    /// Fills `bytes` from the start; returns how many it filled. Does not block.
    ///
    /// # Errors
    /// There are none now; there may be some later.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<usize>;
}

/// getrandom(2): the kernel's generator, which hands out nothing before it has been seeded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

impl Source for Kernel {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<usize> {
        // To wait for the seed, early on in a host's life, would hold up a reset.
        Ok(getrandom(bytes, GetRandomFlags::NONBLOCK)?)
    }
}
