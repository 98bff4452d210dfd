//! nbdkit and qemu-nbd.

use std::path::Path;
use std::process::Command;

use testkit::driver::Descriptor;
use virtio_disk::{Cache, Config};

use crate::disk::{config, lane, make, offer, read_large, rig, wait_used, why_not, write_large};
use crate::harness::{DATA, IOERR, OK, SECTOR, kind, pattern, segment};
use crate::servers::{Server, is_open};

const MIB: usize = 1 << 20;

fn image(folder: &Path, len: usize) -> String {
    let path = folder.join("disk.img");
    std::fs::write(&path, pattern(len, 1)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_is_written_is_in_the_server_s_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), MIB);
    let server = Server::nbdkit(&["file", &path]);
    for cache in [Cache::Writeback, Cache::Writethrough] {
        let rig = rig(&Config { cache, ..config(&server.image("")) });
        assert_eq!(rig.read(40, 8).data, pattern(MIB, 1)[40 * SECTOR..48 * SECTOR]);
        assert_eq!(rig.write(5, &pattern(SECTOR, 9)), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(16, 8, 0)), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(64, 128, 1)), OK);
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(256, 256, 0)), OK);
        assert_eq!(rig.flush(), OK);
        let stored = std::fs::read(&path).unwrap();
        assert_eq!(stored[5 * SECTOR..6 * SECTOR], pattern(SECTOR, 9));
        assert_eq!(stored[16 * SECTOR..24 * SECTOR], [0; 8 * SECTOR]);
        assert_eq!(stored[64 * SECTOR..192 * SECTOR], [0; 128 * SECTOR]);
        assert_eq!(stored[1024 * SECTOR..], pattern(MIB, 1)[1024 * SECTOR..]);
        rig.assert_alive();
    }
}

#[test]
fn requests_of_32_mib_go_both_ways() {
    // As the server likes them, in pieces of 64 KiB, and in pieces with an end that is not round.
    for filter in [&[][..], &["--filter=blocksize-policy", "blocksize-maximum=64K", "blocksize-error-policy=error"]] {
        let server = Server::nbdkit(&[&["memory", "40M"], filter].concat());
        let rig = rig(&config(&server.image("")));
        let data: Vec<u8> = (0..32 * MIB).map(|at| (at / 7) as u8 ^ (at >> 12) as u8).collect();
        write_large(&rig, 2048, &data);
        assert!(read_large(&rig, 2048, 32 * MIB) == data);
        assert_eq!(rig.read(2047, 1).data, [0; SECTOR]);
        assert_eq!(rig.counter("nbd_losses"), 0);
    }
}

#[test]
fn requests_overtake_each_other() {
    // 85 requests of three descriptors are a full queue.
    let server = Server::nbdkit(&["--filter=delay", "memory", "1M", "rdelay=20ms"]);
    let rig = rig(&config(&server.image("")));
    for request in 0..85 {
        rig.memory.write(crate::disk::buffer(request), &pattern(SECTOR, request as u8));
        offer(&rig, request, kind::OUT, request.into());
    }
    rig.kick();
    wait_used(&rig, 85);
    for request in 0..85 {
        offer(&rig, request, kind::IN, u64::from(84 - request));
    }
    rig.kick();
    wait_used(&rig, 170);
    for request in 0..85 {
        assert_eq!(rig.status(3 * request), OK);
        assert_eq!(rig.bytes(crate::disk::buffer(request), SECTOR), pattern(SECTOR, 84 - request as u8));
    }
}

#[test]
fn a_queue_of_256_requests_is_worked() {
    let server = Server::nbdkit(&["memory", "1M"]);
    let rig = rig(&config(&server.image("")));
    // Of one indirect descriptor each, so that there may be as many as the queue has.
    let table = |request: u16| DATA + (8 << 20) + 64 * u64::from(request);
    for round in 0..4u8 {
        for request in 0..256u16 {
            let data = crate::disk::buffer(request);
            rig.memory.write(data, &pattern(SECTOR, round ^ request as u8));
            let chain = [
                Descriptor::readable(rig.header(request, kind::OUT, request.into()), 16).then(1),
                Descriptor::readable(data, SECTOR as u32).then(2),
                Descriptor::writable(rig.status_byte(request), 1),
            ];
            rig.offer(request, &[rig.queue.write_indirect(table(request), &chain)]);
        }
        rig.kick();
        wait_used(&rig, 256 * (u16::from(round) + 1));
    }
    let stored = read_large(&rig, 0, 256 * SECTOR);
    let expected: Vec<u8> = (0..=255).flat_map(|request| pattern(SECTOR, 3 ^ request)).collect();
    assert!(stored == expected);
}

