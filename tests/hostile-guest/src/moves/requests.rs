//! Chains of descriptors that are none, and buffers that are nowhere.

use super::Move;
use crate::driver::{Descriptor, Driver, INDIRECT, NEXT, WRITE, place};

pub(super) fn all() -> Vec<Move> {
    let mut moves = vec![
        faulty("D01", "links a descriptor to itself", |driver| {
            driver.describe(0, Descriptor { addr: driver.at(place::OUT), len: 1, flags: NEXT, next: 0 });
        }),
        faulty("D01", "links two descriptors to each other", |driver| {
            for (slot, next) in [(0, 1), (1, 0)] {
                driver.describe(slot, Descriptor { addr: driver.at(place::OUT), len: 1, flags: NEXT, next });
            }
        }),
        faulty("D01", "links all descriptors in a ring", |driver| {
            for slot in 0..8 {
                driver.describe(
                    slot,
                    Descriptor { addr: driver.at(place::OUT), len: 1, flags: NEXT, next: (slot + 1) % 8 },
                );
            }
        }),
        faulty("D04", "lays a table into a table", |driver| {
            let inner = driver.table(&[Descriptor { addr: driver.at(place::OUT), len: 16, flags: 0, next: 0 }]);
            let outer = driver.table(&[inner]);
            driver.describe(0, outer);
        }),
        Move::new("D04", "has more follow behind a table", |driver| {
            let table = driver.table(&chained(&driver.request()));
            driver.describe(0, Descriptor { flags: INDIRECT | NEXT, next: 1, ..table });
            given(driver)
        }),
        faulty("D03", "makes a table longer than the queue", |driver| {
            let one = Descriptor { addr: driver.at(place::OUT), len: 1, flags: NEXT, next: 0 };
            let long: Vec<_> = (0..2000).map(|at| Descriptor { next: at + 1, ..one }).collect();
            driver.describe(0, driver.table(&long));
        }),
        Move::new("D03", "uses all descriptors for one request", |driver| {
            let one = Descriptor { addr: driver.at(place::OUT), len: 0, flags: 0, next: 0 };
            driver.machine.store(place::OUT, &[0; 64]);
            driver.write_chain(0, &[one; 8]);
            given(driver)
        }),
        Move::new("D05", "writes a request as a table that is marked writable", |driver| {
            let table = driver.table(&chained(&driver.request()));
            driver.describe(0, Descriptor { flags: INDIRECT | WRITE, ..table });
            given(driver)
        }),
        Move::new("D07", "sends what it should receive, behind what it receives", |driver| {
            let writable = Descriptor { addr: driver.at(place::IN), len: 16, flags: WRITE, next: 0 };
            let readable = Descriptor { addr: driver.at(place::OUT), len: 16, flags: 0, next: 0 };
            driver.write_chain(0, &[writable, readable, writable]);
            given(driver)
        }),
        Move::new("D07", "cuts a request into single bytes", |driver| {
            let cut: Vec<_> = driver.request().into_iter().flat_map(bytes_of).take(1000).collect();
            driver.describe(0, driver.table(&chained(&cut)));
            given(driver)
        }),
        Move::new("D08", "sends more than four GiB", |driver| {
            let much = Descriptor { addr: driver.at(place::OUT), len: u32::MAX, flags: 0, next: 0 };
            driver.write_chain(0, &[much; 8]);
            given(driver)
        }),
        Move::new("D08", "receives more than four GiB", |driver| {
            let much = Descriptor { addr: driver.at(place::IN), len: u32::MAX, flags: WRITE, next: 0 };
            driver.write_chain(0, &[much; 8]);
            given(driver)
        }),
        Move::new("D15", "never looks at what is used", |driver| {
            driver.write_chain(0, &driver.request());
            for _ in 0..40 {
                driver.offer(&[0]);
                driver.kick();
            }
            driver.used_or_broken(1)
        }),
    ];
    for next in [8u16, 9, 0x7fff, u16::MAX] {
        moves.push(faulty("D02", format!("links to descriptor {next}"), move |driver| {
            driver.describe(0, Descriptor { addr: driver.at(place::OUT), len: 1, flags: NEXT, next });
        }));
    }
    for len in [0u32, 8, 24, u32::MAX - 15, u32::MAX] {
        moves.push(faulty("D04", format!("makes a table of {len} bytes"), move |driver| {
            let table = driver.table(&chained(&driver.request()));
            driver.describe(0, Descriptor { len, ..table });
        }));
    }
    for (which, words) in ["in a hole", "in registers", "at 2^48", "at 2^52", "at the end"].into_iter().enumerate() {
        moves.push(faulty("D04", format!("has a table {words}"), move |driver| {
            driver.describe(0, Descriptor { addr: driver.nowhere()[which].1, len: 32, flags: INDIRECT, next: 0 });
        }));
        moves.push(Move::new("B01", format!("sends from {words}"), move |driver| elsewhere(driver, false, which, 0)));
        moves.push(Move::new("B01", format!("receives {words}"), move |driver| elsewhere(driver, true, which, 0)));
    }
    for len in [u32::MAX, 1 << 31, 0x10_0000] {
        moves.push(Move::new("B02", format!("sends {len:#x} bytes from where there are fewer"), move |driver| {
            let addr = driver.nowhere()[0].1 - 16;
            driver.write_chain(0, &[Descriptor { addr, len, flags: 0, next: 0 }]);
            given(driver)
        }));
    }
    for (words, which) in [("first", 0), ("last", 1), ("all", 2)] {
        moves.push(Move::new("D06", format!("makes {words} of a request's buffers empty"), move |driver| {
            let mut request = driver.request();
            let last = request.len() - 1;
            for (at, descriptor) in request.iter_mut().enumerate() {
                if which == 2 || at == which * last {
                    descriptor.len = 0;
                }
            }
            driver.write_chain(0, &request);
            given(driver)
        }));
    }
    for flags in [0x8u16, 0x80, 0xfff8] {
        moves.push(Move::new("D07", format!("sets flags {flags:#x} of a descriptor"), move |driver| {
            let mut request = driver.request();
            request[0].flags |= flags;
            driver.write_chain(0, &request);
            given(driver)
        }));
    }
    moves
}

