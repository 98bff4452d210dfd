//! What a hostile guest, and an unlucky host, can do with grants. Rows B11, B12 and B14 of the table of hostile inputs.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::thread;

use guest_memory::{Access, Budget, CHUNK_SIZE, Sources};
use rig::granting::{FEATURES, Granting, LARGE, Lent, SIZE, SMALL};
use rig::{RAM, VERSION_1};
use testkit::device::{Behaviour, eventually};
use testkit::driver::{Descriptor, RawQueue, Register, Registers, status};
use testkit::grants::{GRANT, GrantFailure};

/// What is wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    /// The reference was never given out.
    Unknown,
    /// The grant was taken back.
    Ended,
    /// It is for another domain.
    Anothers,
    /// The page behind it has been given up.
    GivenUp,
    /// It is for reading.
    ReadOnly,
    /// The reference has more than 32 bits.
    TooWide,
    /// There is no reference behind it for the second page.
    Last,
    /// It is no grant.
    Plain,
}

const FLAWS: [Flaw; 8] =
    [Flaw::Unknown, Flaw::Ended, Flaw::Anothers, Flaw::GivenUp, Flaw::ReadOnly, Flaw::TooWide, Flaw::Last, Flaw::Plain];

/// What a device is to find at an address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    DescTable,
    AvailRing,
    UsedRing,
    Indirect,
    Readable(usize),
    Writable(usize),
}

const PLACES: [Place; 8] = [
    Place::DescTable,
    Place::AvailRing,
    Place::UsedRing,
    Place::Indirect,
    Place::Readable(SMALL),
    Place::Readable(LARGE),
    Place::Writable(SMALL),
    Place::Writable(LARGE),
];

impl Place {
    /// Whether a page that is granted for reading will do.
    fn is_only_read(self) -> bool {
        matches!(self, Self::Indirect | Self::Readable(_))
    }
}

/// An address that is not good for the `len` bytes at `address`.
fn flawed(guest: &Granting, flaw: Flaw, address: u64, len: usize) -> u64 {
    let granted = |access| guest.grants.grant(address, len, access);
    let offset = address % 4096;
    match flaw {
        Flaw::Unknown => GRANT | 1 << 30 | offset,
        Flaw::Ended => {
            let ended = granted(Access::Write);
            guest.grants.end_access(ended, len).unwrap();
            ended
        }
        Flaw::Anothers => guest.grants.grant_to_another(address, len, Access::Write),
        Flaw::GivenUp => {
            guest.rig.memory.balloon_out(address, 1);
            granted(Access::Write)
        }
        Flaw::ReadOnly => granted(Access::Read),
        Flaw::TooWide => granted(Access::Write) | 1 << 44,
        Flaw::Last => GRANT | u64::from(u32::MAX) << 12 | offset,
        Flaw::Plain => address,
    }
}

/// Has the device meet a flaw in a part of its ring.
fn start_with(guest: &Granting, place: Place, flaw: Flaw) {
    let queue = guest.queue();
    let at = |this: Place, good: u64| {
        if place == this { flawed(guest, flaw, RAM + (good - queue.desc_table()), 1024) } else { good }
    };
    let desc = at(Place::DescTable, queue.desc_table());
    let avail = at(Place::AvailRing, queue.avail_ring());
    let used = at(Place::UsedRing, queue.used_ring());
    let registers = &guest.rig.registers;
    assert!(registers.negotiate(FEATURES));
    registers.write(Register::QueueSel, 0);
    registers.write(Register::QueueNum, SIZE.into());
    registers.write_address(Register::QueueDescLow, Register::QueueDescHigh, desc);
    registers.write_address(Register::QueueDriverLow, Register::QueueDriverHigh, avail);
    registers.write_address(Register::QueueDeviceLow, Register::QueueDeviceHigh, used);
    registers.write(Register::QueueReady, 1);
    registers.add_status(status::DRIVER_OK);
}

