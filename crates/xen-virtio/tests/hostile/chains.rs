//! Descriptor chains: rows D01 to D08 and D17.

use testkit::cases::each;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Registers, status};

use crate::guest::{BANK_END, Guest, RAM, RAM_END, READABLE, SIZE, TABLES, UNTOUCHED, WRITABLE, linked};
use crate::hosts::{Kind, Request};

/// What a driver makes available: descriptors in slots of the queue's table, entries of a table elsewhere, and a head.
#[derive(Clone, Debug, Default)]
struct Chain {
    slots: Vec<Descriptor>,
    table: Vec<Descriptor>,
    head: u16,
}

impl Chain {
    /// In the first slots of the queue's own table, linked as they say.
    fn direct(slots: Vec<Descriptor>) -> Self {
        Self { slots, ..Self::default() }
    }

    /// In a table to which the queue's first descriptor refers.
    fn indirect(table: Vec<Descriptor>) -> Self {
        Self { slots: vec![Descriptor::indirect(TABLES, 16 * table.len() as u32)], table, head: 0 }
    }

    fn offer(&self, guest: &Guest, queue: u32) {
        let raw = guest.queue(queue);
        raw.write_indirect(TABLES, &self.table);
        for (slot, descriptor) in (0..).zip(&self.slots) {
            raw.write_descriptor(slot, *descriptor);
        }
        raw.publish(self.head);
        guest.registers.notify(queue);
    }
}

/// The device of every kind needs a reset once it takes one of these, from whatever queue, and works after it.
fn each_breaks(chains: &[Chain]) {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let prompt = kind.prompt_queues().iter().map(|queue| (*queue, false));
        let queues: Vec<_> = prompt.chain(kind.receive_queues().iter().map(|queue| (*queue, true))).collect();
        let inputs = queues.iter().flat_map(|queue| chains.iter().map(move |chain| (kind, *queue, chain)));
        each(inputs, |(_, (queue, receives), chain)| {
            guest.reset();
            guest.bring_up();
            chain.offer(&guest, queue);
            if receives {
                guest.host.nudge();
            }
            guest.expect_broken("a malformed chain is found out");
            assert_eq!(guest.queue(queue).used_idx(), 0, "and not given back");
            guest.works_after_reset();
        });
    }
}

/// The device of every kind makes something of each of these, and works after a reset.
fn each_ends(features: impl Fn(&Guest) -> u64, chains: &[Chain]) {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queue = kind.prompt_queues()[0];
        each(chains.iter().map(|chain| (kind, chain)), |(_, chain)| {
            guest.reset();
            guest.set_up(features(&guest));
            guest.registers.add_status(status::DRIVER_OK);
            chain.offer(&guest, queue);
            if !kind.may_be_silent() {
                guest.outcome(queue);
            }
            guest.works_after_reset();
        });
    }
}

/// A buffer that the device may read or write, 16 bytes each.
fn buffer(index: u64, writable: bool) -> Descriptor {
    if writable {
        Descriptor::writable(WRITABLE + 16 * index, 16)
    } else {
        Descriptor::readable(READABLE + 16 * index, 16)
    }
}

#[test]
fn d01_a_chain_that_loops_breaks_any_device_until_reset() {
    let mut chains = Vec::new();
    for len in [1, 2, 3, SIZE] {
        for back_to in 0..len {
            for (writable, bytes) in [(false, 16), (true, 16), (true, 0)] {
                let slots = (0..len).map(|slot| {
                    let next = if slot + 1 == len { back_to } else { slot + 1 };
                    Descriptor { len: bytes, ..buffer(slot.into(), writable) }.then(next)
                });
                let slots: Vec<_> = slots.collect();
                chains.extend([Chain::direct(slots.clone()), Chain::indirect(slots)]);
            }
        }
    }
    each_breaks(&chains);
}

