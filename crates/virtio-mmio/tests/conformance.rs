//! What virtio 1.2 wants of registers, of a device's life and of notifications. Each test is of the section that it is named
//! by; others of this crate are, too.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod rig;

use std::sync::atomic::Ordering::SeqCst;

use io_bus::Device;
use rig::{BUFFERS, EVENT_IDX, INDIRECT_DESC, RAM, RAM_LEN, RING_RESET, Rig, VERSION_1};
use testkit::cases::each;
use testkit::device::{Behaviour, CONFIG, FEATURE, TestDevice, UNWELCOME_FEATURE, eventually};
use testkit::driver::{Descriptor, RawQueue, Register, Registers, status};
use virtio_backend::Fault;

/// Queues of the device under test; their sizes are 16 and 8.
const QUEUES: [u32; 2] = [0, 1];

/// Bits of InterruptStatus.
const USED: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

/// A device in use, with both queues, that has told of a used buffer and of a changed configuration.
fn with_both_causes() -> Rig {
    let rig = Rig::new(Behaviour::Echo);
    assert!(rig.registers.negotiate(VERSION_1));
    let queues = QUEUES.map(|index| rig.queue(index.into()));
    QUEUES.into_iter().zip(&queues).for_each(|(index, queue)| rig.registers.set_up_queue(index, queue));
    rig.registers.add_status(status::DRIVER_OK);
    rig.offer(&queues[0]);
    eventually("a used buffer is told of", || rig.registers.read(Register::InterruptStatus) == USED);
    rig.signals().config_changed();
    assert_eq!(rig.registers.read(Register::InterruptStatus), USED | CONFIG_CHANGED);
    rig
}

/// Publishes one writable buffer, without a kick.
fn publish(queue: &RawQueue, head: u16) {
    queue.write_descriptor(head, Descriptor::writable(BUFFERS, 4));
    queue.publish(head);
}

#[test]
fn spec_4_2_2_registers_are_little_endian() {
    let rig = Rig::new(Behaviour::Echo);
    let mut bytes = [0; 4];
    Device::read(&*rig.registers, Register::MagicValue as u64, &mut bytes);
    assert_eq!(&bytes, b"virt");
    let _at_once = Device::write(&*rig.registers, Register::QueueSel as u64, &[1, 0, 0, 0]);
    Device::read(&*rig.registers, Register::QueueNumMax as u64, &mut bytes);
    assert_eq!(bytes, [8, 0, 0, 0]);
}

#[test]
fn spec_4_2_2_device_features_are_the_selected_word_and_words_beyond_the_second_are_zero() {
    let rig = Rig::new(Behaviour::Echo);
    let offered = rig.registers.offered_features();
    each(
        [(0, offered & 0xffff_ffff), (1, offered >> 32), (2, 0), (3, 0), (0x8000_0000, 0), (u32::MAX, 0)],
        |(word, bits)| {
            rig.registers.write(Register::DeviceFeaturesSel, word);
            assert_eq!(u64::from(rig.registers.read(Register::DeviceFeatures)), bits);
        },
    );
}

#[test]
fn spec_4_2_2_queue_num_max_is_that_of_the_selected_queue_and_0_where_there_is_none() {
    let rig = Rig::new(Behaviour::Echo);
    each([(0, 16), (1, 8), (2, 0), (0x1_0000, 0), (u32::MAX, 0)], |(index, size)| {
        rig.registers.write(Register::QueueSel, index);
        assert_eq!(rig.registers.read(Register::QueueNumMax), size);
    });
}

#[test]
fn spec_4_2_2_queue_ready_reads_what_was_written_last() {
    let sequences = [&[1][..], &[1, 0], &[1, 0, 1], &[0]];
    each(sequences.into_iter().flat_map(|values| [(values, false), (values, true)]), |(values, in_use)| {
        let rig = Rig::new(Behaviour::Echo);
        assert!(rig.registers.negotiate(VERSION_1 | RING_RESET));
        if in_use {
            rig.registers.add_status(status::DRIVER_OK);
        }
        for &value in values {
            match value {
                1 => rig.registers.set_up_queue(1, &rig.queue(1)),
                _ => rig.registers.write(Register::QueueReady, value),
            }
            assert_eq!(rig.registers.read(Register::QueueReady), value);
        }
    });
}