/// Has the device meet a flaw in a chain, behind two that are good.
fn offer_with(guest: &Granting, place: Place, flaw: Flaw) {
    let queue = guest.bring_up();
    let lend = |nth, len, access| {
        let lent = guest.lend(nth, len, access);
        let is_flawed = match place {
            Place::Readable(of) => access == Access::Read && of == len,
            Place::Writable(of) => access == Access::Write && of == len,
            _ => false,
        };
        if is_flawed { Lent { granted: flawed(guest, flaw, lent.address, len), ..lent } } else { lent }
    };
    for nth in [0, 1] {
        let good =
            [guest.lend_bytes(2 * nth, b"ping").readable(), guest.lend(2 * nth + 1, LARGE, Access::Write).writable()];
        guest.publish(&queue, 8 * u16::try_from(nth).unwrap(), &good);
    }
    let chain = [
        lend(4, SMALL, Access::Read).readable(),
        lend(5, LARGE, Access::Read).readable(),
        lend(6, SMALL, Access::Write).writable(),
        lend(7, LARGE, Access::Write).writable(),
    ];
    if place == Place::Indirect {
        let (descriptor, lent) = guest.lend_table(0, &queue, &chain);
        let addr = flawed(guest, flaw, lent.address, lent.len);
        guest.publish(&queue, 16, &[Descriptor { addr, ..descriptor }]);
    } else {
        guest.publish(&queue, 16, &chain);
    }
    guest.rig.registers.notify(0);
}

#[test]
fn b11_whatever_is_wrong_with_a_grant_and_wherever_it_is_the_device_alone_breaks_and_can_be_used_again() {
    for place in PLACES {
        for flaw in FLAWS.into_iter().filter(|flaw| *flaw != Flaw::ReadOnly || !place.is_only_read()) {
            let what = format!("{flaw:?} in {place:?}");
            let guest = Granting::new(Behaviour::Echo);
            match place {
                Place::DescTable | Place::AvailRing | Place::UsedRing => start_with(&guest, place, flaw),
                _ => offer_with(&guest, place, flaw),
            }
            guest.assert_breaks(&what);
            assert_eq!(guest.rig.counter("faults"), 1, "{what}");
            assert_eq!(guest.rig.memory.counts().calls, 0, "no frame is mapped: {what}");
            if flaw == Flaw::GivenUp {
                guest.rig.memory.balloon_in(RAM, rig::RAM_LEN / 4096);
            }
            guest.assert_works_after_reset();
        }
    }
}

#[test]
fn b11_grants_where_none_are_reached_are_the_drivers_fault() {
    for place in PLACES {
        let guest = Granting::reaching(Behaviour::Echo, |memory, _| memory.into());
        let queue = RawQueue::new(guest.rig.memory.clone(), RAM, SIZE);
        queue.clear();
        let granted = |address| guest.grants.grant(address, LARGE, Access::Write);
        let registers = &guest.rig.registers;
        assert!(registers.negotiate(VERSION_1 | rig::INDIRECT_DESC));
        registers.set_up_queue(1, &guest.rig.queue(1));
        match place {
            Place::DescTable | Place::AvailRing | Place::UsedRing => {
                registers.set_up_queue(0, &queue.at(granted(RAM)));
                registers.add_status(status::DRIVER_OK);
            }
            _ => {
                registers.set_up_queue(0, &queue);
                registers.add_status(status::DRIVER_OK);
                let address = rig::BUFFERS;
                let chain = match place {
                    Place::Indirect => Descriptor::indirect(granted(address), 16),
                    Place::Readable(len) => Descriptor::readable(granted(address), u32::try_from(len).unwrap()),
                    _ => Descriptor::writable(granted(address), 16),
                };
                guest.offer(&queue, &[chain]);
            }
        }
        guest.assert_breaks(&format!("{place:?}"));
        assert_eq!((guest.grants.counts().maps, guest.grants.counts().copies), (0, 0));
    }
}

