//! A guest that writes what only the device may, and records that no device has written.

use std::os::fd::AsFd;

use proptest::prelude::*;
use virtio_backend::{Fault, GuestFault, Record, Ring};

use crate::rig::{BASE, RAM, Rig, Way, write};

const SIZE: u16 = 8;

/// A queue with four requests in flight, whose device has died.
fn abandoned() -> Rig {
    let rig = Rig::new(Way::Frames, SIZE, SIZE, 0);
    (0..6).for_each(|head| rig.offer(head));
    let mut ring = rig.ring().unwrap();
    let taken: Vec<_> = (0..5).map(|_| ring.pop().unwrap().unwrap()).collect();
    taken.into_iter().take(1).for_each(|request| ring.push(request, 0).unwrap());
    ring.publish().unwrap();
    rig
}

/// Works a queue to its end, and says how many requests it had.
fn work(ring: &mut Ring) -> Result<usize, Fault> {
    let mut requests = Vec::new();
    // A head in flight is not taken twice, so there is an end to it.
    while let Some(request) = ring.pop()? {
        requests.push(request);
        assert!(requests.len() <= usize::from(SIZE), "more requests than there are heads");
    }
    let count = requests.len();
    requests.into_iter().try_for_each(|request| ring.push(request, 0))?;
    ring.publish().map(|()| count)
}

/// The guest is at fault, or nobody is.
fn work_to_an_end(rig: &Rig) {
    if let Err(fault) = rig.ring().and_then(|mut ring| work(&mut ring)) {
        assert!(matches!(fault, Fault::Guest(_)), "{fault:?}");
    }
}

#[test]
fn a_used_index_that_no_device_has_written_is_the_guests_fault() {
    let rig = abandoned();
    let words = rig.ledger_words();
    for index in 0..=u16::MAX {
        rig.set_used_idx(index);
        let outcome = rig.ring();
        // Up to a queue ahead it could be what was being shown.
        if index.wrapping_sub(1) > SIZE {
            assert!(matches!(outcome, Err(Fault::Guest(GuestFault::Setup(_)))), "{index}");
            assert_eq!(rig.ledger_words(), words, "{index}");
            continue;
        }
        drop(outcome);
        work_to_an_end(&rig);
        words.iter().enumerate().for_each(|(nth, word)| rig.set_ledger_word(nth, *word));
        rig.queue.set_avail_idx(6);
    }
}

#[test]
fn an_index_ahead_by_more_than_the_queue_holds_is_found_out_though_the_ledger_could_hold_more() {
    let rig = Rig::new(Way::Frames, SIZE, 64, 0);
    drop(rig.ring().unwrap());
    rig.set_used_idx(SIZE + 1);
    assert!(matches!(rig.ring(), Err(Fault::Guest(GuestFault::Setup(_)))));
}

#[test]
fn a_used_element_that_no_device_has_written_is_the_guests_fault() {
    for head in [u32::from(SIZE), 0xffff, 0x1_0001, u32::MAX] {
        let rig = abandoned();
        rig.set_used_idx(2);
        rig.set_used_head(1, head);
        assert!(matches!(rig.ring(), Err(Fault::Guest(GuestFault::Setup(_)))), "{head:#x}");
    }
}

#[test]
fn a_chain_that_was_exchanged_while_nobody_looked_is_checked_as_any_other() {
    let rig = abandoned();
    rig.memory.write(rig.queue.desc_table(), &[0xff; 16 * SIZE as usize]);
    let mut ring = rig.ring().unwrap();
    assert!(matches!(ring.pop(), Err(Fault::Guest(_))));
}

#[test]
fn a_head_in_flight_that_is_offered_again_while_nobody_looked_is_taken_once() {
    let rig = abandoned();
    rig.queue.set_avail_entry(5, 3);
    let mut ring = rig.ring().unwrap();
    let taken: Vec<_> = (0..4).map(|_| ring.pop().unwrap().unwrap()).collect();
    assert_eq!(taken.iter().map(|request| request.head()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(matches!(ring.pop(), Err(Fault::Guest(GuestFault::Chain { head: 3, .. }))));
}

#[test]
fn what_could_not_be_shown_is_still_held() {
    let mut rig = Rig::new(Way::Frames, SIZE, SIZE, 0);
    // The index is the last word of a page, the elements begin on the next.
    let page = BASE + 0x2_0000;
    rig.setup.used_ring = page + 0xffc;
    let mut ring = rig.ring().unwrap();
    rig.offer(0);
    let request = ring.pop().unwrap().unwrap();
    ring.push(request, 0).unwrap();
    let held = rig.ledger_words();
    rig.memory.balloon_out(page, 1);
    rig.forget_mappings();
    assert!(matches!(ring.publish(), Err(Fault::Guest(_))));
    assert_eq!(rig.ledger_words(), held);

    rig.memory.balloon_in(page, 1);
    rig.forget_mappings();
    assert_eq!(rig.ring().unwrap().pop().unwrap().unwrap().head(), 0);
}

/// Words that say something, and words that do not.
fn any_word() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..20_u64, (0..40_u64).prop_map(|index| 1 << 16 | index), Just(u64::MAX), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2500))]

    #[test]
    fn any_ledger_over_any_queue_is_worked_to_an_end(
        words in prop::collection::vec(any_word(), 8 + 16),
        is_plausible: bool,
        used_idx in prop_oneof![0..20_u16, any::<u16>()],
        avail_idx in prop_oneof![0..20_u16, any::<u16>()],
        queue in prop::collection::vec(any::<u8>(), 400),
        (ledger_size, event_idx) in (prop_oneof![Just(SIZE), Just(16)], any::<bool>()),
    ) {
        let mut rig = Rig::new(Way::Frames, SIZE, ledger_size, 0);
        rig.setup.event_idx = event_idx;
        if is_plausible {
            (0..SIZE).for_each(|head| rig.offer(head));
            (0..SIZE).for_each(|index| rig.set_used_head(index, (7 * u32::from(index) + 3) % u32::from(SIZE)));
        } else {
            rig.memory.write(BASE, &queue[..rig.queue.bytes()]);
        }
        rig.queue.set_avail_idx(avail_idx);
        rig.set_used_idx(used_idx);
        words.iter().take(8 + usize::from(ledger_size)).enumerate().for_each(|(nth, word)| rig.set_ledger_word(nth, *word));
        work_to_an_end(&rig);
        prop_assert!(rig.memory.counts().pages <= RAM / 4096);
    }

    #[test]
    fn a_record_of_any_bytes_is_read_or_refused(
        at in 0..200_000_usize,
        bytes in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let record = Record::new().unwrap();
        record.transport().store(&vec!["transport"; 20]).unwrap();
        record.device().store(&vec!["device"; 20]).unwrap();
        write(&record, at, &bytes);
        // What says that it is a record, or of which version, may have been hit.
        if let Ok(record) = Record::of(record.as_fd().try_clone_to_owned().unwrap()) {
            let _ = record.transport::<Vec<String>>().load();
            let _ = record.device::<Vec<String>>().load();
            record.transport().store(&"anew").unwrap();
            let noted = record.transport::<String>().load().unwrap();
            prop_assert_eq!(noted.as_deref(), Some("anew"));
        }
    }
}
