//! What a ring of io_uring does is seen by no filter of system calls. The walls behind that have to hold by themselves.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use testkit::cases;

use crate::harness::{End, attempt};

/// Does one operation by a ring. What it returns: a descriptor, or a number of bytes.
fn done(operation: squeue::Entry) -> Result<i32, Errno> {
    let mut ring = IoUring::new(2).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    // SAFETY: what the operation refers to outlives the wait for its end.
    unsafe { ring.submission().push(&operation) }.unwrap();
    ring.submit_and_wait(1).map_err(|error| Errno::from_io_error(&error).unwrap())?;
    let result = ring.completion().next().unwrap().result();
    if result < 0 { Err(Errno::from_raw_os_error(-result)) } else { Ok(result) }
}

#[test]
fn a_ring_reads_what_the_process_was_given() {
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let end = attempt(move || {
        let mut bytes = [0_u8; 8];
        done(opcode::Read::new(types::Fd(file.as_raw_fd()), bytes.as_mut_ptr(), 8).build()).map(drop)
    });
    assert_eq!(end, End::Done);
}

#[test]
fn a_ring_opens_nothing() {
    let names =
        [c"/", c".", c"..", c"/etc/passwd", c"/proc/self/mem", c"/dev/mem", c"/dev/xen/privcmd", c"/../../etc/passwd"];
    cases::each(names, |name| {
        let end = attempt(move || {
            done(opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name.as_ptr()).flags(libc::O_RDONLY).build()).map(drop)
        });
        // By Landlock what is there; the rest is not there.
        assert!(matches!(end, End::Refused(Errno::ACCESS | Errno::NOENT)), "{name:?}: {end:?}");
    });
}

#[test]
fn a_ring_makes_no_file() {
    cases::each([c"/file", c"file", c"/tmp/file"], |name| {
        let end = attempt(move || {
            let flags = libc::O_CREAT | libc::O_WRONLY;
            done(opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name.as_ptr()).flags(flags).mode(0o600).build())
                .map(drop)
        });
        assert!(matches!(end, End::Refused(Errno::ACCESS | Errno::NOENT | Errno::ROFS)), "{name:?}: {end:?}");
    });
}

#[test]
fn a_ring_reaches_no_program_that_listens_on_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let end = attempt(move || {
        let socket = done(opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build())?;
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let len = size_of_val(&address) as u32;
        done(opcode::Connect::new(types::Fd(socket), (&raw const address).cast(), len).build()).map(drop)
    });
    // By Landlock, or for want of any network.
    assert!(matches!(end, End::Refused(Errno::ACCESS | Errno::NETUNREACH)), "{end:?}");
}

#[test]
fn a_ring_has_no_network_to_send_to() {
    let end = attempt(move || {
        let socket = done(opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build())?;
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 53_u16.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let len = size_of_val(&address) as u32;
        done(opcode::Connect::new(types::Fd(socket), (&raw const address).cast(), len).build()).map(drop)
    });
    assert_eq!(end, End::Refused(Errno::NETUNREACH));
}