#[test]
fn two_queues_have_a_connection_each_and_see_each_other_s_writes() {
    let server = Server::nbdkit(&["memory", "1M"]);
    let device = make(&Config { queues: Some(2), ..config(&server.image("")) }).unwrap();
    assert_eq!(device.identity().queue_sizes.len(), 2);
    let (first, second) = (lane(&device, 0), lane(&device, 1));
    for round in 0..50u8 {
        assert_eq!(first.write(round.into(), &pattern(SECTOR, round)), OK);
        assert_eq!(second.read(round.into(), 1).data, pattern(SECTOR, round));
        assert_eq!(second.write(1000, &pattern(SECTOR, round)), OK);
        assert_eq!(second.flush(), OK);
        assert_eq!(first.read(1000, 1).data, pattern(SECTOR, round));
    }
}

#[test]
fn what_the_server_fails_is_an_error_of_the_request() {
    let filter = ["--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"];
    let server = Server::nbdkit(&[&filter[..], &["error-zero=EIO", "error-zero-rate=100%"]].concat());
    let rig = rig(&config(&server.image("")));
    assert_eq!(rig.write(0, &[1; SECTOR]), IOERR);
    assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(0, 8, 0)), IOERR);
    assert_eq!(rig.counter("host_failures"), 2);
    rig.assert_alive();
}

#[test]
fn zeroes_are_written_where_the_server_cannot_make_them() {
    let server = Server::nbdkit(&["--filter=nozero", "memory", "1M", "zeromode=none"]);
    let rig = rig(&Config { cache: Cache::Writethrough, ..config(&server.image("")) });
    assert_eq!(rig.write(0, &pattern(64 * SECTOR, 2)), OK);
    assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(8, 8, 0)), OK);
    assert_eq!(rig.flush(), OK);
    let mut expected = pattern(64 * SECTOR, 2);
    expected[8 * SECTOR..16 * SECTOR].fill(0);
    assert_eq!(rig.read(0, 64).data, expected);
}

#[test]
fn a_server_on_tcp_is_reached() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let arguments =
        ["--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", &format!("--port={port}"), "memory", "1M"];
    let mut server = Command::new("nbdkit").args(arguments).spawn().unwrap();
    crate::disk::eventually("the server listens", || is_open(port));
    let rig = rig(&config(&format!("nbd://localhost:{port}")));
    assert_eq!(rig.write(5, &pattern(100 * SECTOR, 3)), OK);
    assert_eq!(rig.read(5, 100).data, pattern(100 * SECTOR, 3));
    drop(rig);
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn an_export_is_found_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, seed) in [("alpha", 1), ("beta", 2)] {
        std::fs::write(folder.path().join(name), pattern(MIB, seed)).unwrap();
    }
    let directory = format!("dir={}", folder.path().display());
    let server = Server::nbdkit(&["file", &directory]);
    for (name, seed) in [("alpha", 1), ("beta", 2)] {
        let rig = rig(&config(&server.image(name)));
        assert_eq!(rig.read(9, 1).data, pattern(MIB, seed)[9 * SECTOR..10 * SECTOR]);
    }
    assert!(why_not(&config(&server.image("gamma"))).contains(&server.image("gamma")));
}

#[test]
fn qemu_s_server_serves_raw_and_qcow2_images() {
    let folder = tempfile::tempdir().unwrap();
    let raw = image(folder.path(), MIB);
    let qcow2 = folder.path().join("disk.qcow2").display().to_string();
    let made = Command::new("qemu-img").args(["convert", "-q", "-f", "raw", "-O", "qcow2", &raw, &qcow2]).status();
    assert!(made.unwrap().success());
    for (format, path) in [("raw", &raw), ("qcow2", &qcow2)] {
        let server = Server::qemu_nbd(&["--format", format, "--discard=unmap", path]);
        // Of one client at a time: each lane and each life has to make do with the same connection.
        let mut rig = rig(&config(&server.image("web")));
        for _ in 0..3 {
            assert_eq!(rig.read(40, 8).data, pattern(MIB, 1)[40 * SECTOR..48 * SECTOR], "{format}");
            rig = rig.reset();
        }
        assert_eq!(rig.write(5, &pattern(SECTOR, 9)), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(16, 8, 1)), OK);
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(1024, 1024, 0)), OK);
        assert_eq!(rig.flush(), OK);
        assert_eq!(rig.read(5, 1).data, pattern(SECTOR, 9));
        assert_eq!(rig.read(16, 8).data, [0; 8 * SECTOR]);
        drop(rig);
        assert!(why_not(&config(&server.image("other"))).contains("no export of the name \"other\""));
    }
}

#[test]
fn qemu_s_server_says_that_an_export_is_read_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), MIB);
    let server = Server::qemu_nbd(&["--format=raw", "--read-only", "--shared=4", &path]);
    assert!(why_not(&config(&server.image("web"))).contains("read_only = true"));
    let device = make(&Config { read_only: true, queues: Some(2), ..config(&server.image("web")) }).unwrap();
    for index in 0..device.identity().queue_sizes.len() {
        let rig = lane(&device, index);
        assert_eq!(rig.read(3, 1).data, pattern(MIB, 1)[3 * SECTOR..4 * SECTOR]);
        assert_eq!(rig.write(3, &[0; SECTOR]), IOERR);
    }
}
