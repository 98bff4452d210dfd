//! Random requests, and a vector that they do the same to.

use std::ops::Range;

use proptest::prelude::*;

use crate::harness::{IOERR, OK, Rig, SECTOR, kind, pattern, segment};

/// What a driver does.
#[derive(Clone, Debug)]
pub enum Step {
    Read { sector: u64, sectors: usize },
    Write { sector: u64, sectors: usize, seed: u8 },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Flush,
    Reset,
}

/// Steps on a disk of so many sectors, a little beyond its end, too; `moved` and `zeroed` say how many sectors a request
/// has.
pub fn steps(
    sectors: u64,
    moved: impl Strategy<Value = usize> + Clone + 'static,
    zeroed: Range<u32>,
) -> impl Strategy<Value = Vec<Step>> {
    let sector = 0..sectors + 2;
    let step = prop_oneof![
        4 => (sector.clone(), moved.clone()).prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        4 => (sector.clone(), moved, any::<u8>())
            .prop_map(|(sector, sectors, seed)| Step::Write { sector, sectors, seed }),
        2 => (sector, zeroed, any::<bool>()).prop_map(|(sector, sectors, unmap)| Step::Zero { sector, sectors, unmap }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..24)
}

/// The part of the model that a step is about, if it is a part of it.
fn part(model: &mut [u8], sector: u64, sectors: usize) -> Option<&mut [u8]> {
    let start = sector as usize * SECTOR;
    model.get_mut(start..start + sectors * SECTOR)
}

/// Takes a step on the disk and on its model.
pub fn take(rig: Rig, model: &mut [u8], step: &Step) -> Rig {
    match *step {
        Step::Read { sector, sectors } => {
            let outcome = rig.read(sector, sectors);
            match part(model, sector, sectors) {
                Some(expected) => assert!((outcome.status, &outcome.data[..]) == (OK, &*expected), "{step:?}"),
                None => assert_eq!(outcome.status, IOERR),
            }
        }
        Step::Write { sector, sectors, seed } => {
            let data = pattern(sectors * SECTOR, seed);
            let status = rig.write(sector, &data);
            let place = part(model, sector, sectors);
            assert_eq!(status, if place.is_some() { OK } else { IOERR });
            if let Some(place) = place {
                place.copy_from_slice(&data);
            }
        }
        Step::Zero { sector, sectors, unmap } => {
            let status = rig.put(kind::WRITE_ZEROES, 0, &segment(sector, sectors, u32::from(unmap)));
            let place = part(model, sector, sectors as usize);
            assert_eq!(status, if place.is_some() { OK } else { IOERR });
            if let Some(place) = place {
                place.fill(0);
            }
        }
        Step::Flush => assert_eq!(rig.flush(), OK),
        Step::Reset => return rig.reset(),
    }
    rig
}
