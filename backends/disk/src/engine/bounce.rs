//! Memory of our own for direct I/O that the guest's memory does not allow.
//!
//! Foreign mappings cannot be pinned by the kernel, and guest buffers may be misaligned. A transfer then goes through
//! one block, in steps of at most its size; the pool bounds how many do so at a time, the others wait their turn.

use guest_memory::Buffers;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Bytes in a block. Large requests take several steps; NVMe and disks alike reach their throughput well below it.
pub(super) const BLOCK_SIZE: usize = 128 << 10;

/// Blocks of one engine, 8 MiB in all: more transfers in parallel than storage makes use of.
pub(super) const BLOCKS: usize = 64;

/// As aligned as any device asks for.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// One piece of bounce memory.
pub(super) struct Block(Box<[Page]>);

impl Block {
    /// `None` if the host has no memory.
    pub(super) fn new() -> Option<Self> {
        Some(Self(<[Page]>::new_box_zeroed_with_elems(BLOCK_SIZE / size_of::<Page>()).ok()?))
    }

    /// Fills its start from `memory` and describes up to `len` bytes of it to the kernel.
    pub(super) fn load(&mut self, memory: &Buffers, at: usize, len: usize) -> libc::iovec {
        memory.read(at, self.start(len));
        self.iovec(len)
    }

    /// Copies the `len` bytes that the kernel put there to `memory`.
    pub(super) fn store(&mut self, memory: &Buffers, at: usize, len: usize) {
        memory.write(at, self.start(len));
    }

    /// Describes up to `len` bytes of it to the kernel.
    pub(super) fn iovec(&mut self, len: usize) -> libc::iovec {
        let start = self.start(len);
        libc::iovec { iov_base: start.as_mut_ptr().cast(), iov_len: start.len() }
    }

    /// Up to `len` bytes of it.
    pub(super) fn start(&mut self, len: usize) -> &mut [u8] {
        let bytes = self.0.as_mut_bytes();
        let len = len.min(bytes.len());
        bytes.split_at_mut(len).0
    }
}

/// The blocks of one engine, allocated when first needed.
pub(super) struct Pool {
    free: Vec<Block>,
    unallocated: usize,
    lent: usize,
}

impl Pool {
    pub(super) fn new(blocks: usize) -> Self {
        Self { free: Vec::new(), unallocated: blocks, lent: 0 }
    }

    /// Whether a block is in use, and so will be given back.
    pub(super) fn is_lent(&self) -> bool {
        self.lent > 0
    }

    /// `None` when all are in use, or the host has no memory for another.
    pub(super) fn take(&mut self) -> Option<Block> {
        let block = match self.free.pop() {
            Some(block) => block,
            None if self.unallocated == 0 => return None,
            None => {
                let block = Block::new()?;
                self.unallocated -= 1;
                block
            }
        };
        self.lent += 1;
        Some(block)
    }

    pub(super) fn give(&mut self, block: Block) {
        self.lent -= 1;
        self.free.push(block);
    }
}

/// Zeroes to write, aligned for direct I/O.
pub(super) static ZEROES: ZeroBlock = ZeroBlock([0; ZERO_BLOCK_SIZE]);

/// Bytes of [`ZEROES`].
pub(super) const ZERO_BLOCK_SIZE: usize = 64 << 10;

/// See [`ZEROES`].
#[repr(C, align(4096))]
pub(super) struct ZeroBlock(pub(super) [u8; ZERO_BLOCK_SIZE]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_no_more_blocks_than_it_was_made_with() {
        let mut pool = Pool::new(2);
        let (first, second) = (pool.take(), pool.take());
        assert!(first.is_some() && second.is_some());
        assert!(pool.take().is_none());

        pool.give(first.unwrap());

        assert!(pool.take().is_some());
        assert!(pool.take().is_none());
    }

    #[test]
    fn a_block_is_aligned_and_never_longer_than_asked() {
        let mut block = Block::new().unwrap();
        let whole = block.iovec(usize::MAX);
        assert_eq!((whole.iov_base.addr() % 4096, whole.iov_len), (0, BLOCK_SIZE));
        assert_eq!(block.iovec(512).iov_len, 512);
    }
}
