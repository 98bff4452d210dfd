//! The ring of buffered writes, between Xen's end and the pump.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

mod common;

use std::sync::Arc;

use common::{BASE, Machine, eventually};
use io_bus::{Claim, Space, Window};
use ioreq::Buffering;
use proptest::prelude::*;
use testkit::xen::{FakeXen, PostedWrite};

/// The ring's addresses have 20 bits, so the device answers here as well.
const LOW: u32 = 0xa_0000;

fn machine() -> (Machine, Claim) {
    let machine = Machine::on(FakeXen::new(1), Buffering::On);
    let low = Window::new(Space::Mmio, LOW.into(), 0x200).unwrap();
    let claim = machine.bus.claim(low, Arc::clone(&machine.device) as _).unwrap();
    (machine, claim)
}

#[test]
fn posted_writes_arrive_in_order_before_the_access_that_follows() {
    let (machine, _claim) = machine();
    let (vcpu, id) = (machine.vcpu(0), machine.server.id());
    // More than one time round the ring.
    for round in 0..400_u64 {
        for (size, data) in [(4, round), (8, round << 32 | 0x1234_5678)] {
            assert!(vcpu.post(id, PostedWrite { kind: 1, addr: LOW, size, data }));
        }
        assert_eq!(vcpu.read(Space::Mmio, BASE, 8), Ok(round << 32 | 0x1234_5678));
    }
    assert_eq!(machine.pump.counts().posted_writes, 800);
}

#[test]
fn a_posted_write_that_panics_a_device_costs_only_that_write() {
    let (machine, _claim) = machine();
    let (vcpu, id) = (machine.vcpu(0), machine.server.id());
    vcpu.post(id, PostedWrite { kind: 1, addr: LOW + 0x40, size: 4, data: 1 });
    vcpu.post(id, PostedWrite { kind: 1, addr: LOW, size: 4, data: 2 });
    assert_eq!(vcpu.read32(BASE), 2);
    assert_eq!(machine.pump.counts().panics, 1);
}

#[test]
fn a_ring_with_impossible_indices_is_emptied() {
    let (machine, _claim) = machine();
    let id = machine.server.id();
    for (read, written) in [(5, 600), (7, 6), (u32::MAX, 511), (0, u32::MAX)] {
        let before = machine.pump.counts().bad_requests;
        machine.xen.set_ring(id, &[], read, written);
        eventually("it is empty", || is_empty(&machine));
        assert_eq!(machine.pump.counts().bad_requests, before + 1, "{read} {written}");
    }
    machine.vcpu(0).write32(BASE, 1);
}

fn is_empty(machine: &Machine) -> bool {
    let (read, written) = machine.xen.ring_indices(machine.server.id());
    read == written
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_posted_writes_leave_what_they_would_leave_one_by_one(
        writes in prop::collection::vec((0..0x38_u32, 0..4_u32, any::<u64>()), 1..200),
    ) {
        let (machine, _claim) = machine();
        let (vcpu, id) = (machine.vcpu(0), machine.server.id());
        let mut expected = [0_u8; 0x40];
        for (offset, size, data) in writes {
            let (at, len) = (offset as usize, 1 << size);
            expected[at..at + len].copy_from_slice(&data.to_le_bytes()[..len]);
            let write = PostedWrite { kind: 1, addr: LOW + offset, size: 1 << size, data };
            eventually("there is room", || vcpu.post(id, write));
        }
        let got: Vec<u8> = (0..8).flat_map(|n| vcpu.read(Space::Mmio, BASE + 8 * n, 8).unwrap().to_le_bytes()).take(0x40).collect();
        prop_assert_eq!(&got[..0x38], &expected[..0x38]);
    }

    #[test]
    fn any_ring_at_all_is_emptied_and_the_guest_goes_on(
        entries in prop::collection::vec(any::<u64>(), 0..511),
        read: u32,
        queued in 0..600_u32,
    ) {
        let (machine, _claim) = machine();
        machine.xen.set_ring(machine.server.id(), &entries, read, read.wrapping_add(queued));
        eventually("it is empty", || is_empty(&machine));
        machine.vcpu(0).invalidate().unwrap();
    }
}