#[test]
fn spec_4_2_2_1_each_interrupt_bit_stands_from_its_event_to_its_acknowledgement() {
    each([(USED, CONFIG_CHANGED), (CONFIG_CHANGED, USED)], |(first, second)| {
        let rig = with_both_causes();
        for (acknowledged, left) in
            [(!(first | second), USED | CONFIG_CHANGED), (first, second), (first, second), (second, 0)]
        {
            rig.registers.write(Register::InterruptAck, acknowledged);
            assert_eq!(rig.registers.read(Register::InterruptStatus), left, "after {acknowledged:#x}");
        }
    });
}

#[test]
fn spec_4_2_2_1_a_reset_clears_every_interrupt_bit_and_every_queue_ready() {
    let rig = with_both_causes();
    rig.registers.reset();
    assert_eq!(rig.registers.read(Register::InterruptStatus), 0);
    for index in QUEUES {
        rig.registers.write(Register::QueueSel, index);
        assert_eq!(rig.registers.read(Register::QueueReady), 0, "queue {index}");
    }
}

/// Whether QueueReady was never 1, or is 0 again, before DRIVER_OK or after it.
#[test]
fn spec_4_2_2_1_a_queue_that_is_not_ready_is_not_looked_at() {
    each([(true, true), (true, false), (false, true)], |(was_ready, before_driver_ok)| {
        let rig = Rig::new(Behaviour::Echo);
        let queue = rig.queue(0);
        publish(&queue, 0);
        assert!(rig.registers.negotiate(VERSION_1));
        if !before_driver_ok {
            rig.registers.add_status(status::DRIVER_OK);
        }
        rig.registers.set_up_queue(0, &queue);
        rig.registers.write(Register::QueueReady, 0);
        if !was_ready {
            rig.registers.reset();
            assert!(rig.registers.negotiate(VERSION_1));
        }
        rig.registers.add_status(status::DRIVER_OK);
        rig.registers.notify(0);
        // When this is answered, all that was to happen has happened.
        rig.registers.reset();
        assert_eq!((rig.memory.counts().calls, queue.used_idx(), rig.line.raised()), (0, 0, 0));
    });
}

#[test]
fn spec_4_2_2_1_queue_reset_reads_0_after_a_reset_and_once_a_queue_is_enabled() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    assert_eq!(rig.registers.read(Register::QueueReset), 0);
    rig.registers.write(Register::QueueReset, 1);
    eventually("the queue is reset", || rig.registers.read(Register::QueueReset) == 0);
    assert_eq!(rig.registers.read(Register::QueueReady), 0);
    queue.clear();
    rig.registers.set_up_queue(0, &queue);
    assert_eq!((rig.registers.read(Register::QueueReset), rig.registers.read(Register::QueueReady)), (0, 1));
    rig.registers.reset();
    assert_eq!(rig.registers.read(Register::QueueReset), 0);
}

#[test]
fn spec_4_2_3_4_the_interrupt_is_asserted_as_long_as_a_bit_is_set() {
    each(
        [(&[USED, CONFIG_CHANGED][..], 2), (&[CONFIG_CHANGED, USED], 2), (&[USED | CONFIG_CHANGED], 1)],
        |(acks, raised)| {
            let rig = with_both_causes();
            acks.iter().for_each(|&bits| rig.registers.write(Register::InterruptAck, bits));
            // The line knows edges: one when the level rises, and one where it would have stayed.
            assert_eq!(rig.line.raised(), raised);
            assert_eq!(rig.registers.read(Register::InterruptStatus), 0);
            rig.signals().config_changed();
            assert_eq!(rig.line.raised(), raised + 1);
        },
    );
}

#[test]
fn spec_2_2_2_every_set_of_what_is_offered_is_accepted_unless_the_device_cannot_work_with_it() {
    let bits = [EVENT_IDX, INDIRECT_DESC, RING_RESET, FEATURE, UNWELCOME_FEATURE];
    let sets = (0..1u32 << bits.len()).map(|set| {
        let chosen = bits.iter().enumerate().filter(|(index, _)| set & 1 << index != 0);
        chosen.fold(VERSION_1, |features, (_, bit)| features | bit)
    });
    each(sets, |features| {
        let rig = Rig::new(Behaviour::Echo);
        assert_eq!(rig.registers.negotiate(features), features & UNWELCOME_FEATURE == 0);
        rig.registers.add_status(status::DRIVER_OK);
        assert_eq!(rig.registers.status() & status::DRIVER_OK != 0, features & UNWELCOME_FEATURE == 0);
    });
}