#[test]
fn b11_what_is_taken_back_while_the_device_holds_it_stays_mapped_and_is_not_copied_to() {
    for (len, used) in [(LARGE, 1), (SMALL, 0)] {
        let (guest, queue) = Granting::running(Behaviour::Hold);
        let (source, target) = (guest.lend_bytes(0, &vec![7; len]), guest.lend(1, len, Access::Write));
        guest.offer(&queue, &[source.readable(), target.writable()]);
        guest.wait_held();
        for lent in [source, target] {
            guest.grants.revoke(lent.granted, len);
        }
        guest.grants.revoke(queue.desc_table(), queue.bytes());

        let reset = guest.rig.begin(Register::Status, 0);
        guest.rig.device.gate.open();
        reset.wait();

        // What is mapped was written to. What would have been copied was not, and the driver does not hear of it.
        assert_eq!(queue.used_idx(), used);
        let expected = if used == 1 { 7 } else { 0 };
        assert_eq!(guest.bytes(target), vec![expected; len]);
        assert_eq!(guest.rig.counter("faults"), u64::from(1 - used));
        *guest.rig.device.behaviour.lock().unwrap() = Behaviour::Echo;
        guest.assert_works_after_reset();
    }
}

#[test]
fn b11_a_plain_address_is_never_mapped_where_the_device_reaches_grants_alone() {
    let (guest, queue) = Granting::running(Behaviour::Echo);
    // Granted for the most part.
    let lent = guest.lend(0, LARGE, Access::Read);
    let plain = Descriptor::readable(lent.address, 1);
    guest.offer(&queue, &[lent.readable(), plain, guest.lend(1, 16, Access::Write).writable()]);
    guest.assert_breaks("a plain address beside a granted one");
    assert_eq!(guest.rig.memory.counts().calls, 0);
}

#[test]
fn b11_whenever_grants_are_taken_back_under_the_device_it_serves_or_breaks_and_holds_nothing() {
    let guest = Granting::new(Behaviour::Echo);
    for round in 0..300 {
        let queue = guest.bring_up();
        let lent = guest.publish_many(&queue, 4, if round % 2 == 0 { SMALL } else { LARGE });
        thread::scope(|scope| {
            scope.spawn(|| {
                // From before the device looks until after it is done.
                (0..round % 30).for_each(|_| thread::yield_now());
                lent.iter().for_each(|lent| guest.grants.revoke(lent.granted, lent.len));
            });
            guest.rig.registers.notify(0);
        });
        eventually("the device serves or breaks", || queue.used_idx() == 4 || guest.is_broken());
        guest.rig.registers.reset();
        assert_eq!(guest.grants.counts().live, 0);
    }
    guest.assert_works_after_reset();
}

/// Xen may refuse to unmap at once, and the kernel puts it off while someone has the pages pinned.
#[test]
fn b12_what_is_unmapped_late_costs_the_driver_its_page_and_the_device_nothing() {
    let (guest, queue) = Granting::running(Behaviour::Echo);
    guest.grants.put_off_unmaps();
    for round in 0..20 {
        let (source, target) = (guest.lend_bytes(0, &[round; LARGE]), guest.lend(1, LARGE, Access::Write));
        guest.offer(&queue, &[source.readable(), target.writable()]);
        queue.wait_used(u16::from(round) + 1);
        assert_eq!(guest.bytes(target), [round; LARGE]);
        assert!(guest.grants.end_access(source.granted, LARGE).is_err(), "the kernel has it still");
    }
    guest.rig.registers.reset();
    assert!(guest.grants.counts().pages > 0);
    assert_eq!((guest.grants.counts().live, guest.rig.cache.stats().bytes_mapped), (0, 0));
    guest.grants.finish_unmaps();
    assert_eq!(guest.grants.counts().pages, 0);
    guest.assert_works_after_reset();
}

