//! virtiofsd as the backend: one that knows nothing of configuration space, that counts descriptors, and that serves a
//! single connection.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use testkit::driver::Descriptor;

use crate::harness::{BUFFERS, Guest, config, pattern};

const FS: u32 = 26;

/// The first queue is for what must not wait; requests go into the second.
const REQUESTS: usize = 1;

/// Of the FUSE protocol.
const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const ROOT: u64 = 1;

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `None`, said aloud, where there is no virtiofsd, or none may serve.
fn start(shared: &Path, socket: &Path) -> Option<Daemon> {
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    let Some(binary) = places.into_iter().find(|place| Path::new(place).exists()) else {
        eprintln!("skipped: virtiofsd is not installed");
        return None;
    };
    let mut daemon = Command::new(binary);
    daemon.arg(format!("--socket-path={}", socket.display()));
    if binary.contains("qemu") {
        daemon.arg("-o").arg(format!("source={},sandbox=chroot", shared.display()));
    } else {
        daemon.arg("--shared-dir").arg(shared).args(["--sandbox", "none"]);
    }
    let mut daemon = Daemon(daemon.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    // It listens or gives up.
    while !socket.exists() && daemon.0.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(1));
    }
    if !socket.exists() {
        eprintln!("skipped: virtiofsd cannot serve on this host");
        return None;
    }
    Some(daemon)
}

/// A guest that makes FUSE requests.
struct Client {
    guest: Guest,
    count: u16,
}

impl Client {
    fn new(socket: PathBuf) -> Self {
        let mut config = config(FS, &socket);
        config.tag = Some("share".into());
        Self { guest: Guest::new(config, 128), count: 0 }
    }

    /// Makes a request with `room` for data in its answer; returns the error, and the data.
    fn call(&mut self, opcode: u32, node: u64, arguments: &[u8], room: u32) -> (i32, Vec<u8>) {
        let header = [40 + arguments.len() as u32, opcode].map(u32::to_le_bytes).concat();
        let unique = u64::from(self.count) + 1;
        let header = [&header, &unique.to_le_bytes()[..], &node.to_le_bytes(), &[0; 16]].concat();
        let (arguments_at, answer, data) = (BUFFERS + 0x1000, BUFFERS + 0x2000, BUFFERS + 0x3000);
        self.guest.memory.write(BUFFERS, &header);
        self.guest.memory.write(arguments_at, arguments);
        let chain = [
            Descriptor::readable(BUFFERS, 40),
            Descriptor::readable(arguments_at, arguments.len() as u32),
            Descriptor::writable(answer, 16),
            Descriptor::writable(data, room),
        ];
        self.guest.offer(REQUESTS, 0, &chain);
        self.count += 1;
        let used = self.guest.wait_used(REQUESTS, self.count);
        let header = self.guest.bytes(answer, 16);
        assert_eq!(header[8..], unique.to_le_bytes());
        assert_eq!(header[..4], used.len.to_le_bytes());
        let error = i32::from_le_bytes(header[4..8].try_into().unwrap());
        (error, self.guest.bytes(data, used.len as usize - 16))
    }

    fn init(&mut self) {
        let wanted = [7u32, 31, 0x1_0000, 0].map(u32::to_le_bytes).concat();
        let (error, answer) = self.call(INIT, 0, &wanted, 64);
        assert_eq!((error, &answer[..4]), (0, &7u32.to_le_bytes()[..]));
    }

    /// Opens a file in the root directory; returns its node and its handle.
    fn open(&mut self, name: &str) -> (u64, Vec<u8>) {
        let (error, entry) = self.call(LOOKUP, ROOT, format!("{name}\0").as_bytes(), 128);
        assert_eq!(error, 0);
        let node = u64::from_le_bytes(entry[..8].try_into().unwrap());
        let (error, opened) = self.call(OPEN, node, &[0; 8], 16);
        assert_eq!(error, 0);
        (node, opened[..8].to_vec())
    }

    fn read(&mut self, node: u64, handle: &[u8], offset: u64, len: u32) -> Vec<u8> {
        let arguments = [handle, &offset.to_le_bytes(), &len.to_le_bytes(), &[0; 20]].concat();
        let (error, data) = self.call(READ, node, &arguments, len);
        assert_eq!(error, 0);
        data
    }
}

#[test]
fn a_file_is_found_and_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (shared, socket) = (folder.path().join("shared"), folder.path().join("fs.sock"));
    std::fs::create_dir(&shared).unwrap();
    let contents = pattern(3 << 20, 5);
    std::fs::write(shared.join("file"), &contents).unwrap();
    let Some(_daemon) = start(&shared, &socket) else { return };
    let mut client = Client::new(socket);
    assert_eq!(client.guest.config_bytes(0, 6), b"share\0");
    client.init();

    let (error, _) = client.call(LOOKUP, ROOT, b"none\0", 128);
    assert_eq!(error, -2, "ENOENT");
    let (node, handle) = client.open("file");
    let mut read = Vec::new();
    while read.len() < contents.len() {
        read.extend(client.read(node, &handle, read.len() as u64, 1 << 20));
    }

    assert!(read == contents);
}

#[test]
fn a_driver_that_resets_the_device_finds_the_same_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fs.sock");
    std::fs::write(folder.path().join("file"), b"contents").unwrap();
    let Some(_daemon) = start(folder.path(), &socket) else { return };
    let mut client = Client::new(socket);
    for _ in 0..3 {
        client.init();
        let (node, handle) = client.open("file");
        assert_eq!(client.read(node, &handle, 0, 4096), b"contents");
        client.guest.reset();
        client.count = 0;
    }
    assert_eq!((client.guest.counter("losses"), client.guest.needs_reset()), (0, false));
}
