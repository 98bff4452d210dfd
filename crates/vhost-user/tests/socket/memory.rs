//! Memory that is shared, added, taken away and replaced while requests run.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::SeqCst;

use testkit::device::{Behaviour, eventually};
use testkit::driver::Descriptor;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::service::Service;
use crate::vmm::{BUFFERS, RAM, RAM_LEN, SIZE, VERSION_1, Vmm, user};

#[test]
fn a_buffer_may_cross_from_region_to_region() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    let middle = BUFFERS + 0x2000;
    vmm.share(&[vmm.region(middle, RAM + RAM_LEN - middle), vmm.region(RAM, middle - RAM)]);
    let bytes: Vec<u8> = (0..=255).collect();
    vmm.memory.write(middle - 128, &bytes);
    queue.write_chain(0, &[Descriptor::readable(middle - 128, 256), Descriptor::writable(middle - 0x1080, 256)]);
    queue.publish(0);
    vmm.kicks[0].write(1).unwrap();
    assert_eq!(queue.wait_used(1).len, 256);
    let mut answer = vec![0; 256];
    vmm.memory.read(middle - 0x1080, &mut answer);
    assert_eq!(answer, bytes);
}

#[test]
fn the_table_is_replaced_under_load_and_no_request_is_lost() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    let halves = [vmm.region(RAM, RAM_LEN / 2), vmm.region(RAM + RAM_LEN / 2, RAM_LEN / 2)];
    for _ in 0..100 {
        vmm.offer(0, &queue);
        vmm.share(&halves);
        queue.wait_used(queue.avail_idx());
        vmm.offer(0, &queue);
        vmm.share(&[vmm.region(RAM, RAM_LEN)]);
        queue.wait_used(queue.avail_idx());
    }
}

#[test]
fn a_request_in_flight_keeps_the_memory_that_it_began_with() {
    let (service, device) = Service::with(Behaviour::Hold);
    let (vmm, queue) = Vmm::running(&service);
    vmm.offer(0, &queue);
    eventually("the device has it", || device.held.load(SeqCst) == 1);
    // The rings stay; the buffers are gone from the table.
    vmm.share(&[vmm.region(RAM, BUFFERS - RAM)]);
    device.gate.open();
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 1);
    let mut answer = [0; 4];
    vmm.memory.read(BUFFERS + 0x100, &mut answer);
    assert_eq!(&answer, b"ping");
}

#[test]
fn regions_are_added_and_removed_one_by_one() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::connect(&service);
    vmm.accept(VERSION_1);
    assert!(vmm.frontend.get_max_mem_slots().unwrap() >= 32);
    let [rings, buffers] = [vmm.region(RAM, BUFFERS - RAM), vmm.region(BUFFERS, 0x1000)];
    vmm.frontend.add_mem_region(&rings).unwrap();
    vmm.frontend.add_mem_region(&buffers).unwrap();
    let queue = vmm.queue(0);
    vmm.set_up(0, &queue, 0);
    vmm.enable(0, true);
    vmm.exchange(0, &queue);
    vmm.frontend.remove_mem_region(&buffers).unwrap();
    vmm.frontend.add_mem_region(&vmm.region(BUFFERS, 0x2000)).unwrap();
    vmm.exchange(0, &queue);
}

#[test]
fn what_is_there_may_be_added_and_what_is_gone_removed() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    let [whole, other] = [vmm.region(RAM, RAM_LEN), vmm.region(RAM + RAM_LEN, 0x1000)];
    vmm.frontend.add_mem_region(&whole).unwrap();
    vmm.exchange(0, &queue);
    vmm.frontend.add_mem_region(&other).unwrap();
    vmm.frontend.remove_mem_region(&other).unwrap();
    vmm.frontend.remove_mem_region(&other).unwrap();
    vmm.exchange(0, &queue);
}

#[test]
fn g09_more_regions_than_there_may_be_end_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::connect(&service);
    let most = vmm.frontend.get_max_mem_slots().unwrap();
    let page =
        |index: u64| VhostUserMemoryRegionInfo { guest_phys_addr: RAM + index * 0x1000, ..vmm.region(RAM, 0x1000) };
    let mut regions = (0..=most).map(page).collect::<Vec<_>>();
    let last = regions.pop().unwrap();

    assert!(send_table(&mut vmm.frontend, &regions, true));
    assert!(vmm.frontend.add_mem_region(&last).is_err());
    assert!(vmm.frontend.get_features().is_err(), "the connection is over");
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
}

