//! The register file by itself: virtio 1.2 §4.2.2, §2.5, and whatever a driver may write there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::atomic::Ordering::SeqCst;

use io_bus::Device;
use rig::{EVENT_IDX, INDIRECT_DESC, RING_RESET, Rig, VERSION_1};
use testkit::device::{Behaviour, CONFIG, FEATURE, TestDevice, UNWELCOME_FEATURE, eventually};
use testkit::driver::{Register, Registers, status};

#[test]
fn spec_4_2_2_1_identity_is_readable_at_any_time() {
    let rig = Rig::new(Behaviour::Echo);
    assert_eq!(rig.registers.read(Register::MagicValue), 0x7472_6976);
    assert_eq!(rig.registers.read(Register::Version), 2);
    assert_eq!(rig.registers.read(Register::DeviceId), 42);
}

#[test]
fn spec_6_2_version_1_and_what_the_rings_can_is_offered() {
    let rig = Rig::new(Behaviour::Echo);
    let offered = rig.registers.offered_features();
    assert_eq!(offered, VERSION_1 | EVENT_IDX | INDIRECT_DESC | RING_RESET | FEATURE | UNWELCOME_FEATURE);
}

type Enter = fn(&Rig);

/// How a driver gets to each state that Status can show.
const STATES: [(u32, Enter); 7] = [
    (0, |_| {}),
    (1, |rig| rig.registers.add_status(1)),
    (3, |rig| rig.registers.write(Register::Status, 3)),
    (11, |rig| assert!(rig.registers.negotiate(VERSION_1 | RING_RESET))),
    (15, |rig| rig.registers.bring_up(VERSION_1 | RING_RESET, &rig.queue(0))),
    (15 | 64, |rig| {
        rig.registers.bring_up(VERSION_1, &rig.queue(0));
        rig.signals().needs_reset(&virtio_backend::Fault::Bug("as told".into()));
    }),
    (15 | 128, |rig| {
        rig.registers.bring_up(VERSION_1, &rig.queue(0));
        rig.registers.add_status(status::FAILED);
    }),
];

fn in_each_state(test: impl Fn(&Rig, u32, &dyn Fn())) {
    for (status, enter) in STATES {
        let rig = Rig::new(Behaviour::Echo);
        let enter = || {
            rig.registers.reset();
            enter(&rig);
            assert_eq!(rig.registers.status(), status);
        };
        enter();
        test(&rig, status, &enter);
    }
}

#[test]
fn c01_no_read_of_any_place_or_width_in_any_state_panics_or_changes_anything() {
    in_each_state(|rig, status, _| {
        for offset in 0..0x220 {
            for width in 1..=8 {
                let mut data = vec![0xaa; width];
                Device::read(&*rig.registers, offset, &mut data);
                if offset < 0x100 && (width != 4 || offset % 4 != 0) {
                    assert!(data.iter().all(|byte| *byte == 0), "{width} bytes at {offset:#x} are {data:?}");
                }
            }
        }
        assert_eq!(rig.registers.status(), status);
    });
}

#[test]
fn c01_a_write_of_the_wrong_width_or_alignment_changes_no_register_in_any_state() {
    in_each_state(|rig, status, _| {
        let before = all_registers(rig);
        for offset in 0..0x100 {
            for width in [1, 2, 3, 4, 5, 8].into_iter().filter(|width| *width != 4 || offset % 4 != 0) {
                for byte in [0, 1, 0xff] {
                    assert!(rig_write(rig, offset, &vec![byte; width]), "{width} bytes at {offset:#x}");
                }
            }
        }
        assert_eq!((rig.registers.status(), all_registers(rig)), (status, before));
    });
}

#[test]
fn c01_a_write_of_anything_to_any_register_in_any_state_is_answered() {
    in_each_state(|rig, _, enter| {
        for offset in (0..0x100).step_by(4) {
            for value in [0, 1, 2, 3, 0x8000_0000, u32::MAX] {
                rig.registers.store(offset, 4, value.into());
                assert_eq!(rig.registers.read(Register::MagicValue), 0x7472_6976);
            }
            enter();
        }
    });
}