#[test]
fn d02_indexes_beyond_the_table_break_any_device_until_reset() {
    let beyond = [SIZE, SIZE + 1, 2 * SIZE - 1, 2 * SIZE, 255, 256, 0x7fff, 0x8000, 0x8000 + SIZE, u16::MAX];
    let mut chains = Vec::new();
    for index in beyond {
        chains.push(Chain { slots: vec![buffer(0, true)], table: vec![], head: index });
        for position in [0, 1, SIZE - 1] {
            let slots: Vec<_> = (0..=position)
                .map(|slot| buffer(slot.into(), true).then(if slot == position { index } else { slot + 1 }))
                .collect();
            chains.extend([Chain::direct(slots.clone()), Chain::indirect(slots)]);
        }
    }
    each_breaks(&chains);
}

/// A request's buffers, with empty ones behind the last until there are `count`.
fn padded(guest: &Guest, request: &Request, count: usize) -> Vec<Descriptor> {
    let mut chain = guest.buffers(request);
    let empty = Descriptor { len: 0, ..*chain.last().unwrap() };
    chain.resize(count, empty);
    chain
}

#[test]
fn d03_a_chain_of_as_many_descriptors_as_the_queue_has_is_served_and_one_of_more_is_not() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let most = usize::from(*guest.host.device.identity().queue_sizes.iter().max().unwrap());
        let size = usize::from(SIZE);
        guest.bring_up();
        each((2..=size).map(|count| (kind, count)), |(_, count)| {
            let request = guest.host.request();
            guest.served(&request, &padded(&guest, &request, count));
        });
        each([2, size, size + 1, most - 1, most].map(|count| (kind, count)), |(_, count)| {
            let request = guest.host.request();
            let table = linked(&padded(&guest, &request, count));
            guest.served(&request, &[guest.queue(request.queue).write_indirect(TABLES, &table)]);
        });
        each([most + 1, most + 2, 2 * most, 0xffff].map(|count| (kind, count)), |(_, count)| {
            guest.reset();
            guest.bring_up();
            let request = guest.host.request();
            Chain::indirect(linked(&padded(&guest, &request, count))).offer(&guest, request.queue);
            guest.expect_broken("a chain that is too long is found out");
            guest.works_after_reset();
        });
    }
}

#[test]
fn d04_tables_that_are_none_break_any_device_until_reset() {
    let mut chains = Vec::new();
    let table = vec![buffer(0, true)];
    let referring = |descriptor| Chain { slots: vec![descriptor], table: table.clone(), head: 0 };
    for len in [0, 1, 8, 15, 17, 24, 31, 33, 0xffff_fff0, 0xffff_fff1, u32::MAX, 16 << 16, (16 << 16) + 16] {
        chains.push(referring(Descriptor::indirect(TABLES, len)));
    }
    let holes = [0, 0x1000, 0x200_0000, 0x3800_0000, RAM - 16, RAM - 1, RAM_END - 15, RAM_END - 1, RAM_END, BANK_END];
    let far = [1 << 40, (1 << 48) - 16, 1 << 52, 1 << 63, u64::MAX - 31, u64::MAX - 15, u64::MAX];
    for address in holes.into_iter().chain(far) {
        chains.push(referring(Descriptor::indirect(address, 32)));
    }
    // One within another, wherever it stands; also as the last of a chain.
    let inner = Descriptor::indirect(TABLES, 16);
    for before in 0..4 {
        let mut entries: Vec<_> = (0..before).map(|slot| buffer(u64::from(slot), true).then(slot + 1)).collect();
        entries.push(inner);
        chains.push(Chain::indirect(entries.clone()));
        entries.iter_mut().for_each(|entry| entry.flags |= 1);
        chains.push(Chain::indirect(entries));
    }
    for before in 1..SIZE {
        let mut slots: Vec<_> = (0..before).map(|slot| buffer(slot.into(), true).then(slot + 1)).collect();
        slots.push(Descriptor::indirect(TABLES, 17));
        chains.push(Chain::direct(slots));
    }
    each_breaks(&chains);
}

