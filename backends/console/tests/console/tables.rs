//! Rows G01, G03 and G04 as tables: output of any size, emergency writes of any sort, control messages of any content.

use testkit::cases;
use testkit::driver::{Descriptor, Registers, status};

use crate::harness::{CONTROL_RECEIVE, CONTROL_TRANSMIT, F_MULTIPORT, F_SIZE, LARGE, Rig, event, wait_until};

const THREE: &str =
    "sink = \"null\"\n[[port]]\nname = \"agent\"\nsink = \"null\"\n[[port]]\nname = \"log\"\nsink = \"null\"";

/// `emerg_wr`, from the start of the registers.
const EMERG_WR: u64 = 0x108;

/// Buffers of these lengths behind each other in guest memory.
fn pieces(address: u64, lens: &[u32]) -> Vec<Descriptor> {
    let mut at = address;
    let piece = |len: &u32| {
        at += u64::from(*len);
        Descriptor::readable(at - u64::from(*len), *len)
    };
    lens.iter().map(piece).collect()
}

#[test]
fn g01_output_of_any_size_in_any_pieces_comes_back_and_is_counted() {
    let sizes = [0, 1, 63, 4095, 4096, 4097, 65_535, 65_536, 65_537, (1 << 20) + 1, 4 << 20];
    for sink in ["sink = \"null\"", "sink = \"pty\"", "sink = \"socket\"", "sink = \"file\"\npath = \"DIR/log\""] {
        let rig = Rig::classic(sink);
        let mut all = 0;
        let inputs = sizes.into_iter().flat_map(|size: u32| {
            let whole = vec![size];
            let uneven = vec![size / 3, 0, size - size / 3];
            let many = vec![size / 50; 50];
            [whole, uneven, many]
        });
        cases::each(inputs, |lens| {
            all += u64::from(lens.iter().sum::<u32>());
            // The chain begins in the first slot, and has room.
            rig.transport.reset();
            rig.bring_up(F_SIZE);
            let made = rig.request(1, |_| pieces(LARGE, &lens));
            assert_eq!(rig.queue(1).wait_used(made).len, 0);
            rig.assert_healthy();
            // Nobody reads a pty or a socket: at most 64 KiB are kept for who comes.
            let accounted = || rig.counter("bytes_out") + rig.counter("bytes_dropped");
            let kept = if sink.contains("null") || sink.contains("file") { 0 } else { 64 << 10 };
            wait_until("it is written, dropped or kept", || accounted() <= all && accounted() + kept >= all);
        });
    }
}

#[test]
fn g03_only_what_begins_at_emerg_wr_is_printed_and_that_at_any_time() {
    let states: [&[u32]; 6] = [
        &[],
        &[status::ACKNOWLEDGE],
        &[status::ACKNOWLEDGE, status::DRIVER],
        &[status::ACKNOWLEDGE, status::DRIVER, status::FAILED],
        &[status::ACKNOWLEDGE, 0],
        // Nobody asked for queues: a driver without any.
        &[status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK],
    ];
    let accesses = (0x100..0x110).flat_map(|offset| [1, 2, 4, 8].map(|size| (offset, size)));
    let inputs: Vec<_> =
        states.into_iter().flat_map(|state| accesses.clone().map(move |access| (state, access))).collect();
    let rig = Rig::new("sink = \"null\"");
    cases::each(inputs, |(state, (offset, size))| {
        rig.transport.reset();
        state.iter().for_each(|bits| rig.transport.write(testkit::driver::Register::Status, *bits));
        let printed = rig.counter("emergency_bytes");
        rig.transport.store(offset, size, 0x4141_4141_4141_4141);
        assert_eq!(rig.counter("emergency_bytes") - printed, u64::from(offset == EMERG_WR));
        assert_eq!(rig.transport.load(EMERG_WR, 4), 0);
    });
    rig.transport.reset();
    rig.bring_up(F_SIZE);
    rig.print(0, b"alive");
}

/// Whether a device refuses the message, all of whose ports are open.
fn is_refused(id: u32, event: u16, value: u16) -> bool {
    match event {
        event::DEVICE_READY => false,
        event::OPEN => id >= 3 || value > 1,
        _ => true,
    }
}

