//! Requests that a disk must refuse.

use super::Move;
use crate::driver::{Descriptor, Driver, WRITE, place};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A status that no disk gives.
const UNTOUCHED: u8 = 0xff;
const OK: u8 = 0;

pub(super) fn all() -> Vec<Move> {
    let mut moves = Vec::new();
    for sector in [1 << 40, i64::MAX as u64 / 512, u64::MAX / 512, u64::MAX - 1, u64::MAX] {
        for kind in [IN, OUT] {
            moves.push(refused("E01", format!("request {kind} at sector {sector:#x}"), kind, sector, 512));
        }
    }
    for len in [1, 511, 513, 1000] {
        for kind in [IN, OUT] {
            moves.push(refused("E02", format!("request {kind} of {len} bytes"), kind, 0, len));
        }
    }
    for kind in [2, 3, 5, 14, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        moves.push(refused("E03", format!("request of type {kind:#x}"), kind, 0, 512));
    }
    for len in [0, 1, 19, 21, 4096] {
        moves.push(Move::new("E03", format!("the disk's name into {len} bytes"), move |driver| {
            ask(driver, GET_ID, 0, &[Descriptor { addr: driver.at(place::IN), len, flags: WRITE, next: 0 }]).map(drop)
        }));
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        let ranges: [(&str, Vec<u8>); 6] = [
            ("nothing", Vec::new()),
            ("half a range", vec![0; 8]),
            ("an odd number of bytes", vec![0; 17]),
            ("a range beyond the end", range(u64::MAX - 7, 8, 0)),
            ("a range of 2^32 sectors", range(0, u32::MAX, 0)),
            ("unknown flags", range(0, 8, 0xffff_fffe)),
        ];
        for (words, bytes) in ranges {
            moves.push(Move::new("E05", format!("request {kind} of {words}"), move |driver| {
                driver.machine.store(place::OUT + 64, &bytes);
                let data = Descriptor { addr: driver.at(place::OUT + 64), len: bytes.len() as u32, flags: 0, next: 0 };
                not(OK, ask(driver, kind, 0, &[data])?)
            }));
        }
    }
    moves.push(Move::new("E06", "a flush with data, at a sector", |driver| {
        let data = Descriptor { addr: driver.at(place::OUT + 64), len: 512, flags: 0, next: 0 };
        ask(driver, FLUSH, u64::MAX, &[data]).map(drop)
    }));
    moves.push(Move::new("D07", "a header without a status", |driver| {
        driver.write_chain(0, &[Descriptor { addr: driver.at(place::OUT), len: 16, flags: 0, next: 0 }]);
        driver.offer(&[0]);
        driver.kick();
        driver.used_or_broken(1)
    }));
    for len in 0..16 {
        moves.push(Move::new("D07", format!("a header of {len} bytes"), move |driver| {
            let mut request = driver.request();
            request[0].len = len;
            driver.write_chain(0, &request);
            driver.offer(&[0]);
            driver.kick();
            driver.used_or_broken(1)
        }));
    }
    moves
}

fn refused(row: &'static str, name: String, kind: u32, sector: u64, len: u32) -> Move {
    Move::new(row, name, move |driver| {
        let flags = if kind & OUT == 0 { WRITE } else { 0 };
        not(OK, ask(driver, kind, sector, &[Descriptor { addr: driver.at(place::IN + 0x100), len, flags, next: 0 }])?)
    })
}

/// A range of a discard (virtio 1.2 §5.2.6).
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Makes a request, and gives its status; [`UNTOUCHED`] if the device asks for a reset instead.
fn ask(driver: &Driver<'_>, kind: u32, sector: u64, data: &[Descriptor]) -> Result<u8, String> {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    driver.machine.store(place::OUT, &header);
    driver.machine.store(place::IN, &[UNTOUCHED]);
    let mut chain = vec![Descriptor { addr: driver.at(place::OUT), len: 16, flags: 0, next: 0 }];
    chain.extend(data);
    chain.push(Descriptor { addr: driver.at(place::IN), len: 1, flags: WRITE, next: 0 });
    driver.write_chain(0, &chain);
    driver.offer(&[0]);
    driver.kick();
    driver.used_or_broken(1)?;
    let mut status = [0];
    driver.machine.load(place::IN, &mut status);
    Ok(status[0])
}

fn not(forbidden: u8, status: u8) -> Result<(), String> {
    if status == forbidden { Err(format!("it ends with status {status}")) } else { Ok(()) }
}