#[test]
fn d04_a_table_whose_second_half_is_no_memory_breaks_any_device_until_reset() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queue = kind.prompt_queues()[0];
        each((1..=SIZE).map(|entries| (kind, entries)), |(_, entries)| {
            guest.reset();
            guest.bring_up();
            // So many entries before the hole, and the chain goes on in it.
            let start = RAM_END - 16 * u64::from(entries);
            let table: Vec<_> = (0..entries).map(|slot| buffer(slot.into(), true).then(slot + 1)).collect();
            guest.queue(queue).write_indirect(start, &table);
            Chain::direct(vec![Descriptor::indirect(start, 16 * u32::from(entries) + 16)]).offer(&guest, queue);
            guest.expect_broken("the table cannot be read");
            guest.works_after_reset();
        });
    }
}

/// Tables that a driver must not use so, but of which a device can make sense.
fn odd_tables() -> Vec<Chain> {
    let mut chains = Vec::new();
    for writable in [false, true] {
        for next in [0, 1, SIZE, u16::MAX] {
            // INDIRECT and NEXT.
            let table = vec![buffer(0, writable)];
            let referring = Descriptor::indirect(TABLES, 16).then(next);
            chains.push(Chain { slots: vec![referring, buffer(1, writable)], table, head: 0 });
        }
        // At any place, and with entries that no chain comes to.
        chains.push(Chain::indirect(vec![buffer(0, writable); 40]));
        chains.push(Chain {
            slots: vec![Descriptor::indirect(TABLES, 16 * 0xffff)],
            table: vec![buffer(0, writable)],
            head: 0,
        });
    }
    for offset in 1..16 {
        chains.push(Chain::direct(vec![Descriptor::indirect(TABLES + offset, 16)]));
    }
    chains
}

#[test]
fn d04_tables_that_a_driver_must_not_use_hurt_no_device() {
    each_ends(Guest::features, &odd_tables());
}

#[test]
fn d04_tables_that_were_not_negotiated_hurt_no_device() {
    const INDIRECT_DESC: u64 = 1 << 28;
    each_ends(|guest| guest.features() & !INDIRECT_DESC, &odd_tables());
}

/// A way to cut a request's buffers up: where in the readable part, and where in the writable one.
type Cuts = (Vec<usize>, Vec<usize>);

/// Pieces of a buffer, cut at these places. Cutting twice at a place leaves an empty piece, as does cutting at the end or
/// beyond it.
fn pieces(buffer: Descriptor, cuts: &[usize]) -> Vec<Descriptor> {
    let len = buffer.len as usize;
    let mut ends: Vec<_> = cuts.iter().map(|cut| len.min(*cut)).collect();
    ends.push(len);
    let starts = std::iter::once(0).chain(ends.clone());
    let piece = |(start, end)| Descriptor { addr: buffer.addr + start as u64, len: (end - start) as u32, ..buffer };
    starts.zip(ends).map(piece).collect()
}

fn cut(chain: &[Descriptor], (readable, writable): &Cuts) -> Vec<Descriptor> {
    let cut = |buffer: &Descriptor| pieces(*buffer, if buffer.is_writable() { writable } else { readable });
    chain.iter().flat_map(cut).collect()
}

/// Where the descriptors of a chain lie.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// In the queue's table, if that is large enough, otherwise as the next.
    Direct,
    /// In a table of their own.
    Table,
    /// In one to which a descriptor refers that says WRITE, which means nothing there (§2.7.5.3.2).
    WritableTable,
    /// So many in the queue's table, the others in one of their own.
    Mixed(usize),
}

