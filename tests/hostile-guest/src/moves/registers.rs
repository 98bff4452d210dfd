//! Registers, touched in every way.

use super::Move;
use crate::driver::{Driver, RUNNING};
use crate::registers::{
    CONFIG, CONFIG_GENERATION, DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, DRIVER_FEATURES, DRIVER_FEATURES_SEL,
    INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC_VALUE, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM,
    QUEUE_NUM_MAX, QUEUE_READY, QUEUE_RESET, QUEUE_SEL, SHM_BASE, SHM_LEN, SHM_SEL, STATUS, VERSION, WINDOW_END,
};

pub(super) fn all() -> Vec<Move> {
    let mut moves = vec![
        Move::new("C13", "twenty resets, each after a setup", |driver| (0..20).try_for_each(|_| driver.start())),
        Move::new("C15", "acknowledges interrupts that there are not", |driver| {
            driver.set(INTERRUPT_ACK, u32::MAX);
            same("the status of interrupts", driver.get(INTERRUPT_STATUS), 0)
        }),
    ];
    for width in [1, 2, 4, 8] {
        moves.push(Move::new("C01", format!("reads every register {width} bytes at a time"), move |driver| {
            touch(width, |offset| _ = driver.machine.read(offset, width));
            same("the status", driver.get(STATUS), RUNNING)
        }));
        moves.push(Move::new("C01", format!("writes ones to every register {width} bytes at a time"), move |driver| {
            touch(width, |offset| driver.machine.write(offset, width, u64::MAX));
            same("the magic value", driver.get(MAGIC_VALUE), 0x7472_6976)?;
            same("the version", driver.get(VERSION), 2)
        }));
        moves.push(Move::new("C14", format!("writes {width} bytes behind the end of configuration"), move |driver| {
            for at in [0x80, 0xf0, 0x100 - width as u64] {
                driver.machine.write(CONFIG + at, width, u64::MAX);
                let read = driver.machine.read(CONFIG + at, width);
                same("what is read there", read, 0)?;
            }
            Ok(())
        }));
    }
    let write_only = [
        DEVICE_FEATURES_SEL,
        DRIVER_FEATURES,
        DRIVER_FEATURES_SEL,
        QUEUE_SEL,
        QUEUE_NUM,
        QUEUE_NOTIFY,
        INTERRUPT_ACK,
        QUEUE_DESC,
        QUEUE_DRIVER,
        QUEUE_DEVICE,
        SHM_SEL,
    ];
    for register in write_only {
        moves.push(Move::new("C02", format!("reads register {register:#x}, which is for writing"), move |driver| {
            same("what is read", driver.get(register), 0)
        }));
    }
    let read_only =
        [MAGIC_VALUE, VERSION, DEVICE_ID, DEVICE_FEATURES, QUEUE_NUM_MAX, INTERRUPT_STATUS, CONFIG_GENERATION];
    for register in read_only {
        moves.push(Move::new("C02", format!("writes register {register:#x}, which is for reading"), move |driver| {
            let before = driver.get(register);
            driver.set(register, !before);
            same("what is read", driver.get(register), before)
        }));
    }
    for queue in [64, 0xffff, 0x1_0000, i32::MAX as u32, 1 << 31, u32::MAX] {
        moves.push(Move::new("C03", format!("sets up queue {queue:#x}"), move |driver| {
            driver.place_queue(8, driver.at(0), driver.at(0x1000), driver.at(0x2000));
            driver.set(QUEUE_SEL, queue);
            same("its size", driver.get(QUEUE_NUM_MAX), 0)?;
            driver.set(QUEUE_NUM, 8);
            driver.set(QUEUE_READY, 1);
            driver.set(QUEUE_RESET, 1);
            same("whether it is ready", driver.get(QUEUE_READY), 0)
        }));
    }
    for value in [64, 0xffff, 0xffff_0000, 0x8000_0000, u32::MAX] {
        moves.push(Move::new("C04", format!("kicks queue {value:#x}"), move |driver| {
            driver.set(QUEUE_NOTIFY, value);
            same("the status", driver.get(STATUS), RUNNING)
        }));
    }
    for region in [0, 1, u32::MAX] {
        moves.push(Move::new("C17", format!("looks for shared memory region {region:#x}"), move |driver| {
            driver.set(SHM_SEL, region);
            for register in [SHM_LEN, SHM_LEN + 4, SHM_BASE, SHM_BASE + 4] {
                same("what is told of it", driver.get(register), u32::MAX)?;
            }
            Ok(())
        }));
    }
    moves
}

/// Each place of this width in the window, aligned, and some that are not. The status register is left out: zeros there are
/// a reset, ones a failure, and both have moves of their own. What follows configuration space is seldom the device's.
fn touch(width: usize, mut access: impl FnMut(u64)) {
    let aligned = (0..WINDOW_END).step_by(width.max(4));
    let near_status = |offset: &u64| *offset < STATUS + 4 && *offset + width as u64 > STATUS;
    aligned.filter(|offset| !near_status(offset)).for_each(&mut access);
}

pub(super) fn same<T: PartialEq + std::fmt::LowerHex>(what: &str, is: T, should: T) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{what} is {is:#x} and should be {should:#x}")) }
}

/// For moves that leave the device as it was.
pub(super) fn goes_on(driver: &Driver<'_>) -> Result<(), String> {
    same("the status", driver.get(STATUS), RUNNING)
}
