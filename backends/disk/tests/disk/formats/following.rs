//! A process that dies: what it has acknowledged is in its image.

use std::fs;
use std::mem;

use super::lanes::Dice;
use super::rig::{Place, assert_clean, contents, qcow2, serve};
use crate::harness::{OK, SECTOR, kind, pattern, segment};
use crate::on_each_pool;

const SIZE: usize = 4 << 20;

on_each_pool! {
    fn a_process_that_dies_leaves_all_that_it_acknowledged(engine) {
        for options in ["cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=1", "compat=0.10"] {
            let place = Place::with_image(SIZE as u64, options);
            let rig = place.start(engine);
            let (mut dice, mut expected) = (Dice(0x9e37_79b9_7f4a_7c15), vec![0; SIZE]);
            for round in 0..60 {
                let (sector, sectors) = (dice.roll((SIZE / SECTOR - 64) as u64) as usize, 1 + dice.roll(64) as usize);
                let part = &mut expected[sector * SECTOR..][..sectors * SECTOR];
                if dice.roll(6) == 0 {
                    let zeroes = segment(sector as u64, sectors as u32, u32::from(dice.roll(2) == 0));
                    assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &zeroes), OK);
                    part.fill(0);
                } else {
                    part.copy_from_slice(&pattern(sectors * SECTOR, round));
                    assert_eq!(rig.write(sector as u64, part), OK);
                }
            }
            // As the kernel has it; the process that is to die still has the other locked.
            let left = place.file("left.qcow2");
            fs::copy(place.image(), &left).unwrap();
            mem::forget(rig);

            assert_clean(&left);
            assert!(contents(&left) == expected, "{options}");
            let rig = serve(&qcow2(&left), engine);
            assert_eq!(rig.read(0, 64).data, expected[..64 * SECTOR]);
            assert_eq!((rig.write(1, &pattern(SECTOR, 99)), rig.flush()), (OK, OK));
            drop(rig);
            assert_clean(&left);
        }
    }
}