#[test]
fn a_region_may_end_within_a_page() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    vmm.share(&[vmm.region(RAM, BUFFERS - RAM + 0x180)]);
    vmm.exchange(0, &queue);
}

#[test]
fn a_buffer_in_a_region_that_was_removed_is_out_of_reach() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    let [rings, buffers] = [vmm.region(RAM, BUFFERS - RAM), vmm.region(BUFFERS, 0x1000)];
    vmm.share(&[rings, buffers]);
    vmm.exchange(0, &queue);
    vmm.frontend.remove_mem_region(&buffers).unwrap();
    vmm.offer(0, &queue);
    eventually("the ring breaks", || vmm.errs[0].read().is_ok());
    assert_eq!(queue.used_idx(), 1);
}

/// Each is a table that no sane front-end sends.
fn foul_tables(vmm: &Vmm, file: i32) -> Vec<(&'static str, Vec<VhostUserMemoryRegionInfo>)> {
    let whole = vmm.region(RAM, RAM_LEN);
    vec![
        ("overlapping", vec![whole, vmm.region(RAM + 0x1000, 0x1000)]),
        ("at an odd address", vec![VhostUserMemoryRegionInfo { guest_phys_addr: RAM + 8, ..whole }]),
        ("at the addresses of grants", vec![VhostUserMemoryRegionInfo { guest_phys_addr: 1 << 63, ..whole }]),
        ("beyond the last address", vec![VhostUserMemoryRegionInfo { guest_phys_addr: !0xfff, ..whole }]),
        ("beyond the file", vec![VhostUserMemoryRegionInfo { memory_size: 1 << 46, ..whole }]),
        ("behind the file", vec![VhostUserMemoryRegionInfo { mmap_offset: 1 << 50, ..whole }]),
        ("at an odd offset", vec![VhostUserMemoryRegionInfo { mmap_offset: 8, ..whole }]),
        ("not in a file", vec![VhostUserMemoryRegionInfo { mmap_handle: file, ..whole }]),
    ]
}

fn send_table(frontend: &mut Frontend, table: &[VhostUserMemoryRegionInfo], one_by_one: bool) -> bool {
    if one_by_one {
        return table.iter().all(|region| frontend.add_mem_region(region).is_ok());
    }
    frontend.set_mem_table(table).is_ok()
}

#[test]
fn g09_a_table_that_cannot_be_used_ends_the_connection_and_the_next_is_served() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    let kinds = foul_tables(&Vmm::connect(&service), pipe.as_raw_fd()).len();
    for (index, one_by_one) in (0..kinds).flat_map(|index| [(index, false), (index, true)]) {
        let mut vmm = Vmm::connect(&service);
        let (what, table) = foul_tables(&vmm, pipe.as_raw_fd()).swap_remove(index);
        assert!(!send_table(&mut vmm.frontend, &table, one_by_one), "{what}");
        assert!(vmm.frontend.get_features().is_err(), "{what}: the connection is over");
    }
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
}

#[test]
fn g09_rings_outside_of_the_table_end_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    for address in [0, user(RAM) - 16, user(RAM + RAM_LEN), !0xf] {
        for area in 0..3 {
            let vmm = Vmm::ready(&service);
            let mut addresses = crate::vmm::addresses(&vmm.queue(0));
            *[&mut addresses.desc_table_addr, &mut addresses.avail_ring_addr, &mut addresses.used_ring_addr][area] =
                address;
            assert!(vmm.frontend.set_vring_addr(0, &addresses).is_err(), "{address:#x}");
        }
    }
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
}

#[test]
fn g09_rings_that_reach_beyond_memory_break_alone() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::ready(&service);
    let (good, bad) = (vmm.queue(0), crate::vmm::addresses(&vmm.queue(1)));
    vmm.set_up(0, &good, 0);
    vmm.enable(0, true);
    vmm.set_up(1, &vmm.queue(1), 0);
    let bad = vhost::VringConfigData { used_ring_addr: user(RAM + RAM_LEN) - 4, ..bad };
    vmm.frontend.set_vring_addr(1, &bad).unwrap();
    vmm.frontend.set_vring_num(1, SIZE).unwrap();
    vmm.enable(1, true);
    eventually("the ring breaks", || vmm.errs[1].read().is_ok());
    assert!(vmm.errs[0].read().is_err());
    vmm.exchange(0, &good);
}
