//! What is told when a disk over NBD is made: by `xl create`, that is.

use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use virtio_backend::Kind;
use virtio_disk::{Cache, Config, Disk};

use crate::disk::{config, lane, make, rig, why_not};
use crate::harness::{OK, SECTOR, kind, pattern, segment};
use crate::played::{
    CAPABLE, Export, MULTI_CONN, Played, READ, READ_ONLY, WRITE, export_info, greeting, option_reply, take, take_option,
};

#[test]
fn a_disk_has_the_measures_of_its_export() {
    let export = Export { blocks: Some([4096, 65536, 1 << 25]), ..Export::default() };
    let device = make(&config(&Played::honest(export).image())).unwrap();
    let mut space = [0; 60];
    device.read_config(0, &mut space);
    assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), (1 << 20) / 512);
    assert_eq!(u32::from_le_bytes(space[20..24].try_into().unwrap()), 4096, "blk_size");
    assert_eq!(u32::from_le_bytes(space[28..32].try_into().unwrap()), 16, "opt_io_size, in blocks");
    let (version_1, blk_size) = (1 << 32, 1 << 6);
    assert!(device.accepts(version_1 | blk_size));
    assert!(!device.accepts(version_1), "a driver that would work in sectors");
}

#[test]
fn every_cache_mode_is_possible() {
    for cache in [Cache::Writeback, Cache::Writethrough, Cache::None] {
        let server = Played::honest(Export::default());
        let rig = rig(&Config { cache, ..config(&server.image()) });
        assert_eq!(rig.write(3, &pattern(SECTOR, 9)), OK);
        assert_eq!(rig.read(3, 1).data, pattern(SECTOR, 9));
    }
}

#[test]
fn there_are_as_many_connections_as_queues_where_the_server_allows_it() {
    for (flags, connections) in [(CAPABLE | MULTI_CONN, 3), (CAPABLE, 1)] {
        let server = Played::honest(Export { flags, ..Export::default() });
        let device = make(&Config { queues: Some(3), ..config(&server.image()) }).unwrap();
        assert_eq!(device.identity().queue_sizes.len(), connections);
        let lanes: Vec<_> = (0..connections).map(|index| lane(&device, index)).collect();
        for lane in &lanes {
            assert_eq!(lane.read(1, 1).data, pattern(1 << 20, 7)[SECTOR..2 * SECTOR]);
        }
        drop(lanes);
        assert_eq!(server.connections(), connections);
    }
}

#[test]
fn a_reset_keeps_the_connection() {
    let server = Played::honest(Export::default());
    let mut rig = rig(&config(&server.image()));
    for _ in 0..20 {
        assert_eq!(rig.read(0, 1).status, OK);
        rig = rig.reset();
    }
    assert_eq!((server.connections(), rig.counter("nbd_losses")), (1, 0));
}

#[test]
fn a_server_that_only_reads_and_writes_is_asked_for_nothing_else() {
    const HAS_FLAGS: u16 = 1;
    for cache in [Cache::Writeback, Cache::Writethrough] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let server = Played::new(|_| Export { flags: HAS_FLAGS, ..Export::default() }, {
            let seen = Arc::clone(&seen);
            move |mut session, _| {
                while let Some(request) = session.request() {
                    seen.lock().unwrap().push((request.flags, request.kind));
                    session.answer(&request);
                }
            }
        });
        let rig = rig(&Config { cache, ..config(&server.image()) });
        assert_eq!(rig.write(3, &pattern(SECTOR, 9)), OK);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(4, 8, 0)), OK);
        assert_eq!((rig.flush(), rig.read(3, 1).status), (OK, OK));
        drop(rig);
        assert_eq!(*seen.lock().unwrap(), [(0, WRITE), (0, WRITE), (0, READ)]);
        assert_eq!(server.stored()[4 * SECTOR..12 * SECTOR], [0; 8 * SECTOR]);
    }
}

#[test]
fn mistakes_are_told_at_once_and_in_words() {
    let read_only = Played::honest(Export { flags: CAPABLE | READ_ONLY, ..Export::default() });
    let odd = Played::honest(Export { size: 1000, ..Export::default() });
    let huge = Played::honest(Export { blocks: Some([65536, 65536, 1 << 25]), ..Export::default() });
    let told = [
        (read_only.image(), "read_only = true"),
        (odd.image(), "not a multiple of 512"),
        (huge.image(), "blocksize"),
        ("nbd+unix:///web?socket=/nonexistent/socket".into(), "Nobody can be reached at /nonexistent/socket"),
        ("nbd://127.0.0.1:1/web".into(), "Nobody can be reached at 127.0.0.1, port 1"),
        ("nbd://nonexistent.invalid/web".into(), "The host nonexistent.invalid cannot be found"),
        ("nbds://127.0.0.1/web".into(), "tunnel"),
    ];
    for (image, words) in told {
        let error = why_not(&config(&image));
        assert!(error.contains(words) && error.contains(&image), "{error}");
    }
    assert!(make(&Config { read_only: true, ..config(&read_only.image()) }).is_ok());
}

#[test]
fn a_wrong_address_is_refused_before_anybody_is_asked() {
    assert!(Disk::check(&config("nbd://host/web")).is_ok());
    assert!(Disk::check(&config("nbd://host:port/web")).unwrap_err().to_string().contains("port"));
}

