//! Drivers of any kind against a real disk.
//!
//! Bytes become a disk and the moves of its driver (`moves`): honest requests, and descriptors, tables, ring indexes,
//! configuration writes and resets of any sort. The device's worker runs on the calling thread over memory and an image
//! of its own (`machine`), and after each pass it is seen whether it kept to what any driver may expect (`judge`).
//!
//! - Nothing panics, and nothing hangs.
//! - A chain comes back exactly once, or the device needs a reset and the guest is to blame.
//! - Memory that the driver did not give for writing is as it was, and so is the image but for what was to be changed.
//! - What an honest request gets is what the specification says.

mod judge;
mod machine;
mod memory;
mod moves;

use arbitrary::{Arbitrary, Unstructured};

/// Makes a disk and a driver of `bytes`, and has the driver do all that it wants.
///
/// # Panics
/// The device did something that it must not do.
pub fn run(bytes: &[u8]) {
    let mut source = Unstructured::new(bytes);
    let Ok(setting) = moves::Setting::arbitrary(&mut source) else { return };
    let mut machine = machine::Machine::new(setting);
    while !source.is_empty() {
        let Ok(next) = moves::Move::arbitrary(&mut source) else { break };
        machine.make(next);
    }
    machine.end();
}
