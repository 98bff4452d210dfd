//! I/O between descriptors and guest memory.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod fixture;

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::net::UnixDatagram;

use fixture::{chunk, contents, guest, pattern, pin};
use guest_memory::{Buffers, CHUNK_SIZE, Part, read_vectored, write_vectored};

fn all(buffers: &Buffers) -> Part<'_> {
    Part { buffers, at: 0, len: buffers.len() }
}

#[test]
fn a_packet_is_split_into_a_head_and_guest_memory_and_back() {
    let (_guest, _cache, view) = guest(4 * CHUNK_SIZE);
    let (here, there) = UnixDatagram::pair().unwrap();
    let (first, second) = (pin(&view, chunk(1) - 10, 20).unwrap(), pin(&view, chunk(2), 100).unwrap());
    let packet = pattern(12 + 20 + 50);
    here.send(&packet).unwrap();
    let mut head = [0; 12];

    assert_eq!(read_vectored(&there, &mut head, &[all(&first), all(&second)]).unwrap(), packet.len());

    assert_eq!((&head[..], contents(&first)), (&packet[..12], packet[12..32].to_vec()));
    assert_eq!(contents(&second)[..50], packet[32..]);
    let parts = [Part { buffers: &first, at: 5, len: 15 }, Part { buffers: &second, at: 0, len: 1000 }];
    assert_eq!(write_vectored(&there, &head, &parts).unwrap(), 12 + 15 + 100);
    let mut back = [0; 200];
    assert_eq!(here.recv(&mut back).unwrap(), 127);
    assert_eq!((&back[..12], &back[12..77]), (&packet[..12], &packet[17..]));
}

#[test]
fn without_a_head_there_is_guest_memory_alone() {
    let (_guest, _cache, view) = guest(CHUNK_SIZE);
    let memory = pin(&view, chunk(0), 5000).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(5000)).unwrap();
    file.rewind().unwrap();

    assert_eq!(read_vectored(&file, &mut [], &[all(&memory)]).unwrap(), 5000);
    assert_eq!(write_vectored(&file, &[], &[all(&memory)]).unwrap(), 5000);

    let mut twice = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut twice).unwrap();
    assert_eq!(twice, [pattern(5000), pattern(5000)].concat());
}

#[test]
fn more_buffers_than_a_call_takes_are_refused_before_anything_moves() {
    let (_guest, _cache, view) = guest(CHUNK_SIZE);
    let memory = pin(&view, chunk(0), 16).unwrap();
    let zero = File::open("/dev/zero").unwrap();
    let mut head = [1; 4];

    let most = vec![all(&memory); 1023];
    assert_eq!(read_vectored(&zero, &mut head, &most).unwrap(), 4 + 1023 * 16);
    head = [1; 4];
    let too_many = vec![all(&memory); 1024];
    assert_eq!(read_vectored(&zero, &mut head, &too_many).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(head, [1; 4]);
}

#[test]
fn what_the_descriptor_says_is_passed_on() {
    let (_guest, _cache, view) = guest(CHUNK_SIZE);
    let memory = pin(&view, chunk(0), 16).unwrap();
    let (here, there) = UnixDatagram::pair().unwrap();
    there.set_nonblocking(true).unwrap();

    assert_eq!(read_vectored(&there, &mut [], &[all(&memory)]).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(here);
    assert!(write_vectored(&there, &[], &[all(&memory)]).is_err());
}
