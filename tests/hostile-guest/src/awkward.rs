//! Instructions that reach registers in ways no driver does: pairs, vectors, exclusives, write-back, what is not aligned, and
//! maintenance of caches. Xen decodes some, and refuses others to the guest, which then gets a signal; so each is done by a
//! process of its own.
#![expect(unsafe_code, reason = "the instructions are the point")]

use std::arch::asm;
use std::process::Command;

use crate::devmem::DevMem;
use crate::driver::Driver;

/// Does one of them at this address of ours.
type Instruction = unsafe fn(*mut u8);

macro_rules! instructions {
    ($($name:literal: $code:literal,)+) => {
        /// Their names, and they.
        const ALL: &[(&str, Instruction)] = &[$(($name, {
            unsafe fn instruction(at: *mut u8) {
                // SAFETY: it touches the device's registers, and registers that it says it clobbers.
                unsafe { asm!($code, at = inout(reg) at => _, out("x10") _, out("x11") _, out("v0") _, out("v1") _) };
            }
            instruction
        }),)+];
    };
}

instructions! {
    "loads a pair": "ldp x10, x11, [{at}]",
    "stores a pair": "stp xzr, xzr, [{at}]",
    "loads a pair of words": "ldp w10, w11, [{at}]",
    "loads a vector": "ldr q0, [{at}]",
    "stores a vector": "str q0, [{at}]",
    "loads a pair of vectors": "ldp q0, q1, [{at}]",
    "loads and steps on": "ldr w10, [{at}], #4",
    "stores and steps on": "str wzr, [{at}], #4",
    "loads what is not aligned": "ldr w10, [{at}, #1]",
    "stores what is not aligned": "str wzr, [{at}, #2]",
    "loads exclusively": "ldxr w10, [{at}]",
    "stores exclusively": "ldxr w10, [{at}]\n stxr w11, w10, [{at}]",
    "loads with acquire order": "ldar w10, [{at}]",
    "cleans the cache": "dc civac, {at}",
    "zeroes a line of the cache": "dc zva, {at}",
    "fetches ahead": "prfm pldl1keep, [{at}]",
    "loads a signed byte": "ldrsb x10, [{at}]",
}

/// Does the instruction of this number to a device's registers, and lives or not.
///
/// # Errors
/// There is none, or the device cannot be reached.
pub fn do_one(window: u64, number: usize) -> Result<(), String> {
    let (_, instruction) = ALL.get(number).ok_or("there is no such instruction")?;
    let machine = DevMem::new(window).map_err(|error| error.to_string())?;
    // SAFETY: the address is that of the device's registers, which no memory of ours is in.
    unsafe { instruction(machine.registers()) };
    Ok(())
}

/// Has each done by a process, and then uses the device as one should: names, and how that went.
pub fn do_all<'a>(
    driver: &'a Driver<'_>,
    window: u64,
) -> impl Iterator<Item = (&'static str, Result<(), String>)> + 'a {
    ALL.iter().enumerate().map(move |(number, (name, _))| {
        let made = driver.start().and_then(|()| {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            let arguments = [format!("{window:#x}"), number.to_string()];
            // It may well die of it: that is the guest's affair.
            Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
            driver.honest()
        });
        (*name, made)
    })
}
