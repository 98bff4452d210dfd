//! What it costs to map and to copy pages that a guest granted:
//!
//! ```text
//! grants DOMID REFERENCE...
//! ```
//!
//! Prints the processor's time in nanoseconds, the kernel's and Xen's with it, for mapping and unmapping a number of
//! pages, for copying as many, and for copying 16 bytes of each. The references, of pages granted for reading and writing, are taken again and again:
//! those of two rings will do, `tx-ring-ref` and `rx-ring-ref` of a network interface of Xen's own. Pages are read only.

use std::error::Error;
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};
use vm_memory::VolatileSlice;
use xen_ioctls::{CopySegment, Direction, DomId, Gntdev, GrantError};

const ROUNDS: u32 = 200;
const PAGE: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let domain = DomId::new(numbers.next().ok_or("Whose? grants DOMID REFERENCE...")??)?;
    let references: Vec<u32> = numbers.collect::<Result<_, _>>()?;
    let gntdev = Arc::new(Gntdev::open()?);
    let mut memory = vec![0_u8; 64 * PAGE];
    println!("{:>5} {:>10} {:>10} {:>10} {:>10}", "pages", "map, ro", "map, rw", "copy", "16 bytes");
    for pages in [1, 2, 3, 4, 6, 8, 12, 16, 32, 64] {
        let list: Vec<u32> = references.iter().copied().cycle().take(pages).collect();
        let read_only = cost(|| gntdev.map(domain, &list, false).map(drop))?;
        let writable = cost(|| gntdev.map(domain, &list, true).map(drop))?;
        let copied = cost(|| gntdev.copy(domain, segments(&list, PAGE, &mut memory).iter().copied()))?;
        let headers = cost(|| gntdev.copy(domain, segments(&list, 16, &mut memory).iter().copied()))?;
        println!("{pages:>5} {read_only:>10} {writable:>10} {copied:>10} {headers:>10}");
    }
    Ok(())
}

/// The first `len` bytes of each page, one behind the other.
fn segments<'a>(references: &[u32], len: usize, memory: &'a mut [u8]) -> Vec<CopySegment<'a>> {
    let pieces = references.iter().zip(memory.chunks_exact_mut(len));
    let segment = |(&reference, piece): (_, &'a mut [u8])| CopySegment {
        reference,
        offset: 0,
        ours: VolatileSlice::from(piece),
        direction: Direction::FromGrant,
    };
    pieces.map(segment).collect()
}

/// The processor's time of one such call in nanoseconds, after one that warms up.
fn cost(mut call: impl FnMut() -> Result<(), GrantError>) -> Result<i64, GrantError> {
    call()?;
    let start = processor_time();
    for _ in 0..ROUNDS {
        call()?;
    }
    Ok((processor_time() - start) / i64::from(ROUNDS))
}

fn processor_time() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