/// What is said of a server that behaves so in the handshake.
fn why_not_with(act: impl Fn(&mut std::os::unix::net::UnixStream) -> Option<()> + Send + Sync + 'static) -> String {
    let server = Played::raw(0, move |mut stream, _, _| {
        act(&mut stream);
        // It stays as long as its client does.
        while take::<1>(&mut stream).is_some() {}
    });
    why_not(&config(&server.image()))
}

/// What a server answers to an option.
type Answer = dyn Fn(u32) -> Vec<u8> + Send + Sync;

/// What is said of a server that answers the question about the export so.
fn why_not_when(answer: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> String {
    why_not_with(move |stream| {
        stream.write_all(&greeting()).ok()?;
        take::<4>(stream)?;
        let (option, _) = take_option(stream)?;
        stream.write_all(&answer(option)).ok()
    })
}

#[test]
fn what_greets_otherwise_is_refused() {
    let told: [(&[u8], &str); 5] = [
        (b"220 smtp.example ESMTP Postfix\r\n", "is it one?"),
        (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0\0\0\0\0\0\0", "oldstyle"),
        (b"NBDMAGICNBDMAGIC\0\x03", "neither newstyle nor oldstyle"),
        (b"NBDMAGICIHAVEOPT\0\0", "older than the fixed newstyle"),
        (b"NBDMAGICIHAVEOPT\0\x02", "older than the fixed newstyle"),
    ];
    for (greeting, words) in told {
        let error = why_not_with(move |stream| stream.write_all(greeting).ok());
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_refusal_says_what_the_server_says() {
    let told = [
        (1u32, "the option GO"),
        (2, "(no web today)"),
        (5, "wants TLS"),
        (6, "no export of the name \"web\" (no web today)"),
        (7, "ended the connection"),
        (77, "0x8000004d"),
    ];
    for (code, words) in told {
        let error = why_not_when(move |option| option_reply(option, 1 << 31 | code, b"no web\x1b\n today"));
        assert!(error.contains(words), "{error}");
        assert!(!error.contains('\x1b'), "{error}");
    }
    let error = why_not_when(|option| option_reply(option, 1 << 31 | 2, &[]));
    assert!(error.contains("its policy forbids it"), "{error}");
}

#[test]
fn a_server_that_goes_wrong_when_it_is_begun_with_is_refused() {
    const STRUCTURED_REPLY: u32 = 8;
    let error = why_not_with(|stream| {
        stream.write_all(&greeting()).ok()?;
        take::<4>(stream)?;
        loop {
            let (option, _) = take_option(stream)?;
            let info = option_reply(option, 3, &export_info(&Export::default()));
            let end = if option == STRUCTURED_REPLY { Vec::new() } else { option_reply(option, 1, &[]) };
            stream.write_all(&[info, end].concat()).ok()?;
        }
    });
    assert!(error.contains("something of another"), "{error}");
}

#[test]
fn a_server_that_lies_about_its_export_is_refused() {
    let export = export_info(&Export::default());
    let infos = |option, count: usize, info: &[u8]| option_reply(option, 3, info).repeat(count);
    let lies: Vec<(Box<Answer>, &str)> = vec![
        (Box::new(|option| option_reply(option, 1, &[])), "nothing of its export's size"),
        (Box::new(|option| option_reply(option + 1, 1, &[])), "was not asked"),
        (Box::new(|_| vec![0xff; 64]), "was not asked"),
        (Box::new(|option| option_reply(option, 2, &[])), "something of another"),
        (Box::new(|option| option_reply(option, 3, &[0])), "cut short"),
        (Box::new(move |option| infos(option, 1, &export[..11])), "cut short"),
        (Box::new(move |option| infos(option, 1, &[0, 3, 1])), "cut short"),
        (Box::new(move |option| infos(option, 1000, &[0, 1, b'a'])), "does not come to an end"),
        (
            Box::new(|option| {
                let mut reply = option_reply(option, 3, &[]);
                reply[16..].copy_from_slice(&u32::MAX.to_be_bytes());
                reply
            }),
            "longer than any",
        ),
    ];
    for (answer, words) in lies {
        let error = why_not_when(answer);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_server_that_takes_its_time_is_not_waited_for_for_ever() {
    let error = why_not_with(|stream| {
        for byte in greeting().iter().cycle() {
            stream.write_all(&[*byte]).ok()?;
            thread::sleep(Duration::from_millis(400));
        }
        Some(())
    });
    assert!(error.contains("did not answer within 5 s"), "{error}");
}

#[test]
fn an_address_with_a_host_reaches_it() {
    // A server on TCP, in front of the one on a unix socket.
    let server = Played::honest(Export::default());
    for (listen, host) in [("127.0.0.1:0", "localhost"), ("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        let Ok(listener) = TcpListener::bind(listen) else {
            eprintln!("skipped: this host has no {listen}");
            continue;
        };
        let port = listener.local_addr().unwrap().port();
        let path = server.path();
        thread::spawn(move || {
            let (near, _) = listener.accept().unwrap();
            let far = std::os::unix::net::UnixStream::connect(path).unwrap();
            let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut near_in, &mut far_out));
            let _ = std::io::copy(&mut &far, &mut &near);
        });
        let rig = rig(&config(&format!("nbd://{host}:{port}/web")));
        assert_eq!(rig.write(5, &pattern(4 * SECTOR, 3)), OK);
        assert_eq!(rig.read(5, 4).data, pattern(4 * SECTOR, 3));
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(8, 8, 0)), OK);
        assert_eq!(rig.flush(), OK);
    }
}
