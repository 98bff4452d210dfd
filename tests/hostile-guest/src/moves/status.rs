//! Status, features and resets, out of order.

use super::Move;
use super::registers::{goes_on, same};
use crate::driver::{AGREED, Driver, RUNNING, place};
use crate::registers::{QUEUE_NOTIFY, QUEUE_READY, STATUS, feature, status};

pub(super) fn all() -> Vec<Move> {
    let mut moves = vec![
        Move::new("C09", "says that it drives what it has not set up", |driver| {
            driver.reset()?;
            driver.set(STATUS, status::DRIVER_OK);
            offer_one(driver);
            unused(driver)
        }),
        Move::new("C09", "gives up, and goes on", |driver| {
            driver.set(STATUS, RUNNING | status::FAILED);
            offer_one(driver);
            driver.set(STATUS, RUNNING);
            offer_one(driver);
            Ok(())
        }),
        Move::new("C09", "asks itself for a reset", |driver| {
            driver.set(STATUS, RUNNING | status::NEEDS_RESET);
            Ok(())
        }),
        Move::new("C09", "sets bits that mean nothing", |driver| {
            driver.set(STATUS, RUNNING | 0x30 | 0xffff_ff00);
            same("the status's upper bits", driver.get(STATUS) & 0xffff_ff00, 0)
        }),
        Move::new("C11", "kicks before it says that it drives", |driver| {
            driver.negotiate(driver.usual_features())?;
            place_and_ready(driver);
            offer_one(driver);
            unused(driver)
        }),
        Move::new("C11", "kicks after it has given up", |driver| {
            driver.set(STATUS, RUNNING | status::FAILED);
            offer_one(driver);
            Ok(())
        }),
        Move::new("C11", "kicks after a reset", |driver| {
            driver.reset()?;
            offer_one(driver);
            unused(driver)
        }),
        Move::new("C11", "kicks all queues of which none is ready", |driver| {
            driver.negotiate(driver.usual_features())?;
            driver.set(STATUS, RUNNING);
            for queue in 0..8 {
                driver.set(QUEUE_NOTIFY, queue);
            }
            unused(driver)
        }),
        Move::new("C12", "resets amid requests", |driver| {
            offer_many(driver);
            driver.reset()
        }),
        Move::new("C12", "resets twice amid requests", |driver| {
            offer_many(driver);
            driver.set(STATUS, 0);
            driver.reset()
        }),
        Move::new("C12", "resets amid requests and uses their memory", |driver| {
            offer_many(driver);
            driver.reset()?;
            driver.machine.store(0, &[0xa5; 0x8000]);
            (0..100).for_each(|_| driver.machine.pause());
            let mut after = vec![0; 0x8000];
            driver.machine.load(0, &mut after);
            if after.iter().all(|byte| *byte == 0xa5) { Ok(()) } else { Err("it is written after a reset".to_owned()) }
        }),
        Move::new("C10", "refuses version 1", |driver| {
            driver.reset()?;
            driver.set(STATUS, status::ACKNOWLEDGE | status::DRIVER);
            driver.accept(0);
            driver.set(STATUS, AGREED);
            same("whether that is agreed on", driver.get(STATUS) & status::FEATURES_OK, 0)
        }),
        Move::new("C10", "accepts all features, offered or not", |driver| {
            driver.reset()?;
            driver.set(STATUS, status::ACKNOWLEDGE | status::DRIVER);
            driver.accept(u64::MAX);
            driver.set(STATUS, AGREED);
            same("whether that is agreed on", driver.get(STATUS) & status::FEATURES_OK, 0)
        }),
        Move::new("C10", "changes features when they are agreed on", |driver| {
            driver.accept(u64::MAX);
            goes_on(driver)
        }),
        Move::new("C10", "accepts words of features that there are not", |driver| {
            driver.reset()?;
            driver.set(STATUS, status::ACKNOWLEDGE | status::DRIVER);
            driver.accept(driver.usual_features());
            for word in [2, 3, 31, u32::MAX] {
                driver.machine.write(crate::registers::DRIVER_FEATURES_SEL, 4, word.into());
                driver.machine.write(crate::registers::DRIVER_FEATURES, 4, u32::MAX.into());
            }
            driver.set(STATUS, AGREED);
            Ok(())
        }),
        Move::new("D20", "asks for packed rings", |driver| {
            let packed = 1 << 34;
            same("whether they are offered", driver.offered() & packed, 0)
        }),
    ];
    for bit in [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK] {
        moves.push(Move::new("C09", format!("takes status bit {bit} back"), move |driver| {
            driver.set(STATUS, RUNNING & !bit);
            offer_one(driver);
            Ok(())
        }));
    }
    moves
}

pub(super) fn place_and_ready(driver: &Driver<'_>) {
    driver.clear_queue();
    driver.place_queue(8, driver.at(place::DESC), driver.at(place::AVAIL), driver.at(place::USED));
    driver.set(QUEUE_READY, 1);
}

/// Makes a request that is right by itself.
pub(super) fn offer_one(driver: &Driver<'_>) {
    driver.write_chain(0, &driver.request());
    driver.offer(&[0]);
    driver.kick();
}

/// As many requests as go into the queue, all of the same buffers.
fn offer_many(driver: &Driver<'_>) {
    driver.write_chain(0, &driver.request());
    driver.offer(&[0; 8]);
    driver.kick();
}

fn unused(driver: &Driver<'_>) -> Result<(), String> {
    (0..20).for_each(|_| driver.machine.pause());
    same("the used ring's index", driver.index(place::USED), 0)
}

/// Features with event indexes.
pub(super) fn with_event_index(driver: &Driver<'_>) -> u64 {
    driver.usual_features() | driver.offered() & feature::EVENT_IDX
}
