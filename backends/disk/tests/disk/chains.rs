//! Rows D01 to D19 as far as they reach a disk: malformed rings and chains, and well-formed but unusual ones.

use testkit::driver::Descriptor;

use crate::harness::{Builder, DATA, HEADERS, IOERR, OK, Rig, SECTOR, UNTOUCHED, kind, pattern};
use crate::on_each_engine;

/// The three parts of a read of one sector.
fn read_chain(rig: &Rig, head: u16, sector: u64) -> [Descriptor; 3] {
    let data = DATA + u64::from(head) * SECTOR as u64;
    [
        Descriptor::readable(rig.header(head, kind::IN, sector), 16),
        Descriptor::writable(data, SECTOR as u32),
        Descriptor::writable(rig.status_byte(head), 1),
    ]
}

/// Offers what is in the queue and sees the device ask for a reset, with nothing given back.
fn assert_faults(rig: &Rig, word: &str) {
    rig.kick();
    let fault = rig.hearing.wait_for_fault();
    assert!(fault.contains("Guest") && fault.contains(word), "{fault}");
    assert_eq!(rig.queue.used_idx(), 0);
}

on_each_engine! {
    fn d01_a_chain_that_loops_needs_a_reset_and_a_reset_mends_it(engine) {
        for next in [0, 1] {
            let rig = Rig::new(engine);
            let [header, data, status] = read_chain(&rig, 0, 0);
            rig.queue.write_descriptor(0, header.then(1));
            rig.queue.write_descriptor(1, data.then(next));
            rig.queue.write_descriptor(2, status);
            rig.queue.publish(0);

            rig.kick();

            rig.hearing.wait_for_fault();
            rig.reset().assert_alive();
        }
    }

    fn d02_indexes_beyond_the_table_need_a_reset(engine) {
        let rig = Rig::new(engine);
        let [header, ..] = read_chain(&rig, 0, 0);
        rig.queue.write_descriptor(0, header.then(256));
        rig.queue.publish(0);
        assert_faults(&rig, "Chain");

        let rig = Rig::new(engine);
        rig.queue.publish(256);
        rig.kick();
        rig.hearing.wait_for_fault();
    }

    fn d03_a_chain_as_long_as_the_queue_works_and_a_longer_one_does_not(engine) {
        let rig = Rig::new(engine);
        let table = DATA + (1 << 20);
        let chain_of = |descriptors: usize| {
            let mut chain = vec![Descriptor::readable(rig.header(0, kind::IN, 0), 16)];
            let sectors = (0..descriptors - 2).map(|at| DATA + (at * SECTOR) as u64);
            chain.extend(sectors.map(|address| Descriptor::writable(address, SECTOR as u32)));
            chain.push(Descriptor::writable(rig.status_byte(0), 1));
            rig.queue.write_indirect(table, &linked_up(&chain))
        };

        let used = rig.run(&[chain_of(256)]);
        assert_eq!((rig.status(0), used.len as usize), (OK, 254 * SECTOR + 1));
        assert_eq!(rig.bytes(DATA, 254 * SECTOR), rig.on_disk()[..254 * SECTOR]);

        rig.offer(0, &[chain_of(257)]);
        rig.kick();
        assert!(rig.hearing.wait_for_fault().contains("more descriptors"));
    }

    fn d04_impossible_indirect_tables_need_a_reset(engine) {
        let table = DATA + (1 << 20);
        let hole = 0x1000;
        for (address, len) in [(table, 0), (table, 17), (hole, 48)] {
            let rig = Rig::new(engine);
            rig.queue.write_indirect(table, &linked_up(&read_chain(&rig, 0, 0)));
            rig.offer(0, &[Descriptor::indirect(address, len)]);
            assert_faults(&rig, "Chain");
        }
    }

    fn d04_a_table_within_a_table_needs_a_reset(engine) {
        let rig = Rig::new(engine);
        let inner = rig.queue.write_indirect(DATA + (1 << 20), &linked_up(&read_chain(&rig, 0, 0)));
        let outer = rig.queue.write_indirect(DATA + (2 << 20), &[inner]);
        rig.offer(0, &[outer]);
        assert_faults(&rig, "Chain");
    }

    fn d05_a_normal_descriptor_followed_by_a_table_works(engine) {
        let rig = Rig::new(engine);
        let [header, data, status] = read_chain(&rig, 0, 3);
        let mut rest = rig.queue.write_indirect(DATA + (1 << 20), &linked_up(&[data, status]));
        rest.flags |= 2;
        rig.run(&[header, rest]);
        assert_eq!(rig.status(0), OK);
        assert_eq!(rig.bytes(DATA, SECTOR), rig.on_disk()[3 * SECTOR..4 * SECTOR]);
    }

    fn d06_empty_descriptors_change_nothing(engine) {
        let rig = Rig::new(engine);
        let [header, data, status] = read_chain(&rig, 0, 5);
        let (nothing_in, nothing_out) = (Descriptor::writable(DATA, 0), Descriptor::readable(DATA, 0));
        let used = rig.run(&[nothing_out, header, nothing_out, nothing_in, data, nothing_in, status, nothing_in]);
        assert_eq!((rig.status(0), used.len), (OK, 513));
        assert_eq!(rig.bytes(DATA, SECTOR), rig.on_disk()[5 * SECTOR..6 * SECTOR]);
    }

    fn d06_a_chain_of_nothing_needs_a_reset(engine) {
        let rig = Rig::new(engine);
        rig.offer(0, &[Descriptor::readable(DATA, 0), Descriptor::writable(DATA, 0)]);
        assert_faults(&rig, "status byte");
    }

    fn d07_a_request_may_be_cut_at_any_byte(engine) {
        let rig = Rig::new(engine);
        let data = pattern(SECTOR, 77);
        rig.memory.write(DATA, &data);
        let header = rig.header(0, kind::OUT, 9);
        let mut chain: Vec<_> = (0..16).map(|at| Descriptor::readable(header + at, 1)).collect();
        chain.extend((0..64).map(|at| Descriptor::readable(DATA + at, 1)));
        chain.push(Descriptor::readable(DATA + 64, SECTOR as u32 - 64));
        chain.push(Descriptor::writable(rig.status_byte(0), 1));
        rig.run(&chain);
        assert_eq!(rig.status(0), OK);
        assert_eq!(rig.on_disk()[9 * SECTOR..10 * SECTOR], data);
    }

    fn d07_header_and_data_in_one_buffer_and_data_and_status_in_one(engine) {
        let rig = Rig::new(engine);
        let data = pattern(SECTOR, 78);
        let header = rig.header(0, kind::OUT, 1);
        let joined = [rig.bytes(header, 16), data.clone()].concat();
        rig.memory.write(DATA, &joined);
        rig.run(&[Descriptor::readable(DATA, 16 + SECTOR as u32), Descriptor::writable(rig.status_byte(0), 1)]);
        assert_eq!((rig.status(0), &rig.on_disk()[SECTOR..2 * SECTOR]), (OK, &data[..]));

        let header = Descriptor::readable(rig.header(0, kind::IN, 1), 16);
        let used = rig.run(&[header, Descriptor::writable(DATA, SECTOR as u32 + 1)]);
        let answer = rig.bytes(DATA, SECTOR + 1);
        assert_eq!((used.len, answer[SECTOR], &answer[..SECTOR]), (513, OK, &data[..]));
    }

    fn d07_without_room_for_a_status_the_device_needs_a_reset(engine) {
        let rig = Rig::new(engine);
        let header = Descriptor::readable(rig.header(0, kind::OUT, 0), 16);
        rig.offer(0, &[header, Descriptor::readable(DATA, SECTOR as u32)]);
        assert_faults(&rig, "status byte");
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
    }

    fn d07_a_readable_part_behind_the_writable_one_needs_a_reset(engine) {
        let rig = Rig::new(engine);
        let [header, data, status] = read_chain(&rig, 0, 0);
        rig.offer(0, &[data, header, status]);
        assert_faults(&rig, "behind a writable one");
    }

    fn d07_half_a_header_is_an_error_of_the_request(engine) {
        let rig = Rig::new(engine);
        let used = rig.run(&[
            Descriptor::readable(rig.header(0, kind::FLUSH, 0), 15),
            Descriptor::writable(rig.status_byte(0), 1),
        ]);
        assert_eq!((rig.status(0), used.len), (IOERR, 1));
        rig.assert_alive();
    }

    fn d08_lengths_that_add_up_to_more_than_an_address_space_need_a_reset(engine) {
        let rig = Rig::new(engine);
        let [header, _, status] = read_chain(&rig, 0, 0);
        let huge = Descriptor::writable(DATA, u32::MAX);
        rig.offer(0, &[header, huge, huge, huge, status]);
        assert_faults(&rig, "");
        assert_eq!(rig.status(0), UNTOUCHED);
    }

    fn d09_an_available_index_that_jumps_needs_a_reset(engine) {
        for jump in [257, 32768, u16::MAX] {
            let rig = Rig::new(engine);
            rig.queue.set_avail_idx(jump);
            rig.kick();
            rig.hearing.wait_for_fault();
        }
    }

    fn d10_a_head_offered_twice_at_a_time_is_not_worked_twice(engine) {
        let rig = Rig::new(engine);
        let chain = read_chain(&rig, 0, 0);
        rig.queue.write_chain(0, &chain);
        rig.queue.publish(0);
        rig.queue.publish(0);
        rig.kick();
        let fault = rig.hearing.wait_for_fault();
        assert!(fault.contains("in flight already"), "{fault}");
    }

    fn d11_indexes_wrap_with_and_without_event_index(engine) {
        for event_idx in [false, true] {
            let mut builder = Builder::new(engine);
            (builder.position, builder.event_idx) = (u16::MAX - 2, event_idx);
            let rig = builder.start();
            for sector in 0..6 {
                let outcome = rig.read(sector, 1);
                assert_eq!(outcome.status, OK);
                assert_eq!(outcome.data, rig.on_disk()[sector as usize * SECTOR..][..SECTOR]);
            }
            assert_eq!(rig.queue.used_idx(), 3);
        }
    }

    fn d15_a_full_queue_is_worked_to_the_end_with_one_kick(engine) {
        let rig = Rig::new(engine);
        for head in 0..256 {
            let chain = read_chain(&rig, head, u64::from(head));
            let table = rig.queue.write_indirect(DATA + (1 << 20) + u64::from(head) * 64, &linked_up(&chain));
            rig.queue.write_descriptor(head, table);
            rig.queue.publish(head);
        }

        rig.kick();

        rig.queue.wait_used(256);
        assert!((0..256).all(|head| rig.status(head) == OK));
        assert_eq!(rig.bytes(DATA, 256 * SECTOR), rig.on_disk());
    }

    fn d16_the_length_told_is_what_was_written_and_no_more(engine) {
        let rig = Rig::new(engine);
        assert_eq!(rig.read(0, 4).written as usize, 4 * SECTOR + 1);
        assert_eq!(rig.get(kind::GET_ID, 0, 20).written, 21);

        // What fails leaves the buffer alone, and says that nothing from its start on was written.
        let refused = rig.read(256, 2);
        assert_eq!((refused.status, refused.written), (IOERR, 0));
        assert!(refused.data.iter().all(|byte| *byte == 0xaa));

        let header = Descriptor::readable(rig.header(0, kind::FLUSH, 0), 16);
        let used = rig.run(&[header, Descriptor::writable(rig.status_byte(0), 1)]);
        assert_eq!((rig.status(0), used.len), (OK, 1));
    }

    fn d17_a_request_that_fails_gives_its_chain_back_once(engine) {
        let rig = Rig::new(engine);
        for round in 1..=300 {
            assert_eq!(rig.read(u64::MAX, 1).status, IOERR);
            assert_eq!(rig.queue.used_idx(), round);
        }
        rig.assert_alive();
    }

    fn d18_a_lane_that_stops_has_finished_all_it_took(engine) {
        let mut rig = Rig::new(engine);
        for head in 0..64 {
            let chain = read_chain(&rig, head * 3, u64::from(head));
            rig.offer(head * 3, &chain);
        }
        rig.kick();
        rig.queue.wait_used(64);
        let position = rig.stop().unwrap();
        assert_eq!((position.next_avail, position.next_used), (64, 64));
        assert_eq!(rig.cache.stats().bytes_pinned, 0);
    }

    fn a_fault_with_requests_in_flight_holds_their_memory_until_the_kernel_is_done(engine) {
        let mut rig = Rig::new(engine);
        for head in 0..20 {
            let data = Descriptor::readable(DATA + u64::from(head) * 65536, 65536);
            let header = Descriptor::readable(rig.header(head * 3, kind::OUT, 0), 16);
            rig.offer(head * 3, &[header, data, Descriptor::writable(rig.status_byte(head * 3), 1)]);
        }
        rig.offer(100, &[Descriptor::readable(0x1000, 16)]);
        rig.kick();
        rig.hearing.wait_for_fault();
        rig.stop();
        assert_eq!(rig.cache.stats().bytes_pinned, 0);
        rig.reset().assert_alive();
    }

    fn buffers_outside_of_memory_need_a_reset_and_touch_nothing(engine) {
        for address in [0x1000, BEYOND, u64::MAX - 511] {
            let rig = Rig::new(engine);
            let [header, _, status] = read_chain(&rig, 0, 0);
            rig.offer(0, &[header, Descriptor::writable(address, SECTOR as u32), status]);
            assert_faults(&rig, "Memory");
            assert_eq!(rig.status(0), UNTOUCHED);
        }
    }

    fn buffers_across_a_page_that_is_gone_need_a_reset(engine) {
        let rig = Rig::new(engine);
        rig.memory.balloon_out(DATA + 0x1000, 1);
        rig.cache.invalidate();
        let [header, _, status] = read_chain(&rig, 0, 0);
        rig.offer(0, &[header, Descriptor::writable(DATA, 0x3000), status]);
        assert_faults(&rig, "Memory");
    }
}

/// Behind the last byte of memory.
const BEYOND: u64 = HEADERS + (47 << 20);

/// The same chain as the entries of an indirect table, linked.
fn linked_up(chain: &[Descriptor]) -> Vec<Descriptor> {
    let last = chain.len() - 1;
    let linked = |(at, descriptor): (usize, &Descriptor)| {
        if at < last { descriptor.then(at as u16 + 1) } else { *descriptor }
    };
    chain.iter().enumerate().map(linked).collect()
}
