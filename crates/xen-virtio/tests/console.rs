//! `xen-virtio console` as a person or a script has it: a process of its own, at a terminal that the test plays, and a
//! real device at the other end.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guest_memory::{Budget, MapCache};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;
use testkit::device::eventually;
use testkit::driver::{GuestHal, MmioTransport};
use testkit::memory::FakeForeignMemory;
use virtio_backend::{Kind, Owner, reach};
use virtio_console::{Config, Console};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_mmio::{InterruptLine, Transport};

const PATIENCE: Duration = Duration::from_secs(60);
const LEAVE: &[u8] = b"\x1d";

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came about that {what}");
        thread::yield_now();
    }
}

fn read_until(mut from: impl Read + AsFd, expected: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut text = String::new();
    while !text.contains(expected) {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).unwrap();
        let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&left)).unwrap();
        assert!(ready > 0, "{expected:?} does not come; {text:?} did");
        let mut bytes = [0; 1024];
        let count = from.read(&mut bytes).unwrap();
        assert!(count > 0, "{expected:?} does not come any more; {text:?} did");
        text += &String::from_utf8_lossy(&bytes[..count]);
    }
    text
}

/// A guest whose driver echoes.
struct Guest {
    directory: TempDir,
    transport: Arc<Transport>,
    driver: VirtIOConsole<GuestHal, MmioTransport<Arc<Transport>>>,
}

impl Guest {
    fn new(written: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let written = written.replace("DIR", directory.path().to_str().unwrap());
        let mut config: Config = serde_json::from_str(&written).unwrap();
        let (guest, identity) = ("web".to_owned(), "web".to_owned());
        let owner = Owner { guest, identity, index: 0, vcpus: 1, directory: directory.path().to_owned() };
        let descriptors = Console::open(&mut config, &owner).unwrap();
        let (ram, len) = (0x4000_0000, 8 << 20);
        let memory = FakeForeignMemory::new(&[(ram, len)]);
        let cache = MapCache::new(memory.clone(), Budget::default());
        let device = Console::make(&config, descriptors, reach::directly::<Console>(&config)).unwrap();
        let transport = Transport::new(device, Arc::new(NoLine), cache, "console").unwrap();
        GuestHal::boot(memory, ram, ram + len);
        let driver = VirtIOConsole::new(MmioTransport(Arc::clone(&transport))).unwrap();
        Self { directory, transport, driver }
    }

    fn print(&mut self, text: &str) {
        self.driver.send_bytes(text.as_bytes()).unwrap();
    }

    fn assert_gets(&mut self, expected: &[u8]) {
        let mut got = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while got.len() < expected.len() {
            let counters = || self.transport.counters();
            assert!(Instant::now() < deadline, "{} of {} bytes arrive: {:?}", got.len(), expected.len(), counters());
            got.extend(self.driver.recv(true).unwrap());
        }
        assert!(got == expected, "{} bytes arrive, but others", got.len());
    }

    fn readers(&self) -> u64 {
        self.transport.counters().iter().find(|(name, _)| *name == "readers_attached").unwrap().1
    }

    fn client(&self, arguments: &[&str]) -> Command {
        client(self.directory.path(), arguments)
    }
}

fn client(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xen-virtio"));
    command.arg("console").arg("--run").arg(directory).args(arguments);
    command
}

/// The terminal that a person sits at.
struct Seat {
    master: File,
    terminal: OwnedFd,
    client: Child,
}

impl Seat {
    fn take(mut command: Command) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        tcsetwinsize(&terminal, winsize(132, 43)).unwrap();
        let stdio = || Stdio::from(terminal.try_clone().unwrap());
        let client = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        Self { master: master.into(), terminal, client }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn reads(&self, expected: &str) -> String {
        read_until(&self.master, expected)
    }