#[test]
fn g04_a_message_is_heard_if_it_makes_sense_and_changes_nothing_if_not() {
    let rig = Rig::multiport(THREE);
    // Each has its other end open, which is told before or after the names.
    (0..3).for_each(|_| drop(rig.next_control()));
    let events = (0..10).chain([0x100, 0x7fff, 0x8006, u16::MAX]);
    let ids = [0, 1, 2, 3, 0x1_0000, 0x8000_0000, u32::MAX];
    let messages = ids.into_iter().flat_map(|id| {
        events.clone().flat_map(move |event| [0, 1, 2, 0x100, u16::MAX].map(|value| (id, event, value)))
    });
    cases::each(messages, |(id, event, value)| {
        let refused = rig.counter("control_refused");
        rig.control(id, event, value);
        assert_eq!(rig.counter("control_refused") - refused, u64::from(is_refused(id, event, value)));
        assert_eq!(rig.untaken_controls(), 0, "nothing is said to it");
        rig.assert_healthy();
    });
}

#[test]
fn g04_a_message_is_as_long_as_its_header_at_least_whatever_its_pieces() {
    let rig = Rig::multiport(THREE);
    let ready = [0, 0, 0, 0, 0, 0, 1, 0];
    let lens = (0..=16).chain([100, 4000, 0x1_0000]);
    let inputs = lens.flat_map(|len: u32| {
        let ones = vec![1; len.min(40) as usize];
        [vec![len], vec![0, len, 0], vec![len / 2, len - len / 2], ones]
    });
    cases::each(inputs.filter(|lens| !lens.is_empty()), |lens| {
        rig.memory.write(LARGE, &ready);
        let refused = rig.counter("control_refused");
        // In a table, as the ring has no room behind its last slot.
        let (last, queue) = (lens.len() as u16 - 1, rig.queue(CONTROL_TRANSMIT));
        let linked =
            (0..).zip(pieces(LARGE, &lens)).map(|(at, piece)| if at < last { piece.then(at + 1) } else { piece });
        let table = queue.write_indirect(LARGE + (1 << 20), &linked.collect::<Vec<_>>());
        let made = rig.request(CONTROL_TRANSMIT, |_| vec![table]);
        assert_eq!(queue.wait_used(made).len, 0);
        assert_eq!(rig.counter("control_refused") - refused, u64::from(lens.iter().sum::<u32>() < 8));
        rig.assert_healthy();
    });
}

#[test]
fn g04_a_message_is_written_whole_or_not_at_all() {
    cases::each((0..=12).chain([100]), |room| {
        let rig = Rig::new(THREE);
        rig.bring_up(F_MULTIPORT);
        rig.control(u32::MAX, event::DEVICE_READY, 1);
        rig.memory.write(LARGE, &[0xee; 100]);
        rig.request(CONTROL_RECEIVE, |_| vec![Descriptor::writable(LARGE, room)]);
        let len = rig.queue(CONTROL_RECEIVE).wait_used(1).len;
        let mut said = [0; 100];
        rig.memory.read(LARGE, &mut said);
        let fits = room >= 8;
        assert_eq!(len, if fits { 8 } else { 0 });
        let message: &[u8] = if fits { &[0, 0, 0, 0, 1, 0, 1, 0] } else { &[] };
        assert_eq!(said, *[message, &[0xee; 100][message.len()..]].concat());
        wait_until("it is counted", || rig.counter("control_refused") == u64::from(!fits));
    });
}

#[test]
fn g04_chains_that_no_queue_can_use_need_a_reset_which_mends_it() {
    let chains = [
        vec![Descriptor::readable(LARGE, u32::MAX)],
        vec![Descriptor::writable(LARGE, u32::MAX)],
        vec![Descriptor::readable(0x1000, 8)],
        vec![Descriptor::writable(0x1000, 8)],
        vec![Descriptor::readable(u64::MAX - 3, 8)],
        vec![Descriptor::writable(LARGE, 8), Descriptor::readable(LARGE, 8)],
        vec![Descriptor::indirect(LARGE, 8)],
        vec![Descriptor::indirect(0x1000, 16)],
    ];
    let queues = [1, CONTROL_RECEIVE, CONTROL_TRANSMIT, 4, 5];
    let rig = Rig::new(THREE);
    cases::each(
        queues.into_iter().flat_map(|queue| chains.clone().into_iter().map(move |chain| (queue, chain))),
        |input| {
            let (queue, chain) = input;
            rig.bring_up(F_MULTIPORT);
            // The device takes buffers for messages when it has one to send, and those for input when it has some.
            rig.control(u32::MAX, event::DEVICE_READY, 1);
            rig.request(queue, |_| chain.clone());
            let is_used = queue != 4;
            if is_used {
                wait_until("the device needs a reset", || rig.transport.status() & status::DEVICE_NEEDS_RESET != 0);
            }
            rig.transport.reset();
            rig.bring_up(F_MULTIPORT);
            rig.introduce();
            rig.print(1, b"alive");
            rig.assert_healthy();
            rig.transport.reset();
        },
    );
}
