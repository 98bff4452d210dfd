//! passt, the real one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tempfile::TempDir;
use virtio_backend::Kind;
use virtio_net::Net;

use crate::harness::{Running, config, eventually, ip, isolated, link, owner, refusal, text};

/// Who has 10.9.0.1? tell 10.9.0.2, as passt's peers send it: behind its length.
const WHO_HAS: [u8; 46] = [
    0, 0, 0, 42, // length
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00, 0x16, 0x3e, 0, 0, 7, 0x08, 0x06, // Ethernet
    0, 1, 0x08, 0, 6, 4, 0, 1, // a request about IPv4 over Ethernet
    0x00, 0x16, 0x3e, 0, 0, 7, 10, 9, 0, 2, // from
    0, 0, 0, 0, 0, 0, 10, 9, 0, 1, // about
];

#[test]
fn a_device_on_passt_reaches_the_network() {
    isolated("passt::a_device_on_passt_reaches_the_network", || {
        // passt copies the addresses of an interface with a default route.
        ip("tuntap add dev uplink mode tap");
        ip("address add 10.9.0.2/24 dev uplink");
        ip("link set uplink up");
        ip("route add default via 10.9.0.1");
        let directory = TempDir::new_in("/tmp").unwrap();
        // passt gives up root before it makes its socket.
        std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
        let socket = directory.path().join("passt.socket");
        let _passt = Running::new("passt", &["--foreground", "--quiet", "--socket", text(&socket)]);

        let mut config = config(&format!("passt = '{}'", text(&socket)));
        let mut descriptors = eventually("passt listens", || Net::open(&mut config, &owner()).ok());

        assert_eq!(descriptors.len(), 1);
        assert_eq!((config.tap.as_ref(), link("web-net0")), (None, None), "there is no tap");
        let stream = UnixStream::from(descriptors.remove(0));
        assert!(matches!((&stream).read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock));
        stream.set_nonblocking(false).unwrap();
        (&stream).write_all(&WHO_HAS).unwrap();
        let mut length = [0; 4];
        let mut frame = loop {
            (&stream).read_exact(&mut length).unwrap();
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            (&stream).read_exact(&mut frame).unwrap();
            // It may advertise itself in between.
            if frame[12..14] == [0x08, 0x06] {
                break frame;
            }
        };
        assert_eq!(frame[20..22], [0, 2], "a reply");
        assert_eq!(frame[28..32], [10, 9, 0, 1]);
        frame.truncate(6);
        assert_eq!(frame, [0x00, 0x16, 0x3e, 0, 0, 7]);
        Net::close(&config, &owner());
        assert!(socket.exists(), "the socket is passt's");
    });
}

#[test]
fn without_passt_the_way_to_start_it_is_told() {
    isolated("passt::without_passt_the_way_to_start_it_is_told", || {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("passt.socket");
        let refused = refusal(&format!("passt = '{}'", text(&socket)));
        assert!(refused.contains(&format!("passt --socket {}", text(&socket))), "{refused}");
    });
}
