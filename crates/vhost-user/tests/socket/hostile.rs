//! What no sane front-end sends, as bytes and descriptors. Each costs its connection, and the next is served as ever.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use testkit::device::{Behaviour, eventually};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::service::Service;
use crate::vmm::{PROTOCOL_FEATURES, VERSION_1, Vmm};

/// A header's flags: version 1.
const PLAIN: u32 = 1;

fn message(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    [request, flags, size].into_iter().flat_map(u32::to_ne_bytes).chain(payload.iter().copied()).collect()
}

fn request(code: FrontendReq, payload: &[u8]) -> Vec<u8> {
    message(code.into(), PLAIN, payload.len() as u32, payload)
}

fn send_with(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

/// Waits for the device to close the connection, and passes over what it answers before.
fn assert_let_go(mut socket: UnixStream, what: &str) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answers = Vec::new();
    match socket.read_to_end(&mut answers) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}"),
    }
}

fn assert_serves(service: &Service) {
    let (vmm, queue) = Vmm::running(service);
    vmm.exchange(0, &queue);
}

#[test]
fn g09_messages_that_are_none_end_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let u64s = |value: u64| value.to_ne_bytes();
    let kinds = [
        ("garbage", vec![0xa5; 64]),
        ("zeros", vec![0; 64]),
        ("an unknown request", message(999, PLAIN, 0, &[])),
        ("another version", message(1, 2, 0, &[])),
        ("a reply", message(1, PLAIN | 4, 0, &[])),
        ("reserved flags", message(1, PLAIN | 1 << 9, 0, &[])),
        ("an endless payload", message(2, PLAIN, u32::MAX, &u64s(0))),
        ("a large payload", message(2, PLAIN, 5000, &[0; 5000])),
        ("a payload too many", message(1, PLAIN, 8, &u64s(0))),
        ("a payload too short", request(FrontendReq::SET_FEATURES, &[0; 4])),
        ("memory without a table", request(FrontendReq::SET_MEM_TABLE, &[])),
        ("a table of more regions than it has", request(FrontendReq::SET_MEM_TABLE, &u64s(8))),
        ("a request that was not agreed on", request(FrontendReq::GET_QUEUE_NUM, &[])),
        ("a descriptor that is missing", request(FrontendReq::SET_VRING_KICK, &u64s(0))),
        ("a log", request(FrontendReq::SET_LOG_BASE, &[0; 16])),
        ("postcopy", request(FrontendReq::POSTCOPY_ADVISE, &[])),
        ("a table of in-flight requests", request(FrontendReq::GET_INFLIGHT_FD, &[0; 24])),
        ("a protocol feature that was not offered", request(FrontendReq::SET_PROTOCOL_FEATURES, &u64s(1 << 1))),
        ("a place that no ring has", request(FrontendReq::SET_VRING_BASE, &u64s(1 << 48))),
    ];
    for (what, bytes) in kinds {
        let socket = service.connect();
        send_with(&socket, &bytes, &[]);
        assert_let_go(socket, what);
    }
    assert_serves(&service);
}

#[test]
fn g09_descriptors_in_wrong_numbers_or_places_end_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fds = |count: usize| vec![event.as_fd(); count];
    let index = 0u64.to_ne_bytes();
    let kinds = [
        ("where none belongs", request(FrontendReq::GET_FEATURES, &[]), 1),
        ("two for one", request(FrontendReq::SET_VRING_CALL, &index), 2),
        ("too many for any", request(FrontendReq::SET_MEM_TABLE, &[0; 8]), 32),
        ("one with the flag for none", request(FrontendReq::SET_VRING_ERR, &0x100u64.to_ne_bytes()), 1),
    ];
    for (what, bytes, count) in kinds {
        let socket = service.connect();
        send_with(&socket, &bytes, &fds(count));
        assert_let_go(socket, what);
    }
    assert_serves(&service);
}

#[test]
fn g09_more_descriptors_than_a_message_can_have_cost_nobody_else_anything() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let socket = service.connect();
    send_with(&socket, &request(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes()), &[event.as_fd(); 40]);
    drop(socket);
    assert_serves(&service);
}

#[test]
fn g10_a_ring_that_the_device_has_not_ends_the_connection() {
    let (service, _device) = Service::with(Behaviour::Echo);
    type Ask = fn(&Vmm) -> bool;
    // The device has two.
    let kinds: [Ask; 6] = [
        |vmm| vmm.frontend.set_vring_num(2, 8).is_ok(),
        |vmm| vmm.frontend.set_vring_base(3, 0).is_ok(),
        |vmm| vmm.frontend.get_vring_base(2).is_ok(),
        |vmm| vmm.frontend.set_vring_kick(3, &vmm.kicks[0]).is_ok(),
        |vmm| vmm.frontend.set_vring_call(2, &vmm.calls[0]).is_ok(),
        |vmm| vmm.frontend.clone().set_vring_enable(2, true).is_ok(),
    ];
    for ask in kinds {
        assert!(!ask(&Vmm::ready(&service)));
    }
    assert_serves(&service);
}

