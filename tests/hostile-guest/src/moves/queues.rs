//! Queues in places where they can't be, of sizes that they can't have, and changed while they are in use.

use super::Move;
use super::registers::goes_on;
use super::status::{offer_one, with_event_index};
use crate::driver::{Driver, RUNNING, place};
use crate::registers::{
    QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NUM, QUEUE_NUM_MAX, QUEUE_READY, QUEUE_RESET, QUEUE_SEL, STATUS,
};

/// A queue's parts: their names, where they belong, and to what they must be aligned.
const PARTS: [(&str, u64, u64); 3] =
    [("descriptor table", place::DESC, 16), ("available ring", place::AVAIL, 2), ("used ring", place::USED, 4)];

pub(super) fn all() -> Vec<Move> {
    let mut moves = Vec::new();
    for size in [0, 3, 0x7fff, 0x8001, 0xffff, 0x1_0000, 1 << 31, u32::MAX] {
        moves.push(Move::new("C05", format!("makes a queue of {size} entries"), move |driver| {
            set_up_again(driver, size, [place::DESC, place::AVAIL, place::USED].map(|at| driver.at(at)))
        }));
    }
    for (part, (name, home, alignment)) in PARTS.into_iter().enumerate() {
        let homes = PARTS.map(|(_, home, _)| home);
        for (words, which) in ["in a hole", "in registers", "at 2^48", "at 2^52", "at the end"].into_iter().zip(0..) {
            moves.push(Move::new("B01", format!("puts the {name} {words}"), move |driver| {
                let mut places = homes.map(|home| driver.at(home));
                places[part] = driver.nowhere()[which].1 & !(alignment - 1);
                set_up_again(driver, 8, places)
            }));
        }
        moves.push(Move::new("C08", format!("puts the {name} where it is not aligned"), move |driver| {
            let mut places = homes.map(|home| driver.at(home));
            places[part] += alignment / 2;
            set_up_again(driver, 8, places)
        }));
        moves.push(Move::new("C06", format!("moves the {name} amid its use"), move |driver| {
            driver.set(QUEUE_SEL, driver.queue());
            let register = [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE][part];
            driver.set_address(register, 1 << 48);
            offer_one(driver);
            driver.used_or_broken(1)
        }));
        for (other, (others_name, others_home, _)) in PARTS.into_iter().enumerate().filter(|(other, _)| *other != part)
        {
            if other > part {
                moves.push(Move::new("C08", format!("lays the {name} on the {others_name}"), move |driver| {
                    let mut places = homes.map(|home| driver.at(home));
                    places[part] = driver.at(others_home);
                    set_up_again(driver, 8, places)
                }));
            }
        }
        moves.push(Move::new("B03", format!("lets the {name} end where memory does not"), move |driver| {
            let mut places = homes.map(|home| driver.at(home));
            places[part] = driver.nowhere()[0].1 - 16;
            let _ = home;
            set_up_again(driver, 8, places)
        }));
    }
    moves.extend([
        Move::new("C08", "lays all parts of a queue on one another", |driver| {
            set_up_again(driver, 8, [driver.at(place::DESC); 3])
        }),
        Move::new("C08", "lays the used ring into the descriptor table", |driver| {
            set_up_again(driver, 8, [driver.at(place::DESC), driver.at(place::AVAIL), driver.at(place::DESC + 64)])
        }),
        Move::new("C06", "changes a queue's size amid its use", |driver| {
            driver.set(QUEUE_SEL, driver.queue());
            driver.set(QUEUE_NUM, 3);
            offer_one(driver);
            driver.used_or_broken(1)
        }),
        Move::new("C07", "makes a queue ready twice", |driver| {
            driver.set(QUEUE_SEL, driver.queue());
            driver.set(QUEUE_READY, 1);
            offer_one(driver);
            driver.used_or_broken(1)
        }),
        Move::new("C07", "makes a queue ready that is nowhere", |driver| set_up_again(driver, 8, [0; 3])),
        Move::new("C07", "makes a queue unready amid requests", |driver| {
            offer_one(driver);
            driver.set(QUEUE_SEL, driver.queue());
            driver.set(QUEUE_READY, 0);
            driver.kick();
            Ok(())
        }),
        Move::new("C07", "writes strange words to whether a queue is ready", |driver| {
            driver.set(QUEUE_SEL, driver.queue());
            for value in [2, u32::MAX, 0, 1, 0xffff_fffe] {
                driver.set(QUEUE_READY, value);
            }
            Ok(())
        }),
        Move::new("C18", "resets a queue amid requests, and makes it again of another size", |driver| {
            offer_one(driver);
            driver.set(QUEUE_SEL, driver.queue());
            driver.set(QUEUE_RESET, 1);
            driver.wait("the queue's reset ends", || driver.get(QUEUE_RESET) == 0)?;
            driver.clear_queue();
            driver.place_queue(4, driver.at(place::DESC), driver.at(place::AVAIL), driver.at(place::USED));
            driver.set(QUEUE_READY, 1);
            Ok(())
        }),
        Move::new("C18", "resets a queue without the right to", |driver| {
            driver.negotiate(crate::registers::feature::VERSION_1)?;
            driver.set(QUEUE_SEL, driver.queue());
            driver.set(QUEUE_RESET, 1);
            Ok(())
        }),
        Move::new("C03", "asks for the largest queue it is told of", |driver| {
            driver.set(QUEUE_SEL, driver.queue());
            let size = driver.get(QUEUE_NUM_MAX);
            set_up_again(driver, size, [driver.at(0x2_0000), driver.at(0xc_0000), driver.at(0x10_0000)])
        }),
        Move::new("D09", "lets the index jump by more than the queue has", |driver| jump(driver, 9)),
        Move::new("D09", "lets the index jump by half of all numbers", |driver| jump(driver, 0x8000)),
        Move::new("D09", "takes the index back", |driver| {
            offer_one(driver);
            driver.used_or_broken(1)?;
            jump(driver, 0)
        }),
        Move::new("D10", "offers the same head eight times", |driver| {
            driver.write_chain(0, &driver.request());
            driver.offer(&[0; 8]);
            driver.kick();
            driver.used_or_broken(8)
        }),
        Move::new("D02", "offers a head that the queue does not have", |driver| {
            driver.offer(&[8]);
            driver.kick();
            driver.broken()
        }),
        Move::new("D02", "offers the last of all heads", |driver| {
            driver.offer(&[u16::MAX]);
            driver.kick();
            driver.broken()
        }),
        Move::new("D13", "names random events, and flips flags meanwhile", |driver| {
            driver.negotiate(with_event_index(driver))?;
            super::status::place_and_ready(driver);
            driver.set(STATUS, RUNNING);
            for round in 0..20u16 {
                driver.machine.store(place::AVAIL, &(round % 2).to_le_bytes());
                driver.machine.store(place::AVAIL + 4 + 16, &(round.wrapping_mul(40503)).to_le_bytes());
                offer_one(driver);
            }
            driver.used_or_broken(20)
        }),
        Move::new("A21", "kicks two hundred times for nothing", |driver| {
            (0..200).for_each(|_| driver.kick());
            goes_on(driver)
        }),
    ]);
    moves
}

/// Resets the device and makes its queue anew, in a way that may be none.
fn set_up_again(driver: &Driver<'_>, size: u32, [desc, avail, used]: [u64; 3]) -> Result<(), String> {
    driver.negotiate(driver.usual_features())?;
    driver.clear_queue();
    driver.place_queue(size, desc, avail, used);
    driver.set(QUEUE_READY, 1);
    driver.set(STATUS, RUNNING);
    offer_one(driver);
    // A device that has refused the queue does nothing more; one that has not may answer.
    (0..20).for_each(|_| driver.machine.pause());
    Ok(())
}

fn jump(driver: &Driver<'_>, to: u16) -> Result<(), String> {
    driver.write_chain(0, &driver.request());
    driver.set_index(to);
    driver.kick();
    driver.broken()
}