/// Has every kind of device serve requests that are cut up like this.
fn each_is_served(cuts: &[Cuts], lies: &[Lie]) {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        guest.bring_up();
        let inputs = cuts.iter().flat_map(|cuts| lies.iter().map(move |lie| (kind, cuts, *lie)));
        each(inputs, |(_, cuts, lie)| {
            let request = guest.host.request();
            let chain = cut(&guest.buffers(&request), cuts);
            let table = |chain: &[Descriptor]| guest.queue(request.queue).write_indirect(TABLES, &linked(chain));
            match lie {
                Lie::Direct if chain.len() <= usize::from(SIZE) => guest.served(&request, &chain),
                Lie::Direct | Lie::Table => guest.served(&request, &[table(&chain)]),
                Lie::WritableTable => {
                    let referring = table(&chain);
                    guest.served(&request, &[Descriptor { flags: referring.flags | 2, ..referring }]);
                }
                Lie::Mixed(direct) => {
                    let direct = direct.min(chain.len() - 1);
                    let rest = table(&chain[direct..]);
                    guest.served(&request, &[&chain[..direct], &[rest]].concat());
                }
            }
        });
    }
}

#[test]
fn d05_a_table_may_stand_behind_any_number_of_descriptors_and_may_say_write() {
    let bytes: Vec<usize> = (1..16).collect();
    let lies: Vec<_> = (0..usize::from(SIZE)).map(Lie::Mixed).chain([Lie::WritableTable]).collect();
    each_is_served(&[(vec![], vec![]), (vec![8], vec![8]), (bytes.clone(), bytes)], &lies);
}

#[test]
fn d06_empty_descriptors_anywhere_change_nothing() {
    let mut cuts: Vec<Cuts> = Vec::new();
    // Before, in the middle, behind; one or several; in one part or both.
    for place in [0, 1, 8, 16, usize::MAX] {
        for times in 1..=3 {
            let empty = vec![place; times + usize::from((1..=16).contains(&place))];
            cuts.extend([(empty.clone(), vec![]), (vec![], empty.clone()), (empty.clone(), empty)]);
        }
    }
    each_is_served(&cuts, &[Lie::Direct, Lie::Table, Lie::Mixed(2)]);
}

#[test]
fn d06_a_chain_of_nothing_but_empty_descriptors_comes_to_an_end() {
    let mut chains = Vec::new();
    for count in 1..=SIZE {
        for writable_from in 0..=count {
            let empty = |slot: u16| Descriptor { len: 0, ..buffer(slot.into(), slot >= writable_from) };
            let chain: Vec<_> = linked(&(0..count).map(empty).collect::<Vec<_>>());
            // Nothing is nothing wherever it is.
            let nowhere = chain.iter().map(|descriptor| Descriptor { addr: u64::MAX, ..*descriptor }).collect();
            chains.extend([Chain::direct(chain.clone()), Chain::indirect(chain), Chain::direct(nowhere)]);
        }
    }
    each_ends(Guest::features, &chains);
}

#[test]
fn d07_a_request_may_be_cut_anywhere() {
    let mut cuts: Vec<Cuts> = (1..60).map(|at| (vec![at], vec![])).collect();
    cuts.extend([1, 2, 15, 16, 47, 255, 511, 512].map(|at| (vec![], vec![at])));
    // Bytes, pairs of them, and what follows whole.
    cuts.push(((1..40).collect(), vec![]));
    cuts.push((vec![], (1..40).collect()));
    cuts.push(((1..20).collect(), (1..20).collect()));
    cuts.push(((1..20).map(|at| 2 * at).collect(), (493..513).collect()));
    each_is_served(&cuts, &[Lie::Direct, Lie::Table]);
}

#[test]
fn d07_a_readable_part_behind_a_writable_one_breaks_any_device_until_reset() {
    let mut chains = Vec::new();
    for len in 2..=5_u64 {
        for pattern in 0..1_u64 << len {
            let is_writable = |slot: u64| pattern >> slot & 1 == 1;
            if (1..len).any(|slot| is_writable(slot - 1) && !is_writable(slot)) {
                let slots = linked(&(0..len).map(|slot| buffer(slot, is_writable(slot))).collect::<Vec<_>>());
                chains.extend([Chain::direct(slots.clone()), Chain::indirect(slots)]);
            }
        }
    }
    each_breaks(&chains);
}