#[test]
fn spec_2_2_2_a_set_that_was_accepted_is_accepted_after_every_reset() {
    let rig = Rig::new(Behaviour::Echo);
    let sets = [VERSION_1, VERSION_1 | FEATURE, VERSION_1 | EVENT_IDX | RING_RESET, VERSION_1 | INDIRECT_DESC];
    each([0, 1, 2, 3, 3, 0, 2, 1, 0].map(|index| sets[index]), |features| {
        rig.registers.bring_up(features, &rig.queue(0));
        eventually("the device has it", || rig.device.features.load(SeqCst) == features);
        rig.registers.reset();
        assert!(!rig.registers.negotiate(features | 1), "one that was never offered is refused");
        rig.registers.reset();
    });
}

#[test]
fn spec_2_4_1_a_reset_returns_status_to_0_from_wherever_a_driver_got() {
    each([0, 1, 3, 11, 15, 15 | status::DEVICE_NEEDS_RESET, 15 | status::FAILED], |reached| {
        let rig = Rig::new(Behaviour::Echo);
        if reached & status::FEATURES_OK != 0 {
            assert!(rig.registers.negotiate(VERSION_1));
        }
        rig.registers.write(Register::Status, reached & !status::DEVICE_NEEDS_RESET);
        if reached & status::DEVICE_NEEDS_RESET != 0 {
            rig.signals().needs_reset(&Fault::Bug("as told".into()));
        }
        assert_eq!(rig.registers.status(), reached);
        rig.registers.reset();
        assert_eq!(rig.registers.status(), 0);
    });
}

#[test]
fn spec_2_4_1_after_a_reset_nothing_is_told_and_no_queue_is_touched() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    rig.offer(&queue);
    queue.wait_used(1);
    rig.registers.reset();
    let before = (rig.memory.counts().calls, queue.used_idx(), rig.line.raised());

    rig.offer(&queue);
    rig.signals().config_changed();
    rig.signals().needs_reset(&Fault::Bug("as told".into()));

    assert_eq!(rig.device.workers.load(SeqCst), 0, "nobody could do anything later");
    assert_eq!((rig.memory.counts().calls, queue.used_idx(), rig.line.raised()), before);
    assert_eq!(rig.registers.read(Register::InterruptStatus), 0);
}

#[test]
fn spec_2_5_2_every_field_can_be_read_before_features_ok() {
    let fields = (0..CONFIG.len()).flat_map(|at| [1, 2, 4, 8].map(|width| (at, width)));
    let states = [0, 1, 3];
    each(
        states.into_iter().flat_map(|state| fields.clone().map(move |field| (state, field))),
        |(state, (at, width))| {
            let rig = Rig::new(Behaviour::Echo);
            rig.registers.write(Register::Status, state);
            let mut field = vec![0; width];
            Device::read(&*rig.registers, Register::Config as u64 + at as u64, &mut field);
            let there = width.min(CONFIG.len() - at);
            assert_eq!(field[..there], CONFIG[at..at + there]);
        },
    );
}

#[test]
fn spec_2_6_1_1_1_a_queue_that_was_reset_is_left_alone() {
    let (rig, queue) = Rig::running(Behaviour::Echo);
    rig.offer(&queue);
    queue.wait_used(1);
    rig.registers.write(Register::QueueReset, 1);
    eventually("the queue is reset", || rig.registers.read(Register::QueueReset) == 0);
    let raised = rig.line.raised();

    rig.offer(&queue);
    rig.offer(&queue);
    rig.registers.reset();

    assert_eq!((queue.used_idx(), rig.line.raised()), (1, raised));
}

