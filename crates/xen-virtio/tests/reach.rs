//! What a worker that may not connect anywhere is connected to, and how little it gets by asking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]
#![allow(unreachable_pub, reason = "nothing outside could reach into a test")]

mod rig;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use rig::{Rig, TestWorker, Workers, virtio_id};
use xen_virtio::channel::ChannelError;
use xen_virtio::model::{DeviceId, Model};
use xen_virtio::protocol::{Answer, Order, REACHES_MAX, Unreached};

const VSOCK: &str = "virtio,device13";
const RNG: &str = "virtio,device4";

/// A guest with a socket device: its worker, and what the guest's connections to a port of the host go to.
fn with_sockets(rig: &Rig, workers: &Workers, domid: u16) -> (TestWorker, impl Fn(u32) -> PathBuf) {
    rig.create_virtio(domid, 0, VSOCK);
    let worker = workers.next();
    worker.told_to_reserve(0);
    let Model::Vsock(config) = worker.attach().model else { panic!("a socket device") };
    let socket = config.socket.expect("a completed configuration");
    (worker, move |port| format!("{}_{port}", socket.display()).into())
}

fn ask(worker: &TestWorker, id: DeviceId, ticket: u64, number: u32) {
    worker.say(&Answer::Reach { id, ticket, number });
}

fn answer(worker: &TestWorker) -> (u64, Result<(), Unreached>, Vec<OwnedFd>) {
    match worker.order_to_do() {
        (Order::Reached { ticket, outcome, .. }, descriptors) => (ticket, outcome, descriptors),
        (other, _) => panic!("told {other:?}"),
    }
}

/// As what a device would see.
fn refusal(worker: &TestWorker, ticket: u64) -> ErrorKind {
    let (answered, outcome, descriptors) = answer(worker);
    assert_eq!((answered, descriptors.len()), (ticket, 0));
    std::io::Error::from(outcome.unwrap_err()).kind()
}

#[test]
fn a_worker_gets_the_connection_that_the_configuration_of_its_device_names() {
    let (rig, workers) = Rig::start();
    let (worker, place_of) = with_sockets(&rig, &workers, 5);
    let listener = UnixListener::bind(place_of(7)).unwrap();

    ask(&worker, virtio_id(0), 41, 7);
    let (ticket, outcome, mut descriptors) = answer(&worker);
    assert_eq!((ticket, outcome, descriptors.len()), (41, Ok(()), 1));
    let mut device = UnixStream::from(descriptors.remove(0));
    let (mut host, _) = listener.accept().unwrap();
    device.write_all(b"from the guest").unwrap();
    drop(device);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the guest");
}

#[test]
fn why_there_is_none_is_told_apart() {
    let (rig, workers) = Rig::start();
    let (worker, place_of) = with_sockets(&rig, &workers, 5);
    drop(UnixListener::bind(place_of(8)).unwrap());
    ask(&worker, virtio_id(0), 1, 7);
    assert_eq!(refusal(&worker, 1), ErrorKind::NotFound);
    ask(&worker, virtio_id(0), 2, 8);
    assert_eq!(refusal(&worker, 2), ErrorKind::ConnectionRefused);
}

#[test]
fn a_device_that_the_worker_was_not_given_or_that_connects_nowhere_is_connected_to_nothing() {
    let (rig, workers) = Rig::start();
    let (_other, place_of) = with_sockets(&rig, &workers, 6);
    let listener = UnixListener::bind(place_of(7)).unwrap();
    listener.set_nonblocking(true).unwrap();
    rig.create_virtio(5, 1, RNG);
    let worker = workers.next();
    worker.told_to_reserve(1);
    worker.attach();

    // The other guest's device has this number.
    ask(&worker, virtio_id(0), 1, 7);
    assert!(answer(&worker).1.is_err());
    ask(&worker, virtio_id(1), 2, 7);
    assert_eq!(refusal(&worker, 2), ErrorKind::Other);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn as_many_questions_as_a_worker_may_ask_at_a_time_are_answered_all() {
    let (rig, workers) = Rig::start();
    let (worker, place_of) = with_sockets(&rig, &workers, 5);
    let listener = UnixListener::bind(place_of(7)).unwrap();
    let most = u64::try_from(REACHES_MAX).unwrap();
    for round in 0..4 {
        (0..most).for_each(|ticket| ask(&worker, virtio_id(0), round * most + ticket, 7));
        let mut tickets: Vec<_> =
            (0..most).map(|_| answer(&worker)).map(|(ticket, outcome, _)| (ticket, outcome)).collect();
        tickets.sort_by_key(|(ticket, _)| *ticket);
        assert_eq!(tickets, (0..most).map(|ticket| (round * most + ticket, Ok(()))).collect::<Vec<_>>());
        (0..most).for_each(|_| drop(listener.accept().unwrap()));
    }
}

#[test]
fn a_worker_that_asks_a_million_times_is_killed_and_others_are_served() {
    let (rig, workers) = Rig::start();
    let (worker, _) = with_sockets(&rig, &workers, 5);
    let asking = thread::spawn(move || {
        for ticket in 0..1_000_000 {
            match worker.channel.send(&Answer::Reach { id: virtio_id(0), ticket, number: 7 }, &[]) {
                Ok(()) => {}
                Err(ChannelError::Stuffed) if worker.is_killed() => return,
                Err(ChannelError::Stuffed) => thread::yield_now(),
                Err(_) => return worker.wait_until_killed(),
            }
        }
        worker.wait_until_killed();
    });
    let (other, place_of) = with_sockets(&rig, &workers, 6);
    let listener = UnixListener::bind(place_of(7)).unwrap();
    ask(&other, virtio_id(0), 1, 7);
    assert_eq!(answer(&other).1, Ok(()));
    listener.accept().unwrap();
    asking.join().unwrap();
}
