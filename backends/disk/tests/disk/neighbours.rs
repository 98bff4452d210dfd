//! Requests for neighbouring sectors that come together, which an engine may serve together: each ends as by itself.

use std::fs::OpenOptions;

use testkit::driver::Descriptor;

use crate::harness::{DATA, IOERR, OK, Rig, SECTOR, kind, pattern};
use crate::on_each_engine;

/// Sectors of a request.
const SECTORS: usize = 4;
const BYTES: u32 = (SECTORS * SECTOR) as u32;

/// Where the data of the nth request are.
fn data(nth: u16) -> u64 {
    DATA + 2 * u64::from(BYTES) * u64::from(nth)
}

/// Offers requests for `count` neighbouring pieces from `sector` on, each on a chain of its own, kicks once, and waits
/// for all of them.
fn ask(rig: &Rig, kind: u32, sector: u64, count: u16) {
    let before = rig.queue.used_idx();
    for nth in 0..count {
        let header = Descriptor::readable(rig.header(3 * nth, kind, sector + u64::from(nth) * SECTORS as u64), 16);
        let body = Descriptor { addr: data(nth), len: BYTES, ..Descriptor::default() };
        let body = if kind == kind::IN { Descriptor::writable(body.addr, body.len) } else { body };
        rig.offer(3 * nth, &[header, body, Descriptor::writable(rig.status_byte(3 * nth), 1)]);
    }
    rig.kick();
    rig.queue.wait_used(before.wrapping_add(count));
}

on_each_engine! {
    fn neighbours_are_read_and_written_each_to_its_own_memory(engine) {
        let rig = Rig::new(engine);
        let contents: Vec<_> = (0..12).map(|nth| pattern(BYTES as usize, nth)).collect();
        for (nth, contents) in (0..).zip(&contents) {
            rig.memory.write(data(nth), contents);
        }

        ask(&rig, kind::OUT, 16, 12);

        assert_eq!(rig.on_disk()[16 * SECTOR..][..12 * BYTES as usize], contents.concat());
        (0..12).for_each(|nth| rig.memory.write(data(nth), &[0; BYTES as usize]));
        ask(&rig, kind::IN, 16, 12);
        for (nth, contents) in (0..).zip(&contents) {
            assert_eq!(rig.status(3 * nth), OK);
            assert_eq!(&rig.bytes(data(nth), BYTES as usize), contents, "request {nth}");
        }
        assert_eq!((rig.counter("reads"), rig.counter("writes")), (12, 12));
    }

    fn e07_of_neighbours_only_those_that_the_host_fails_fail(engine) {
        let rig = Rig::new(engine);
        // In the middle of the third.
        let end = 2 * u64::from(BYTES) + 700;
        OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(end).unwrap();

        ask(&rig, kind::IN, 0, 6);

        assert_eq!([0, 1, 2, 3, 4, 5].map(|nth| rig.status(3 * nth)), [OK, OK, IOERR, IOERR, IOERR, IOERR]);
        assert_eq!(rig.counter("errors"), 4);
        rig.assert_alive();
    }
}