#[test]
fn spec_2_6_1_2_1_a_queue_that_is_enabled_again_starts_afresh_with_its_new_settings() {
    let (rig, first) = Rig::running(Behaviour::Echo);
    rig.offer(&first);
    first.wait_used(1);
    each([1, 2, 4, 8, 16], |size| {
        rig.registers.write(Register::QueueReset, 1);
        eventually("the queue is reset", || rig.registers.read(Register::QueueReset) == 0);
        let queue = RawQueue::new(rig.memory.clone(), RAM + 0x4000 + 0x1000 * u64::from(size), size);
        queue.clear();
        rig.registers.set_up_queue(0, &queue);
        for request in 1..=3 {
            publish(&queue, request % size);
            rig.registers.notify(0);
            queue.wait_used(request);
        }
    });
    assert_eq!(first.used_idx(), 1);
}

#[test]
fn spec_2_7_every_power_of_two_up_to_32768_is_a_size() {
    each((0..=15).map(|shift| 1u16 << shift), |size| {
        let rig = Rig::with(TestDevice::with_lanes(Behaviour::Echo, &[1 << 15], std::iter::once(0..1).collect()));
        let queue = RawQueue::new(rig.memory.clone(), RAM, size);
        queue.write_descriptor(size - 1, Descriptor::writable(RAM + RAM_LEN - 16, 16));
        rig.registers.bring_up(VERSION_1, &queue);
        queue.publish(size - 1);
        rig.registers.notify(0);
        assert_eq!(queue.wait_used(1).id, u32::from(size) - 1);
    });
}

/// Brings a device up whose driver has made four buffers available and says this of interrupts; how often it is interrupted.
fn interrupts(features: u64, avail_flags: u16, used_event: u16) -> u64 {
    let rig = Rig::new(Behaviour::Echo);
    let queue = rig.queue(0);
    (0..4).for_each(|head| publish(&queue, head));
    queue.set_avail_flags(avail_flags);
    queue.set_used_event(used_event);
    rig.registers.bring_up(VERSION_1 | features, &queue);
    queue.wait_used(4);
    // When this is answered, the device has said all that it had to say.
    rig.registers.reset();
    rig.line.raised()
}

#[test]
fn spec_2_7_7_2_without_event_index_the_flag_decides_and_used_event_does_not() {
    let drivers = [0, 1].into_iter().flat_map(|flags| [0, 3, 4, u16::MAX].map(|event| (flags, event)));
    each(drivers, |(flags, event)| assert_eq!(interrupts(0, flags, event), u64::from(flags == 0)));
}

#[test]
fn spec_2_7_7_2_with_event_index_used_event_decides_and_the_flag_does_not() {
    let drivers = [0, 1].into_iter().flat_map(|flags| [0, 1, 3, 4, 5, 0x8000, u16::MAX].map(|event| (flags, event)));
    each(drivers, |(flags, event)| assert_eq!(interrupts(EVENT_IDX, flags, event), u64::from(event < 4)));
}

#[test]
fn spec_2_7_10_2_kicks_without_buffers_do_nothing() {
    each([0, EVENT_IDX], |features| {
        let rig = Rig::new(Behaviour::Echo);
        let queue = rig.queue(0);
        rig.registers.bring_up(VERSION_1 | features, &queue);
        (0..100).for_each(|_| rig.registers.notify(0));
        rig.offer(&queue);
        queue.wait_used(1);
        (0..100).for_each(|_| rig.registers.notify(0));
        rig.registers.reset();
        assert_eq!((queue.used_idx(), rig.line.raised()), (1, 1));
    });
}

#[test]
fn spec_6_2_what_rings_and_transport_do_not_do_is_neither_offered_nor_accepted() {
    let bits = [
        (24, "NOTIFY_ON_EMPTY, of the legacy interface"),
        (27, "ANY_LAYOUT, of the legacy interface"),
        (33, "ACCESS_PLATFORM, where no grants are reached"),
        (34, "RING_PACKED"),
        (35, "IN_ORDER"),
        (36, "ORDER_PLATFORM"),
        (37, "SR_IOV, which is PCI's"),
        (38, "NOTIFICATION_DATA"),
        (39, "NOTIF_CONFIG_DATA"),
        (41, "ADMIN_VQ, of a later version"),
    ];
    each(bits, |(bit, _)| {
        let rig = Rig::new(Behaviour::Echo);
        assert_eq!(rig.registers.offered_features() & 1 << bit, 0);
        assert!(!rig.registers.negotiate(VERSION_1 | 1 << bit));
    });
}
