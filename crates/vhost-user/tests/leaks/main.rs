//! Nothing of a connection stays behind. In a process of its own, because it counts what a process has.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    unreachable_pub,
    reason = "a test reports by panicking, and uses a part of what it shares with others"
)]

#[path = "../socket/service.rs"]
mod service;
#[path = "../socket/vmm.rs"]
mod vmm;

use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use service::Service;
use testkit::device::{Behaviour, eventually};
use testkit::driver::RawQueue;
use testkit::memory::FakeForeignMemory;
use vmm::{RAM, RAM_LEN, SIZE, VERSION_1, Vmm};

/// One test at a time.
static PROCESS: Mutex<()> = Mutex::new(());

/// How much this process has: descriptors, lanes, mappings of the guest's memory.
fn holdings() -> [usize; 3] {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    // One that has ended meanwhile has no name any more.
    let names = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    [
        fs::read_dir("/proc/self/fd").unwrap().count(),
        names.filter(|name| name.starts_with("test.")).count(),
        maps.lines().filter(|line| line.contains("memfd:guest")).count(),
    ]
}

fn assert_back_to(before: [usize; 3]) {
    eventually("all else is gone", || holdings() == before);
}

#[test]
fn a_thousand_connections_leave_no_descriptor_thread_or_mapping() {
    let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let (service, _device) = Service::with(Behaviour::Echo);
    let memory = FakeForeignMemory::new(&[(RAM, RAM_LEN)]);
    let connect = || {
        let mut vmm = Vmm::on(service.connect(), memory.clone());
        let queue = RawQueue::new(memory.clone(), RAM, SIZE);
        queue.clear();
        vmm.accept(VERSION_1);
        vmm.share(&[vmm.region(RAM, RAM_LEN)]);
        vmm.set_up(0, &queue, 0);
        vmm.enable(0, true);
        vmm.exchange(0, &queue);
    };
    let before = holdings();
    (0..1000).for_each(|_| connect());
    assert_back_to(before);
}

#[test]
fn tables_that_were_replaced_do_not_stay_mapped() {
    let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let (service, _device) = Service::with(Behaviour::Echo);
    let (vmm, queue) = Vmm::running(&service);
    vmm.exchange(0, &queue);
    let before = holdings();
    for _ in 0..200 {
        vmm.exchange(0, &queue);
        vmm.share(&[vmm.region(RAM, RAM_LEN)]);
    }
    assert_back_to(before);
}

#[test]
fn descriptors_that_no_message_can_have_are_closed() {
    let _alone = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let (service, _device) = Service::with(Behaviour::Echo);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let before = holdings();
    for count in [1, 2, 31, 32, 33, 100] {
        for header in [[1, 1, 0], [13, 1, 8], [21, 1, 0], [999, 1, 0]] {
            let bytes: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).chain([0; 8]).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = vec![event.as_fd(); count];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let socket = service.connect();
            sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        }
    }
    assert_back_to(before);
}
