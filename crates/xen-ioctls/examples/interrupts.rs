//! What it costs to raise an interrupt of a guest, by a call and by an eventfd:
//!
//! ```text
//! interrupts DOMID IRQ
//! ```
//!
//! Prints the processor's time in nanoseconds, the kernel's and Xen's with it. A guest that is paused does not disturb.

use std::error::Error;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::write;
use rustix::time::{ClockId, clock_gettime};
use xen_ioctls::{DeviceModel, DomId, IrqFd, Privcmd};

const ROUNDS: u32 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let mut next = || numbers.next().ok_or("Which? interrupts DOMID IRQ");
    let (domain, irq) = (DomId::new(next()??)?, next()??);
    let privcmd = Arc::new(Privcmd::open()?);
    // As a worker's.
    privcmd.restrict(domain)?;
    let model = DeviceModel::new(privcmd, domain);
    println!("set_irq_level {}", cost(|| Ok(model.set_irq_level(irq, true)?))?);
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let _tied = IrqFd::new(&model, irq, &event)?;
    println!("eventfd {}", cost(|| Ok(write(&event, &1_u64.to_ne_bytes()).map(drop)?))?);
    Ok(())
}

/// The processor's time of one such call in nanoseconds, after one that warms up.
fn cost(mut call: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<i64, Box<dyn Error>> {
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
