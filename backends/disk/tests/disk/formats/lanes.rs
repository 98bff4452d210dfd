//! Many requests at a time: from one queue, and from several (rows E12 and E15).

use std::sync::Arc;
use std::thread;

use testkit::driver::Descriptor;
use virtio_disk::{Config, EngineKind};

use super::rig::{Place, assert_clean, contents, make};
use crate::harness::{Builder, DATA, OK, Rig, SECTOR, kind, pattern, segment};
use crate::on_each_pool;

const LANES: usize = 4;
const PIECES: usize = 512;
/// Bytes of a piece; lanes take turns with them, so that each cluster is everyone's.
const PIECE: usize = 2048;
const SIZE: usize = PIECES * PIECE;

/// Numbers that look random, and are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Changes the lane's own pieces, checking each after it. Returns what they hold in the end.
fn work(rig: &Rig, lane: usize) -> Vec<(usize, Vec<u8>)> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 + lane as u64);
    let mut pieces: Vec<_> = (lane..PIECES).step_by(LANES).map(|piece| (piece, vec![0; PIECE])).collect();
    for round in 0..150_u8 {
        let own = dice.roll(pieces.len() as u64) as usize;
        let (piece, expected) = &mut pieces[own];
        let sector = (*piece * PIECE / SECTOR) as u64;
        let segment = segment(sector, (PIECE / SECTOR) as u32, u32::from(dice.roll(2) == 0));
        match dice.roll(8) {
            0 => assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment), OK),
            1 => assert_eq!(rig.flush(), OK),
            _ => {
                let data = pattern(PIECE, round);
                assert_eq!(rig.write(sector, &data), OK);
                *expected = data;
            }
        }
        let read = rig.read(sector, PIECE / SECTOR).data;
        if read == [0; PIECE] {
            expected.fill(0);
        }
        assert!(read == *expected, "lane {lane}, round {round}");
    }
    pieces
}

on_each_pool! {
    fn e12_lanes_that_share_every_cluster_keep_each_others_bytes(engine) {
        for options in ["cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=1"] {
            let place = Place::with_image(SIZE as u64, options);
            let config = Config { engine, queues: Some(LANES as u16), ..place.config() };
            let disk = make(&config).unwrap();
            let lanes: Vec<_> = (0..LANES)
                .map(|lane| {
                    let rig = Builder::new(engine).lane(lane).start_device(Arc::clone(&disk));
                    thread::spawn(move || work(&rig, lane))
                })
                .collect();
            let mut expected = vec![0; SIZE];
            for (piece, bytes) in lanes.into_iter().flat_map(|lane| lane.join().unwrap()) {
                expected[piece * PIECE..][..PIECE].copy_from_slice(&bytes);
            }
            drop(disk);
            assert_clean(&place.image());
            assert!(contents(&place.image()) == expected, "{options}");
        }
    }

    fn many_requests_of_one_queue_end_each_once(engine) {
        let place = Place::with_image(SIZE as u64, "cluster_size=64k");
        let rig = place.start(engine);
        let heads: Vec<u16> = (0..60).map(|number| number * 4).collect();
        for kind in [kind::OUT, kind::IN] {
            let before = rig.queue.used_idx();
            for &head in &heads {
                let (at, data) = (u64::from(head), DATA + u64::from(head) * SECTOR as u64);
                let body = if kind == kind::OUT {
                    rig.memory.write(data, &pattern(4 * SECTOR, head as u8));
                    Descriptor::readable(data, 4 * SECTOR as u32)
                } else {
                    rig.memory.write(data, &[0xaa; 4 * SECTOR]);
                    Descriptor::writable(data, 4 * SECTOR as u32)
                };
                let header = Descriptor::readable(rig.header(head, kind, at), 16);
                rig.offer(head, &[header, body, Descriptor::writable(rig.status_byte(head), 1)]);
            }
            rig.kick();
            rig.queue.wait_used(before.wrapping_add(heads.len() as u16));
            assert!(heads.iter().all(|&head| rig.status(head) == OK));
        }
        for &head in &heads {
            let data = DATA + u64::from(head) * SECTOR as u64;
            assert_eq!(rig.bytes(data, 4 * SECTOR), pattern(4 * SECTOR, head as u8), "{head}");
        }
        assert_eq!(rig.hearing.fault(), None);
    }

    fn a_reset_waits_for_what_is_under_way(engine) {
        let place = Place::with_image(SIZE as u64, "");
        let mut rig = place.start(engine);
        let data = pattern(PIECE, 1);
        rig.memory.write(DATA, &data);
        for number in 0..32_u16 {
            let head = number * 4;
            let header = Descriptor::readable(rig.header(head, kind::OUT, u64::from(number) * 4), 16);
            let body = Descriptor::readable(DATA, PIECE as u32);
            rig.offer(head, &[header, body, Descriptor::writable(rig.status_byte(head), 1)]);
        }
        rig.kick();
        let position = rig.stop().unwrap();
        assert_eq!(position.next_used, position.next_avail, "what was taken is given back");
        let rig = rig.reset();
        rig.assert_alive();
        assert_eq!(rig.hearing.fault(), None);
    }
}

/// The last engine takes its helpers along.
#[test]
fn helpers_end_with_the_last_lane() {
    let place = Place::with_image(SIZE as u64, "");
    let rig = place.start(EngineKind::IoUring);
    rig.assert_alive();
    drop(rig);
    // Whoever opens it next need not wait for anyone.
    assert!(make(&place.config()).is_ok());
}