#[test]
fn c01_a_write_anywhere_in_config_space_in_any_state_is_answered() {
    in_each_state(|rig, status, _| {
        for offset in 0xf9..0x220 {
            for width in [1, 2, 3, 4, 8].into_iter().filter(|width| offset % 4 != 0 || offset >= 0x100 || *width != 4) {
                assert!(rig_write(rig, offset, &vec![0xff; width]), "{width} bytes at {offset:#x}");
            }
        }
        assert_eq!((rig.registers.status(), rig.registers.load(0x108, 8)), (status, 0xffff_ffff));
    });
}

/// True if the write was answered at once.
fn rig_write(rig: &Rig, offset: u64, data: &[u8]) -> bool {
    matches!(Device::write(&*rig.registers, offset, data), io_bus::Written::Now)
}

fn all_registers(rig: &Rig) -> Vec<u64> {
    (0..0x100).step_by(4).map(|offset| rig.registers.load(offset, 4)).collect()
}

#[test]
fn c02_write_only_registers_and_holes_read_zero_and_are_counted() {
    let rig = Rig::new(Behaviour::Echo);
    let write_only = [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac];
    let legacy_and_holes = [0x18, 0x1c, 0x28, 0x2c, 0x3c, 0x40, 0x48, 0x74, 0xc4, 0xf8];
    let before = rig.counter("ignored");
    for offset in write_only.into_iter().chain(legacy_and_holes) {
        assert_eq!(rig.registers.load(offset, 4), 0, "{offset:#x}");
    }
    assert_eq!(rig.counter("ignored") - before, 24);
}

#[test]
fn c02_read_only_registers_are_not_written() {
    let rig = Rig::new(Behaviour::Echo);
    let before = all_registers(&rig);
    let ignored = rig.counter("ignored");
    let read_only = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x60, 0xb0, 0xb4, 0xb8, 0xbc, 0xfc];
    for offset in read_only {
        rig.registers.store(offset, 4, u64::from(u32::MAX));
    }
    assert_eq!(rig.counter("ignored") - ignored, read_only.len() as u64);
    assert_eq!(all_registers(&rig), before);
}

#[test]
fn c03_a_queue_that_does_not_exist_reads_zero_and_cannot_be_set_up() {
    let rig = Rig::new(Behaviour::Echo);
    for index in [2, 3, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX] {
        rig.registers.set_up_queue(index, &rig.queue(0));
        assert_eq!(rig.registers.read(Register::QueueNumMax), 0, "{index:#x}");
        assert_eq!(rig.registers.read(Register::QueueReady), 0, "{index:#x}");
        rig.registers.write(Register::QueueReset, 1);
        assert_eq!(rig.registers.read(Register::QueueReset), 0, "{index:#x}");
    }
    rig.registers.write(Register::QueueSel, 1);
    assert_eq!(rig.registers.read(Register::QueueNumMax), 8);
}

#[test]
fn c04_a_kick_of_a_queue_that_does_not_exist_wakes_nobody() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    eventually("the lane idles", || rig.counter("passes") > 0);
    let before = rig.counter("ignored");
    let indices = [2, 0xffff, 0xffff_0000, 0x8000_0000, u32::MAX];
    indices.into_iter().for_each(|index| rig.registers.notify(index));
    assert_eq!(rig.counter("ignored") - before, 5);
    assert_eq!(rig.counter("notifies"), 5);
}

#[test]
fn c14_config_space_is_read_at_any_width_and_alignment_and_is_zero_past_its_end() {
    let rig = Rig::new(Behaviour::Echo);
    let padded = [&CONFIG[..], &[0; 32]].concat();
    for offset in 0..24 {
        for width in [1, 2, 3, 4, 8] {
            let mut data = vec![0xaa; width];
            Device::read(&*rig.registers, 0x100 + offset as u64, &mut data);
            assert_eq!(data, padded[offset..offset + width], "{width} bytes at {offset}");
        }
    }
    let mut far = [0xaa; 8];
    Device::read(&*rig.registers, u64::MAX - 8, &mut far);
    assert_eq!(far, [0; 8]);
}

#[test]
fn c14_of_a_config_write_only_what_lies_inside_reaches_the_device() {
    let rig = Rig::new(Behaviour::Echo);
    rig.registers.store(0x100 + 10, 4, 0xddcc_bbaa);
    rig.registers.store(0x100 + 12, 4, u64::from(u32::MAX));
    rig.registers.store(u64::MAX - 8, 8, u64::MAX);
    rig.registers.store(0x100 + 1, 1, 0x77);
    assert_eq!(*rig.device.config.lock().unwrap(), [1, 0x77, 3, 4, 5, 6, 7, 8, 9, 10, 0xaa, 0xbb]);
    assert_eq!(rig.counter("ignored"), 2);
}

