//! Row F06 as tables: commands of any class, number and length, of drivers that negotiated any of it.

use testkit::cases;
use testkit::driver::Descriptor;

use crate::guest::{
    CONTROL, CSUM, CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, CTRL_VQ, GUEST_ANNOUNCE,
    GUEST_CSUM, Guest, MAC, MQ, config, until,
};
use virtio_net::Config;

const OK: u8 = 0;
const ERR: u8 = 1;

const EVERYTHING: u64 = CONTROL | GUEST_ANNOUNCE | MQ | CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS;

fn card(features: u64) -> (Guest, crate::fake::FakeHost) {
    Guest::configured(&Config { queues: 2, ..config() }, features)
}

/// What a command of zeroes is answered (virtio 1.2 §5.1.6.5), by a card with two pairs of queues.
fn answer(features: u64, class: u8, command: u8, len: usize) -> u8 {
    let (needed, is_right) = match (class, command) {
        (0, 0 | 1) => (CTRL_RX, len == 1),
        (0, 2..=5) => (CTRL_RX_EXTRA, len == 1),
        // Two tables of no entries; what is behind them is of no concern.
        (1, 0) => (CTRL_RX, len >= 8),
        // No card has the address 00:00:00:00:00:00.
        (1, 1) => (CTRL_MAC_ADDR, false),
        (2, 0 | 1) => (CTRL_VLAN, len == 2),
        (3, 0) => (GUEST_ANNOUNCE, true),
        // No pair is too few.
        (4, 0) => (MQ, false),
        (5, 0) => (CTRL_GUEST_OFFLOADS, len == 8),
        _ => return ERR,
    };
    if features & needed != 0 && is_right { OK } else { ERR }
}

#[test]
fn f06_a_command_is_carried_out_if_it_is_known_negotiated_and_of_its_length() {
    let commands =
        (0..8).flat_map(|class| (0..7).flat_map(move |command| (0..20).map(move |len| (class, command, len))));
    let commands: Vec<(u8, u8, usize)> = commands.chain((0..=255).map(|class| (class, 0xff, 1))).collect();
    for features in [CTRL_VQ, CTRL_VQ | CTRL_RX, CTRL_VQ | CTRL_VLAN | CTRL_MAC_ADDR, EVERYTHING] {
        eprintln!("features {features:#x}");
        let (guest, host) = card(features);
        cases::each(&commands, |&(class, command, len)| {
            let refused = guest.counter("ctrl_refused");
            let answered = guest.command(&[&[class, command][..], &vec![0; len]].concat());
            assert_eq!(answered, answer(features, class, command, len));
            assert_eq!(guest.counter("ctrl_refused") - refused, u64::from(answered == ERR));
        });
        assert_eq!(guest.mac(), MAC);
        assert_eq!(host.active(), 1);
        assert!(!guest.needs_reset());
    }
}

#[test]
fn f06_tables_are_as_long_as_they_say_or_refused() {
    let (guest, host) = card(CONTROL);
    let claims = [0, 1, 2, 64, 65, 1000, 0x1_0000, 0x2aaa_aaaa, 0x2aaa_aaab, 0x5555_5556, 0x8000_0000, u32::MAX];
    let held = [0, 5, 6, 11, 12, 64 * 6, 65 * 6, 1000 * 6];
    let tables = claims.into_iter().flat_map(|claim| held.map(|held| (claim, held)));
    let both = tables.flat_map(|first| [(0, 0), (1, 6), (1, 5), (u32::MAX, 6)].map(|second| (first, second)));
    cases::each(both, |((claim, held), (second, second_held))| {
        let table = |claim: u32, held: usize| [&claim.to_le_bytes()[..], &vec![2; held]].concat();
        let data = [table(claim, held), table(second, second_held)].concat();
        let answered = guest.command(&[&[1, 0][..], &data].concat());
        // Where the first table ends, and with it the second begins, is for the first to say.
        let end = 4 + 6 * u128::from(claim);
        let next = usize::try_from(end).ok().and_then(|end| data.get(end..)).and_then(<[u8]>::first_chunk::<4>);
        let fits = next.is_some_and(|next| end + 4 + 6 * u128::from(u32::from_le_bytes(*next)) <= data.len() as u128);
        assert_eq!(answered == OK, fits);
    });
    guest.assert_alive(&host);
}

/// How a command and the room for its answer are laid out: lengths of buffers to read, then of buffers to write.
type Layout = (&'static [u32], &'static [u32]);

#[test]
fn f06_a_command_is_answered_in_its_first_writable_byte_however_it_is_laid_out() {
    let layouts: [Layout; 9] = [
        (&[3], &[1]),
        (&[2, 1], &[1]),
        (&[1, 1, 1], &[1, 1]),
        (&[0, 3], &[0, 1]),
        (&[0, 0, 2, 0, 1, 0], &[0, 0, 4096]),
        (&[3], &[2]),
        (&[], &[1]),
        (&[0], &[7]),
        (&[2], &[1, 0]),
    ];
    let (guest, _host) = card(CONTROL);
    cases::each(layouts, |(reads, writes)| {
        let address = guest.allocate(8192);
        guest.memory.write(address, &[0, 1, 1]);
        guest.memory.write(address + 4096, &[0xee; 4096]);
        let mut at = address;
        let mut chain: Vec<_> = reads.iter().map(|&len| buffer(&mut at, len, Descriptor::readable)).collect();
        at = address + 4096;
        chain.extend(writes.iter().map(|&len| buffer(&mut at, len, Descriptor::writable)));
        let queue = guest.control_queue();
        let count = guest.queues[queue].avail_idx() + 1;
        guest.offer(queue, &chain);
        assert_eq!(guest.queues[queue].wait_used(count).len, 1);
        let whole = reads.iter().sum::<u32>() == 3;
        assert_eq!(guest.bytes(address + 4096, 3), [if whole { OK } else { ERR }, 0xee, 0xee]);
    });
}

fn buffer(at: &mut u64, len: u32, of: fn(u64, u32) -> Descriptor) -> Descriptor {
    *at += u64::from(len);
    of(*at - u64::from(len), len)
}

#[test]
fn f06_chains_that_are_no_command_need_a_reset_which_mends_it() {
    let faults: [&[Descriptor]; 5] = [
        &[],
        &[Descriptor { addr: 0x4010_0000, len: 0, flags: 2, next: 0 }],
        &[Descriptor { addr: 0x4010_0000, len: u32::MAX, flags: 0, next: 0 }],
        &[Descriptor { addr: 0x1000, len: 64, flags: 2, next: 0 }],
        &[Descriptor { addr: u64::MAX, len: 64, flags: 2, next: 0 }],
    ];
    let (mut guest, host) = card(CONTROL);
    cases::each(faults, |chain| {
        let address = guest.allocate(3);
        guest.memory.write(address, &[0, 1, 1]);
        let queue = guest.control_queue();
        guest.offer(queue, &[&[Descriptor::readable(address, 3)], chain].concat());
        until("the device needs a reset", || guest.needs_reset());
        guest.restart(CONTROL);
        assert_eq!(guest.command(&[0, 1, 1]), OK);
        guest.assert_alive(&host);
    });
}