    fn types(&self, keys: &[u8]) {
        (&self.master).write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.client), signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.client.wait().unwrap().code()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // It fails if the client has ended.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn winsize(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

fn ended(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

const SINKS: [&str; 2] = [r#"{"sink": "pty"}"#, r#"{"sink": "socket"}"#];

#[test]
fn a_person_reads_types_every_key_and_leaves_with_the_terminal_as_it_was() {
    for written in SINKS {
        let mut guest = Guest::new(written);
        guest.print("from before\r\n");
        let mut seat = Seat::take(guest.client(&["web"]));
        assert!(seat.reads("from before").contains("leave with Ctrl-]"));
        assert!(seat.is_raw());

        guest.print("login: ");
        seat.reads("login: ");
        seat.types(b"root\r\x03\x04\x1a\x11\x13\x1c\x7f\x1b[A\0");
        guest.assert_gets(b"root\r\x03\x04\x1a\x11\x13\x1c\x7f\x1b[A\0");

        seat.types(b"x");
        guest.assert_gets(b"x");
        seat.types(LEAVE);
        assert_eq!(seat.exit_code(), Some(0), "{written}");
        assert!(!seat.is_raw());
    }
}

#[test]
fn the_guest_has_the_size_of_the_terminal_and_hears_of_changes() {
    let guest = Guest::new("{}");
    let seat = Seat::take(guest.client(&["web", "0"]));
    let size = || guest.driver.size().unwrap().map(|size| (size.columns, size.rows));
    wait_until("the guest knows the size", || size() == Some((132, 43)));

    tcsetwinsize(&seat.terminal, winsize(80, 24)).unwrap();
    // The kernel sends it to those whose controlling terminal this is.
    seat.signal(Signal::WINCH);

    wait_until("the guest knows the new size", || size() == Some((80, 24)));
}

#[test]
fn the_terminal_is_restored_when_a_signal_ends_it() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let mut guest = Guest::new("{}");
        let mut seat = Seat::take(guest.client(&["web"]));
        guest.print("ready");
        seat.reads("ready");
        assert!(seat.is_raw());

        seat.signal(signal);

        assert_eq!(seat.exit_code(), Some(1), "{signal:?}");
        assert!(!seat.is_raw(), "{signal:?}");
    }
}

#[test]
fn the_end_of_the_guest_ends_it() {
    for written in SINKS {
        let mut guest = Guest::new(written);
        let mut seat = Seat::take(guest.client(&["web"]));
        guest.print("reboot: Power down");
        seat.reads("Power down");

        let Guest { directory: _directory, transport, driver } = guest;
        drop((driver, transport));

        seat.reads("console has gone");
        assert_eq!(seat.exit_code(), Some(0));
        assert!(!seat.is_raw());
    }
}

#[test]
fn a_script_sends_its_input_and_gets_the_answer() {
    for written in SINKS {
        let mut guest = Guest::new(written);
        let mut command = guest.client(&["web"]);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut to_client = client.stdin.take().unwrap();
        // Which is no wish to leave where nobody types.
        to_client.write_all(b"uname\x1d\r").unwrap();
        guest.assert_gets(b"uname\x1d\r");
        guest.print("Linux\r\n");
        assert_eq!(read_until(client.stdout.as_mut().unwrap(), "\n"), "Linux\r\n");

        drop(to_client);

        let output = client.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout, output.stderr), (Some(0), vec![], vec![]));
    }
}

#[test]
fn long_input_of_a_script_waits_for_the_guest() {
    let mut guest = Guest::new("{}");
    let input: Vec<u8> = (0..100_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut client = guest.client(&["web"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut to_client = client.stdin.take().unwrap();
    let sent = input.clone();
    let writer = thread::spawn(move || to_client.write_all(&sent).unwrap());
    guest.assert_gets(&input);
    writer.join().unwrap();
    assert!(client.wait().unwrap().success());
}

#[test]
fn a_reader_that_has_enough_ends_it() {
    let mut guest = Guest::new("{}");
    let mut client = guest.client(&["web"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let _open = client.stdin.take();
    guest.print("first line\n");
    read_until(client.stdout.take().unwrap(), "first line");
    // For a moment more may be read: a child that another test starts has our end of the pipe until it becomes another
    // program.
    eventually("the client ends", || {
        guest.print("more\n");
        client.try_wait().unwrap().is_some()
    });
    assert!(client.wait().unwrap().success());
}

#[test]
fn there_is_room_for_one() {
    for (written, word) in SINKS.into_iter().zip(["Another `xen-virtio console`", "Another program"]) {
        let mut guest = Guest::new(written);
        let seat = Seat::take(guest.client(&["web"]));
        guest.print("here");
        seat.reads("here");

        let second = ended(guest.client(&["web"]));

        let said = String::from_utf8(second.stderr).unwrap();
        assert!(said.contains(word), "{said}");
        assert_eq!(second.status.code(), Some(1));
        guest.print("still");
        seat.reads("still");
    }
}

#[test]
fn what_cannot_be_attached_to_is_explained() {
    let guest = Guest::new(r#"{"sink": "file", "path": "DIR/log", "port": [{"name": "agent", "sink": "socket"}]}"#);
    for (arguments, word) in [
        (&["web"][..], "tail -F /"),
        (&["web", "9"], "it has 0, 1, agent"),
        (&["db"], "systemctl start xen-virtio"),
        (&["../web"], "no guest's name"),
    ] {
        let output = ended(guest.client(arguments));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(word) && output.status.code() == Some(1), "{arguments:?}: {said}");
    }
    let output = ended(guest.client(&["web", "agent"]));
    assert!(output.status.success(), "{output:?}");
    wait_until("it was connected", || guest.readers() == 2);
}

#[test]
fn a_socket_that_nobody_listens_to_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let ports = directory.path().join("consoles/web");
    std::fs::create_dir_all(&ports).unwrap();
    drop(std::os::unix::net::UnixListener::bind(ports.join("0")).unwrap());
    assert!(UnixStream::connect(ports.join("0")).is_err());
    let said = String::from_utf8(ended(client(directory.path(), &["web"])).stderr).unwrap();
    assert!(said.contains("device has gone"), "{said}");
}
