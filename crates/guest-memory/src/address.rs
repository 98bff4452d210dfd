//! What the bits of a guest address mean. Pure arithmetic; nothing here says that there is memory behind an address.

/// Xen's page, in bytes. The host kernel's page may be larger; guest frames are counted in these.
pub const PAGE_SIZE: u64 = 4096;

/// [`PAGE_SIZE`] as a length in our own memory.
pub(crate) const PAGE_LEN: usize = 4096;

/// Frames that the cache maps in one go.
///
/// A mapping call costs one hypercall a page, so a larger chunk makes a miss dearer; a smaller one makes more of them
/// and more VMAs (the kernel allows a process 65530). 64 KiB is what block drivers' requests are commonly cut to.
pub(crate) const CHUNK_FRAMES: u64 = 16;

/// Bytes of a chunk, which is aligned to its size.
pub const CHUNK_SIZE: u64 = CHUNK_FRAMES * PAGE_SIZE;

/// Set in an address that the driver's `xen-grant-dma` layer made (Linux, `drivers/xen/grant-dma-ops.c`).
const GRANT: u64 = 1 << 63;

/// Which page source a guest address belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Route {
    /// Bit 63 clear: guest-physical, reached by mapping the guest's frame.
    Frame {
        /// The chunk: address / [`CHUNK_SIZE`].
        chunk: u64,
        /// Bytes from the start of the chunk, below [`CHUNK_SIZE`].
        offset: u64,
    },
    /// Bit 63 set: a page that the guest granted.
    Grant {
        /// The grant reference. Xen's are 32 bits wide; whatever more the guest wrote is kept, to be refused.
        reference: u64,
        /// Bytes from the start of the granted page, below [`PAGE_SIZE`].
        offset: u64,
    },
}

impl Route {
    /// Splits `address`; every value has a route.
    pub fn of(address: u64) -> Self {
        if address & GRANT == 0 {
            Self::Frame { chunk: address / CHUNK_SIZE, offset: address % CHUNK_SIZE }
        } else {
            Self::Grant { reference: (address & !GRANT) / PAGE_SIZE, offset: address % PAGE_SIZE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_63_separates_grants_from_frames() {
        assert_eq!(Route::of(0x4001_2345), Route::Frame { chunk: 0x4001, offset: 0x2345 });
        assert_eq!(Route::of(GRANT - 1), Route::Frame { chunk: (GRANT - 1) / CHUNK_SIZE, offset: 0xffff });
        assert_eq!(Route::of(GRANT | 0x1234_5678), Route::Grant { reference: 0x1_2345, offset: 0x678 });
        assert_eq!(Route::of(u64::MAX), Route::Grant { reference: (1 << 51) - 1, offset: 0xfff });
    }
}