#[test]
fn g10_a_ring_cannot_be_kicked_before_there_is_memory() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::connect(&service);
    vmm.accept(VERSION_1);
    vmm.frontend.set_vring_kick(0, &vmm.kicks[0]).unwrap();
    vmm.enable(0, true);
    vmm.kicks[0].write(1).unwrap();
    assert_eq!(device.starts.load(SeqCst), 0);
    assert!(vmm.frontend.set_vring_addr(0, &crate::vmm::addresses(&vmm.queue(0))).is_err());
    assert_serves(&service);
}

#[test]
fn g09_what_is_no_eventfd_is_not_taken_for_one() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (pipe, _read) = rustix::pipe::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    for code in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL, FrontendReq::SET_VRING_ERR] {
        for foul in [pipe.as_fd(), file.as_fd()] {
            let socket = service.connect();
            send_with(&socket, &request(code, &0u64.to_ne_bytes()), &[foul]);
            assert_let_go(socket, "no eventfd");
        }
    }
    assert_serves(&service);
}

#[test]
fn a_channel_that_is_no_socket_ends_the_connection() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::ready(&service);
    assert!(vmm.frontend.set_backend_request_fd(&tempfile::tempfile().unwrap()).is_err());
    device.signals.get().unwrap().config_changed();
    drop(vmm);
    assert_serves(&service);
}

#[test]
fn g09_what_vhost_passes_on_without_an_agreement_is_refused_here() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (display, _other) = UnixStream::pair().unwrap();
    let socket = service.connect();
    send_with(&socket, &request(FrontendReq::GPU_SET_SOCKET, &[]), &[display.as_fd()]);
    assert_let_go(socket, "a display");

    // Where a state is to be saved to; the answer to which has a place for a refusal.
    let (pipe, _read) = rustix::pipe::pipe().unwrap();
    let mut socket = service.connect();
    send_with(&socket, &request(FrontendReq::SET_DEVICE_STATE_FD, &[0; 8]), &[pipe.as_fd()]);
    send_with(&socket, &request(FrontendReq::CHECK_DEVICE_STATE, &[]), &[]);
    let mut answers = [0; 2 * 20];
    socket.read_exact(&mut answers).unwrap();
    let (answers, _) = answers.as_chunks::<20>();
    assert!(answers.iter().all(|answer| answer[12] == 1), "{answers:?}");
    drop(socket);
    assert_serves(&service);
}

#[test]
fn a_call_that_is_full_and_would_block_stops_nobody() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    vmm.calls[0] = EventFd::new(0).unwrap();
    vmm.calls[0].write(u64::MAX - 1).unwrap();
    vmm.frontend.set_vring_call(0, &vmm.calls[0]).unwrap();
    (0..10).for_each(|_| vmm.exchange(0, &queue));
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 10);
}

#[test]
fn an_eventfd_of_many_uses_serves_them_all() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    let one = EventFd::new(EFD_NONBLOCK).unwrap();
    vmm.frontend.set_vring_call(0, &one).unwrap();
    vmm.frontend.set_vring_err(0, &one).unwrap();
    vmm.kicks[0] = one;
    vmm.frontend.set_vring_kick(0, &vmm.kicks[0]).unwrap();
    // The device wakes itself with each answer; that is the front-end's wish.
    vmm.exchange(0, &queue);
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 1);
}

#[test]
fn a_front_end_that_stays_in_the_middle_of_a_message_does_not_keep_the_device_from_stopping() {
    let header = request(FrontendReq::SET_FEATURES, &0u64.to_ne_bytes());
    for len in [1, 4, 11, 12, 15] {
        let (mut service, _device) = Service::with(Behaviour::Echo);
        let mut socket = service.connect();
        socket.write_all(&header[..len]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        service.stopper().stop();
        service.wait();
    }
}

#[test]
fn a_message_may_come_in_pieces() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let ask = request(FrontendReq::GET_FEATURES, &[]);
    let mut socket = service.connect();
    for piece in ask.chunks(5) {
        socket.write_all(piece).unwrap();
        // Long enough for the device to look, and to find it incomplete.
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut answer = [0; 20];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], ask[..4]);
}

#[test]
fn a_front_end_that_reads_no_answers_does_not_keep_the_device_from_stopping() {
    let (mut service, _device) = Service::with(Behaviour::Echo);
    let mut socket = service.connect();
    socket.set_nonblocking(true).unwrap();
    let ask = request(FrontendReq::GET_FEATURES, &[]);
    let mut asked = 0;
    // Until the device does not take another: then its answers fill the socket.
    while socket.write_all(&ask).is_ok() || asked < 1000 {
        asked += 1;
        std::thread::yield_now();
    }
    service.stopper().stop();
    service.wait();
}

#[test]
fn going_in_the_middle_of_anything_is_no_trouble() {
    let (service, device) = Service::with(Behaviour::Echo);
    let features = request(FrontendReq::SET_FEATURES, &(VERSION_1 | PROTOCOL_FEATURES).to_ne_bytes());
    for len in 0..features.len() {
        service.connect().write_all(&features[..len]).unwrap();
    }
    for _ in 0..20 {
        let (vmm, queue) = Vmm::running(&service);
        (0..3).for_each(|_| vmm.offer(0, &queue));
    }
    assert_serves(&service);
    eventually("all workers are gone", || device.workers.load(SeqCst) == 0);
}