/// From reset to a few requests of each kind; whether all of them were done.
fn boot_and_use(guest: &Granting) -> bool {
    let queue = guest.bring_up();
    for (round, len) in (1..).zip([SMALL, LARGE, SMALL, LARGE]) {
        let sent = vec![u8::try_from(round).unwrap(); len];
        let (source, target) = (guest.lend_bytes(0, &sent), guest.lend(1, len, Access::Write));
        let chain = [source.readable(), target.writable()];
        let (table, lent) = guest.lend_table(0, &queue, &chain);
        if round % 2 == 0 {
            guest.offer(&queue, &[table])
        } else {
            guest.offer(&queue, &chain)
        }
        eventually("a request is done, or the device breaks", || queue.used_idx() == round || guest.is_broken());
        if guest.is_broken() {
            return false;
        }
        assert_eq!(guest.bytes(target), sent);
        [source, target, lent].into_iter().for_each(|lent| guest.take_back(lent));
    }
    true
}

#[test]
fn b14_whichever_call_fails_the_device_goes_on_or_breaks_and_can_be_used_again() {
    let rings = 3;
    for failure in [GrantFailure::Busy, GrantFailure::Errno(libc::EFAULT)] {
        for nth in 1.. {
            let guest = Granting::new(Behaviour::Echo);
            guest.grants.fail_call(nth, failure);
            let went_well = boot_and_use(&guest);
            if guest.grants.counts().calls() < nth {
                assert!(went_well && nth > 10, "of {nth} calls none failed");
                break;
            }
            match failure {
                // Room comes back when others give it back, and a request waits for it. A ring cannot.
                GrantFailure::Busy => assert_eq!(went_well, nth > rings, "call {nth}"),
                GrantFailure::Errno(_) => assert!(!went_well, "call {nth}"),
            }
            guest.assert_works_after_reset();
        }
    }
}

#[test]
fn b06_more_than_may_be_mapped_at_once_waits_its_turn() {
    let budget = Budget { kept: 2 * CHUNK_SIZE, at_most: 2 * CHUNK_SIZE };
    let guest = Granting::within(budget, Behaviour::Echo, |_, grants| Sources::grants(grants));
    let queue = guest.queue();
    let lent = guest.publish_many(&queue, 14, LARGE);
    guest.start(&queue);
    queue.wait_used(14);
    lent.chunks(2).for_each(|pair| assert_eq!(guest.bytes(pair[0]), guest.bytes(pair[1])));
    lent.into_iter().for_each(|lent| guest.take_back(lent));
    assert!(guest.rig.cache.stats().busy > 0, "all of it is not to be had at once");
    assert!(!guest.is_broken());
}

#[test]
fn b06_lanes_that_share_a_budget_all_get_on() {
    let budget = Budget { kept: 2 * CHUNK_SIZE, at_most: 2 * CHUNK_SIZE };
    let guest = Granting::within(budget, Behaviour::Echo, |_, grants| Sources::grants(grants));
    let second = RawQueue::new(guest.rig.memory.clone(), RAM + 0x4000, 8);
    let granted = guest.grants.grant(RAM + 0x4000, second.bytes(), Access::Write);
    let queues = [guest.queue(), second.at(granted)];
    assert!(guest.rig.registers.negotiate(FEATURES));
    (0..).zip(&queues).for_each(|(index, queue)| guest.rig.registers.set_up_queue(index, queue));
    guest.rig.registers.add_status(status::DRIVER_OK);
    for round in 1..=30 {
        // Six pages each, of 26 that the rings leave.
        let lent = queues.each_ref().map(|queue| guest.publish_many(queue, 4, LARGE));
        (0..2).for_each(|queue| guest.rig.registers.notify(queue));
        queues.iter().for_each(|queue| assert_eq!(queue.wait_used(4 * round).len as usize, LARGE));
        lent.into_iter().flatten().for_each(|lent| guest.take_back(lent));
    }
    assert!(!guest.is_broken());
}