/// A move after which the device must ask for a reset: `write` writes a chain from descriptor 0 on.
fn faulty(row: &'static str, name: impl Into<String>, write: impl Fn(&Driver<'_>) + 'static) -> Move {
    Move::new(row, name, move |driver| {
        write(driver);
        driver.offer(&[0]);
        driver.kick();
        driver.broken()
    })
}

/// Offers the chain from descriptor 0 on; the device may take it or not.
fn given(driver: &Driver<'_>) -> Result<(), String> {
    driver.offer(&[0]);
    driver.kick();
    driver.used_or_broken(1)
}

/// A request of which the buffers that are sent, or received, are elsewhere.
fn elsewhere(driver: &Driver<'_>, received: bool, which: usize, offset: u64) -> Result<(), String> {
    let mut request = driver.request();
    for descriptor in &mut request {
        if (descriptor.flags & WRITE != 0) == received {
            descriptor.addr = driver.nowhere()[which].1.wrapping_add(offset);
        }
    }
    driver.write_chain(0, &request);
    given(driver)
}

/// The same descriptors, each but the last with a next one, as in a table.
fn chained(descriptors: &[Descriptor]) -> Vec<Descriptor> {
    let last = descriptors.len() - 1;
    let linked = descriptors.iter().zip(1..).map(|(descriptor, next)| Descriptor {
        flags: descriptor.flags | if usize::from(next) > last { 0 } else { NEXT },
        next,
        ..*descriptor
    });
    linked.collect()
}

fn bytes_of(descriptor: Descriptor) -> impl Iterator<Item = Descriptor> {
    (0..u64::from(descriptor.len)).map(move |at| Descriptor { addr: descriptor.addr + at, len: 1, ..descriptor })
}
