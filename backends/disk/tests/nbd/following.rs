//! A process that dies, and the one that goes on with what was opened for it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_backend::{Kind, Owner, reach};
use virtio_disk::{Config, Disk};

use crate::disk::{config, eventually, lane};
use crate::harness::{OK, Rig, SECTOR, pattern};
use crate::played::{Export, Played};

/// What the broker keeps: the completed configuration, and what was opened.
fn opened(server: &Played) -> (Config, Vec<OwnedFd>) {
    let owner =
        Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/nonexistent".into() };
    let mut config = config(&server.image());
    let sockets = Disk::open(&mut config, &owner).unwrap();
    (config, sockets)
}

/// A process that is given that.
fn process(config: &Config, sockets: &[OwnedFd]) -> Rig {
    let sockets = sockets.iter().map(|socket| socket.try_clone().unwrap()).collect();
    let device = Disk::make(config, sockets, reach::directly::<Disk>(config)).unwrap();
    lane(&Arc::clone(&device), 0)
}

#[test]
fn a_process_that_follows_connects_anew_and_ends_the_connection_of_the_one_before() {
    let server = Played::honest(Export::default());
    let (config, sockets) = opened(&server);
    let former = process(&config, &sockets);
    assert_eq!((former.write(1, &pattern(SECTOR, 1)), server.connections()), (OK, 1));

    let rig = process(&config, &sockets);
    assert_eq!(rig.read(1, 1).data, pattern(SECTOR, 1));
    assert_eq!((rig.write(2, &pattern(SECTOR, 2)), rig.flush()), (OK, OK));
    assert_eq!((rig.counter("nbd_losses"), rig.counter("errors")), (0, 0));
    // As it still lives here, it hears that its connection has ended.
    eventually("the former loses its server", || former.counter("nbd_losses") == 1);
    assert_eq!(server.stored()[SECTOR..3 * SECTOR], [pattern(SECTOR, 1), pattern(SECTOR, 2)].concat());
}

/// Each of the processes that follow one another, not only the second.
#[test]
fn a_third_process_does_as_the_second() {
    let server = Played::honest(Export::default());
    let (config, sockets) = opened(&server);
    for number in 1..=3 {
        let rig = process(&config, &sockets);
        assert_eq!(rig.write(number, &pattern(SECTOR, 7)), OK);
        assert_eq!(server.connections() as u64, number);
    }
    assert_eq!(server.stored()[SECTOR..4 * SECTOR], pattern(SECTOR, 7).repeat(3));
}