#[test]
fn a_panic_in_a_devices_config_costs_the_device_and_not_the_thread_that_serves_the_guest() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    rig.device.config_panics.store(true, SeqCst);
    assert_eq!(rig.registers.load(0x100, 4), 0);
    assert_eq!(rig.registers.status(), 15 | status::DEVICE_NEEDS_RESET);
}

#[test]
fn spec_4_2_2_1_config_generation_changes_with_the_configuration() {
    let (rig, _queue) = Rig::running(Behaviour::Echo);
    let before = rig.registers.read(Register::ConfigGeneration);
    rig.device.config.lock().unwrap()[0] = 0xff;
    rig.signals().config_changed();
    assert_ne!(rig.registers.read(Register::ConfigGeneration), before);
    assert_eq!((rig.registers.acknowledge(), rig.line.raised()), (2, 1));
}

#[test]
fn spec_2_4_1_a_change_of_configuration_before_driver_ok_is_told_then() {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1));
    rig.signals().config_changed();
    assert_eq!((rig.registers.read(Register::InterruptStatus), rig.line.raised()), (0, 0));
    rig.registers.add_status(status::DRIVER_OK);
    assert_eq!((rig.registers.acknowledge(), rig.line.raised()), (2, 1));
}

#[test]
fn c17_no_shared_memory_region_exists() {
    let rig = Rig::new(Behaviour::Echo);
    for region in [0, 1, 255, u32::MAX] {
        rig.registers.write(Register::ShmSel, region);
        let words = [Register::ShmLenLow, Register::ShmLenHigh, Register::ShmBaseLow, Register::ShmBaseHigh];
        assert!(words.into_iter().all(|word| rig.registers.read(word) == u32::MAX), "region {region:#x}");
    }
}

#[test]
fn c20_a_placeholder_is_found_and_left_alone() {
    struct Placeholder(virtio_backend::Identity);
    impl virtio_backend::Backend for Placeholder {
        fn identity(&self) -> &virtio_backend::Identity {
            &self.0
        }
        fn read_config(&self, _offset: usize, _data: &mut [u8]) {}
        fn start(&self, _lane: usize, _features: u64) -> std::io::Result<Box<dyn virtio_backend::Worker>> {
            panic!("there is no lane to start")
        }
    }
    let identity = virtio_backend::Backend::identity(&TestDevice::new(Behaviour::Echo)).clone();
    let identity =
        virtio_backend::Identity { device_id: 0, queue_sizes: vec![], lanes: vec![], config_len: 0, ..identity };
    let rig = Rig::new(Behaviour::Echo);
    let empty = virtio_mmio::Transport::new(
        std::sync::Arc::new(Placeholder(identity)),
        rig.line.clone(),
        rig.cache.clone(),
        "empty",
    )
    .unwrap();

    assert_eq!(empty.read(Register::DeviceId), 0);
    assert!(empty.negotiate(VERSION_1));
    empty.add_status(status::DRIVER_OK);
    assert_eq!((empty.status(), empty.load(0x100, 8)), (15, 0));
    empty.reset();
    assert_eq!(empty.status(), 0);
}

#[test]
fn each_trap_is_counted_once() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    let before: Vec<_> = rig.registers.counters();
    rig.offer(&queue);
    queue.wait_used(1);
    eventually("the interrupt is raised", || rig.line.raised() == 1);
    rig.registers.acknowledge();
    rig.registers.load(0x104, 4);
    let changed: Vec<_> = rig.registers.counters().into_iter().zip(before).filter(|(now, then)| now != then).collect();
    let changed: Vec<_> = changed.iter().map(|((name, now), (_, then))| (*name, now - then)).collect();
    let traps =
        [("config_reads", 1), ("notifies", 1), ("interrupt_status_reads", 1), ("interrupt_acks", 1), ("interrupts", 1)];
    assert_eq!(changed[..5], traps);
    assert!(changed[5..].contains(&("requests", 1)));
}
