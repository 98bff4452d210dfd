//! What a queue's ledger promises: that the process which follows another loses no request, shows none twice, and takes
//! them in the order of their coming, wherever the other was stopped and whatever the guest did meanwhile.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test reports by panicking"
)]

mod hostile;
mod lanes;
mod model;
mod rig;

use proptest::prelude::*;

use crate::model::{Life, Model, Step};
use crate::rig::{Rig, Way};

/// All that a queue of few entries can meet.
const STEPS: [Step; 11] = [
    Step::Offer,
    Step::Pop,
    Step::PutBack,
    Step::PushOldest,
    Step::PushNewest,
    Step::Publish,
    Step::Kill,
    Step::KillInPublish { cleared: 0b00 },
    Step::KillInPublish { cleared: 0b01 },
    Step::KillInPublish { cleared: 0b10 },
    Step::KillInPublish { cleared: 0b11 },
];

/// Calls `each` with every script that the model allows, `left` steps longer than this one.
fn explore(model: &Model, script: &mut Vec<Step>, left: u32, each: &mut impl FnMut(&[Step])) {
    if left == 0 {
        return each(script);
    }
    for step in STEPS.into_iter().filter(|step| model.allows(*step)) {
        // A second one in a row finds what the first found, and so does one of an empty queue.
        if script.last() == Some(&step) && step == Step::Kill {
            continue;
        }
        let mut next = model.clone();
        let is_about = next.make(step).is_some();
        if step == Step::Pop && !is_about {
            continue;
        }
        script.push(step);
        explore(&next, script, left - 1, each);
        script.pop();
    }
}

/// Every script of so many steps behind two requests offered, with indices that pass the end of their range.
fn hold_for_every_script(way: Way, len: u32) {
    let rig = Rig::new(way, 4, 4, u16::MAX - 1);
    let begin = [Step::Offer, Step::Offer];
    let mut model = Model::new(4);
    for step in begin {
        model.make(step);
    }
    let mut scripts = 0;
    explore(&model, &mut begin.to_vec(), len, &mut |script| {
        rig.begin_anew();
        let mut life = Life::new(&rig);
        script.iter().for_each(|step| life.step(*step));
        life.finish();
        scripts += 1;
    });
    assert!(scripts > 1000, "{scripts} scripts");
}

#[test]
fn nothing_is_lost_or_shown_twice_wherever_a_process_ends() {
    hold_for_every_script(Way::Frames, 8);
}

#[test]
fn nor_is_what_is_taken_in_batches_and_copied_back() {
    hold_for_every_script(Way::Grants, 6);
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Offer),
        6 => Just(Step::Pop),
        1 => Just(Step::PutBack),
        3 => Just(Step::PushOldest),
        2 => Just(Step::PushNewest),
        2 => Just(Step::Publish),
        1 => Just(Step::Kill),
        1 => any::<u8>().prop_map(|cleared| Step::KillInPublish { cleared }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_long_life_with_many_kills_gives_each_request_back_once(
        way in prop_oneof![Just(Way::Frames), Just(Way::Grants)],
        (size, ledger_size) in prop_oneof![Just((2, 2)), Just((8, 8)), Just((8, 64)), Just((64, 64))],
        start: u16,
        event_idx: bool,
        steps in prop::collection::vec(any_step(), 0..400),
    ) {
        let mut rig = Rig::new(way, size, ledger_size, start);
        rig.setup.event_idx = event_idx;
        let mut life = Life::new(&rig);
        steps.into_iter().for_each(|step| life.step(step));
        life.finish();
    }
}

#[test]
fn a_batch_of_replays_that_finds_no_room_comes_whole_and_in_its_order_later() {
    let rig = Rig::new(Way::Grants, 64, 64, 0);
    (0..60).for_each(|head| rig.offer_readable(head));
    let mut ring = rig.ring().unwrap();
    let taken: Vec<_> = (0..50).map(|_| ring.pop().unwrap().unwrap()).collect();
    drop((ring, taken));

    let mut ring = rig.ring().unwrap();
    rig.fail_next_call();
    assert!(ring.pop().unwrap().is_none(), "no room");
    let heads: Vec<_> = std::iter::from_fn(|| ring.pop().unwrap()).map(|request| request.head()).collect();
    assert_eq!(heads, (0..60).collect::<Vec<_>>());
}