#[test]
fn d08_lengths_that_add_up_to_more_than_any_memory_break_any_device_until_reset() {
    let mut chains = Vec::new();
    for len in [0x8000_0000, 0xffff_f000, u32::MAX - 1, u32::MAX] {
        for count in 1..=SIZE {
            for writable_from in [0, count / 2, count] {
                let huge = |slot: u16| Descriptor { len, ..buffer(slot.into(), slot >= writable_from) };
                let slots = linked(&(0..count).map(huge).collect::<Vec<_>>());
                chains.extend([Chain::direct(slots.clone()), Chain::indirect(slots)]);
            }
        }
    }
    each_breaks(&chains);
}

#[test]
fn d16_d17_whatever_a_request_is_its_chain_comes_back_once_and_nothing_else_is_written() {
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.may_be_silent()) {
        let guest = Guest::new(kind);
        let queue = kind.prompt_queues()[0];
        guest.bring_up();
        let mut inputs = Vec::new();
        for readable in [0, 1, 7, 8, 11, 12, 13, 15, 16, 17, 43, 44, 45, 100, 4096] {
            for writable in [0, 1, 2, 16, 511, 512, 513, 4096] {
                inputs.extend([0, 1, 0x55, 0xff].map(|byte| (kind, readable, writable, byte)));
            }
        }
        inputs.retain(|(_, readable, writable, _)| readable + writable > 0);
        each(inputs, |(kind, readable, writable, byte)| {
            if guest.is_broken() {
                guest.reset();
                guest.bring_up();
            }
            guest.memory.write(READABLE, &vec![byte; readable]);
            guest.memory.write(WRITABLE, &vec![UNTOUCHED; writable + 16]);
            let parts =
                [Descriptor::readable(READABLE, readable as u32), Descriptor::writable(WRITABLE, writable as u32)];
            let chain: Vec<_> = parts.into_iter().filter(|part| part.len > 0).collect();
            let before = guest.queue(queue).used_idx();
            guest.queue(queue).write_chain(0, &chain);
            guest.queue(queue).publish(0);
            guest.registers.notify(queue);
            eventually("the device answers or breaks", || guest.is_broken() || guest.queue(queue).used_idx() != before);
            if guest.is_broken() {
                return;
            }
            assert_eq!(guest.queue(queue).used_idx(), before.wrapping_add(1), "once");
            let used = guest.queue(queue).used(before);
            let mut bytes = vec![0; writable + 16];
            guest.memory.read(WRITABLE, &mut bytes);
            let told = used.len as usize;
            assert!(told <= writable, "{told} bytes of {writable}");
            // A request that fails has its status written, and nothing before it told.
            let status = if kind.has_status_byte() { writable.saturating_sub(1) } else { writable };
            let untold = bytes[told.min(status)..status].iter().chain(&bytes[writable..]);
            assert!(untold.copied().all(|byte| byte == UNTOUCHED), "more was written than told: {told}");
        });
        guest.works_after_reset();
    }
}

#[test]
fn d10_heads_that_are_offered_again_and_again_come_back_at_most_as_often() {
    for kind in Kind::ALL {
        let guest = Guest::new(kind);
        let queue = kind.prompt_queues()[0];
        let inputs = (2..=SIZE).flat_map(|times| [0, 3, SIZE - 1].map(|head| (kind, times, head)));
        each(inputs, |(_, times, head)| {
            guest.reset();
            guest.bring_up();
            let raw = guest.queue(queue);
            // Readable, and with room for whatever the device has to say, in one slot each.
            raw.write_descriptor(head, guest.table_of_a_request());
            (0..times).for_each(|_| raw.publish(head));
            guest.registers.notify(queue);
            if !kind.may_be_silent() {
                guest.outcome(queue);
            }
            guest.reset();
            assert!(raw.used_idx() <= times, "{} chains came back of {times}", raw.used_idx());
            guest.bring_up();
            guest.works();
        });
    }
}

impl Guest {
    /// A request of an honest driver, in a table: the descriptor that refers to it.
    fn table_of_a_request(&self) -> Descriptor {
        let request = self.host.request();
        let chain = self.buffers(&request);
        self.queue(request.queue).write_indirect(TABLES, &linked(&chain))
    }
}
