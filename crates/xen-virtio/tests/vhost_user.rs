//! `xen-virtio vhost-user` as its users start it, and a front-end of another crate's making.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

const BINARY: &str = env!("CARGO_BIN_EXE_xen-virtio");

/// VIRTIO_BLK_F_MQ and VIRTIO_F_VERSION_1 (virtio 1.2 §5.2.3, §6), VHOST_USER_F_PROTOCOL_FEATURES.
const BLK_MQ: u64 = 1 << 12;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// `xen-virtio vhost-user --kind KIND` with these arguments.
fn command(kind: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["vhost-user", "--kind", kind]).args(arguments);
    prepared(command)
}

fn prepared(mut command: Command) -> Command {
    for variable in ["XEN_VIRTIO_LOG", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error of a call that ends by itself.
fn outcome(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A daemon that has said it is ready. Killed when dropped.
struct Daemon(Child);

impl Daemon {
    /// Starts it, and waits until it tells its service manager that it is ready.
    fn start(mut command: Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut daemon = Self(command.env("NOTIFY_SOCKET", &path).spawn().unwrap());
        // One that ends instead of getting ready is told of at once.
        let deadline = Instant::now() + PATIENCE;
        manager.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut said = [0; 64];
        loop {
            if let Ok(len) = manager.recv(&mut said) {
                assert_eq!(said.get(..len), Some(&b"READY=1\n"[..]));
                return daemon;
            }
            if let Some(status) = daemon.0.try_wait().unwrap() {
                panic!("{status}: {}", daemon.log());
            }
            assert!(Instant::now() < deadline, "it should have said that it is ready");
        }
    }

    /// What it has logged, of one that has ended.
    fn log(&mut self) -> String {
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }

    /// Ends it by a signal; how it ends, and its log.
    fn stop(mut self, signal: Signal) -> (ExitStatus, String) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return (status, self.log());
            }
            assert!(Instant::now() < deadline, "it should have ended");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn assert_stops_cleanly(self) {
        let (status, log) = self.stop(Signal::TERM);
        assert!(status.success(), "{status}: {log}");
        assert!(log.contains(" is ready") && log.contains("[vhost_user.stopped]"), "{log}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory with an image of 1 MiB, and the name of a socket.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join("image")).unwrap().set_len(1 << 20).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("web.sock")
    }

    /// `--socket=...`, or another option of that sort.
    fn socket_option(&self) -> String {
        format!("--socket={}", self.socket().display())
    }

    fn image_key(&self) -> String {
        format!("image={}", self.path("image").display())
    }

    /// What is in it.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Serves the image on the socket.
    fn serve_disk(&self) -> Daemon {
        Daemon::start(command("disk", &[&self.socket_option(), &self.image_key(), "queues=3"]))
    }
}

/// What a front-end sees of a device.
#[derive(Debug, PartialEq)]
struct Seen {
    features: u64,
    queues: u64,
    config: [u8; 8],
}

/// Connects as a front-end that wants all it can; with it the features that it is offered.
fn connect(socket: &Path) -> (Frontend, u64) {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut frontend = Frontend::from_stream(stream, 16);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    let wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
    let offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(wanted), "{offered:?}");
    frontend.set_protocol_features(wanted).unwrap();
    (frontend, features)
}

/// Connects as a front-end, looks at a disk, and goes.
fn look(socket: &Path) -> Seen {
    let (mut frontend, features) = connect(socket);
    let queues = frontend.get_queue_num().unwrap();
    let (_, config) = frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap();
    Seen { features, queues, config: config.try_into().unwrap() }
}

/// The shell that sets what `Command` cannot, and then becomes the program: it gets `script`, the program and arguments.
fn by_shell(script: &str, kind: &str, arguments: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", BINARY, "vhost-user", "--kind", kind]).args(arguments);
    prepared(shell)
}

#[test]
fn e13_a_daemon_looks_at_its_image_again_when_it_is_told_to() {
    let place = Place::new();
    let daemon = place.serve_disk();
    let sectors = || u64::from_le_bytes(look(&place.socket()).config);
    File::options().write(true).open(place.path("image")).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(sectors(), 2048);

    kill_process(Pid::from_child(&daemon.0), Signal::USR1).unwrap();

    let deadline = Instant::now() + PATIENCE;
    while sectors() != 4096 {
        assert!(Instant::now() < deadline, "it should have looked");
    }
    daemon.assert_stops_cleanly();
}

#[test]
fn e07_the_limit_of_file_sizes_does_not_end_a_daemon() {
    let place = Place::new();
    let daemon = place.serve_disk();
    kill_process(Pid::from_child(&daemon.0), Signal::XFSZ).unwrap();
    daemon.assert_stops_cleanly();
}

#[test]
fn e14_two_daemons_cannot_have_one_image() {
    let place = Place::new();
    let _first = place.serve_disk();
    let socket = format!("--socket={}", place.path("other.sock").display());

    let (code, _, log) = outcome(command("disk", &[&socket, &place.image_key()]));

    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is in use"), "{log}");
}

#[test]
fn a_disk_is_served_to_one_front_end_after_the_other() {
    let place = Place::new();
    let daemon = place.serve_disk();

    for _ in 0..3 {
        let seen = look(&place.socket());
        let wanted = VERSION_1 | BLK_MQ | PROTOCOL_FEATURES;
        assert_eq!(seen.features & wanted, wanted, "{seen:x?}");
        assert_eq!((seen.queues, u64::from_le_bytes(seen.config)), (3, 2048), "3 queues, 2048 sectors");
    }
    daemon.assert_stops_cleanly();
}

#[test]
fn it_stops_while_a_front_end_is_connected() {
    let place = Place::new();
    let daemon = place.serve_disk();
    let (_frontend, features) = connect(&place.socket());
    assert_eq!(features & VERSION_1, VERSION_1);

    daemon.assert_stops_cleanly();
}

#[test]
fn h09_sigterm_and_sigint_take_the_socket_away_and_exit_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let daemon = place.serve_disk();
        assert!(fs::metadata(place.socket()).unwrap().file_type().is_socket());

        let (status, log) = daemon.stop(signal);

        assert!(status.success(), "{signal:?}: {status}: {log}");
        assert_eq!(place.names(), ["image"]);
    }
}

#[test]
fn h09_what_a_killed_daemon_left_is_replaced() {
    let place = Place::new();
    let (status, _) = place.serve_disk().stop(Signal::KILL);
    assert!(!status.success() && place.socket().exists());

    let daemon = place.serve_disk();

    look(&place.socket());
    daemon.assert_stops_cleanly();
    assert_eq!(place.names(), ["image"]);
}

#[test]
fn h09_a_daemon_that_was_stopped_goes_on_with_what_came_meanwhile() {
    let place = Place::new();
    let daemon = place.serve_disk();
    let signal = |signal| kill_process(Pid::from_child(&daemon.0), signal).unwrap();
    let (frontend, features) = connect(&place.socket());
    for _ in 0..3 {
        signal(Signal::STOP);
        signal(Signal::CONT);
    }
    signal(Signal::STOP);
    drop(frontend);
    let next = thread::spawn({
        let socket = place.socket();
        move || look(&socket)
    });
    signal(Signal::CONT);

    assert_eq!(next.join().unwrap().features, features);
    daemon.assert_stops_cleanly();
}

#[test]
fn a_socket_that_somebody_serves_on_is_left_to_them() {
    let place = Place::new();
    let daemon = place.serve_disk();

    let (code, _, said) = outcome(command("rng", &[&place.socket_option()]));

    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("Somebody serves on") && said.contains("web.sock"), "{said}");
    look(&place.socket());
    daemon.assert_stops_cleanly();
}

#[test]
fn a_socket_with_a_full_backlog_is_somebodys_too() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(place.socket()).unwrap();

    let (code, _, said) = outcome(command("rng", &[&place.socket_option()]));

    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("Somebody serves on"), "{said}");
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let place = Place::new();
    fs::write(place.socket(), "precious").unwrap();

    let (code, _, said) = outcome(command("rng", &[&place.socket_option()]));

    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is no socket"), "{said}");
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "precious");
}

#[test]
fn a_socket_that_another_made_meanwhile_is_not_taken_away() {
    let place = Place::new();
    let daemon = place.serve_disk();
    fs::remove_file(place.socket()).unwrap();
    let _another = UnixListener::bind(place.socket()).unwrap();

    daemon.assert_stops_cleanly();

    assert_eq!(place.names(), ["image", "web.sock"]);
}

#[test]
fn the_umask_says_who_may_connect() {
    for (umask, mode) in [("022", 0o755), ("007", 0o770), ("077", 0o700)] {
        let place = Place::new();
        let script = format!(r#"umask {umask}; exec "$@""#);
        let daemon = Daemon::start(by_shell(&script, "rng", &[&place.socket_option()]));
        assert_eq!(fs::metadata(place.socket()).unwrap().permissions().mode() & 0o777, mode, "{umask}");
        daemon.assert_stops_cleanly();
    }
}

#[test]
fn wrong_arguments_are_exit_code_2_with_what_is_wrong_and_leave_nothing() {
    let place = Place::new();
    let (socket, image) = (place.socket_option(), place.image_key());
    for (kind, arguments, what) in [
        ("disk", &[&*image][..], "give --socket PATH"),
        ("disk", &[&socket, "--fd=0", &image], "exclude each other"),
        ("disk", &["--fd=0", &image], "is no unix stream socket that listens"),
        ("disk", &["--fd=99", &image], "Cannot use descriptor 99: Bad file descriptor"),
        ("disk", &["--fd=-1", &image], "--fd"),
        ("disk", &[&socket], "image = "),
        ("disk", &[&socket, &image, "imgae=/x"], "unknown field `imgae`"),
        ("disk", &[&socket, &image, "queues=many"], "expected u16 in `queues`"),
        ("disk", &[&socket, &image, "queues"], "is no KEY=VALUE"),
        ("disk", &[&socket, &image, "--name=a/b"], "another by --name"),
        ("disk", &[&socket, &image, "--log=louder=!"], "try info"),
        ("disc", &[&socket, &image], "disc"),
        ("vhost-user", &[&socket], "possible values"),
    ] {
        let (code, _, said) = outcome(command(kind, arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(what), "{arguments:?}: {said}");
    }
    assert_eq!(place.names(), ["image"]);
}

#[test]
fn what_the_host_does_not_have_is_exit_code_1_and_leaves_no_socket() {
    let place = Place::new();
    let socket = place.socket_option();
    let nowhere = format!("--socket={}", place.path("nowhere/web.sock").display());
    let image = place.image_key();
    for (arguments, what) in [
        (&[&*socket, "image=/nonexistent.img"][..], "/nonexistent.img"),
        (&[&nowhere, &image], "nowhere/web.sock: No such file"),
        (&[&socket, &image, "--run=/proc/x"], "/proc/x"),
    ] {
        let (code, _, said) = outcome(command("disk", arguments));
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.contains(what), "{arguments:?}: {said}");
    }
    assert_eq!(place.names(), ["image"]);
}

#[test]
fn a_socket_of_systemds_is_served_and_stays() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let image = place.image_key();
    let script = r#"export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 0</dev/null"#;
    let mut activated = by_shell(script, "disk", &[&image]);
    activated.stdin(OwnedFd::from(listener.try_clone().unwrap()));

    let daemon = Daemon::start(activated);

    look(&place.socket());
    daemon.assert_stops_cleanly();
    assert_eq!(place.names(), ["image", "web.sock"]);
    // The next one is started by a client that waits already.
    let waiting = thread::spawn({
        let socket = place.socket();
        move || look(&socket)
    });
    let mut activated = by_shell(script, "disk", &[&image]);
    activated.stdin(OwnedFd::from(listener));
    let daemon = Daemon::start(activated);
    assert_eq!(u64::from_le_bytes(waiting.join().unwrap().config), 2048);
    daemon.assert_stops_cleanly();
}

#[test]
fn sockets_that_systemd_hands_over_in_vain_are_told_of() {
    let place = Place::new();
    for (sockets, more, what) in
        [(2, &[][..], "handed over 2 sockets"), (1, &[&*place.socket_option()], "exclude each other")]
    {
        let listener = UnixListener::bind(place.path(&format!("{sockets}"))).unwrap();
        let script = format!(r#"export LISTEN_PID=$$ LISTEN_FDS={sockets}; exec "$@" 3<&0 4<&0"#);
        let mut activated = by_shell(&script, "rng", more);
        activated.stdin(OwnedFd::from(listener));
        let (code, _, said) = outcome(activated);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn a_listening_socket_by_its_number_is_served_and_a_connection_is_not() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let mut by_number = command("disk", &["--fd=0", &place.image_key()]);
    by_number.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    let daemon = Daemon::start(by_number);
    look(&place.socket());
    daemon.assert_stops_cleanly();

    let _connecting = UnixStream::connect(place.socket()).unwrap();
    let mut by_number = command("disk", &["--fd=0", &place.image_key()]);
    by_number.stdin(OwnedFd::from(listener.accept().unwrap().0));
    let (code, _, said) = outcome(by_number);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("and not a connection"), "{said}");
}

#[test]
fn capabilities_are_the_specifications_whatever_else_is_said() {
    for (kind, more, json) in [
        ("disk", &["--socket-path=/nonexistent/x", "imgae=1"][..], "{\"type\":\"block\"}\n"),
        ("net", &[], "{\"type\":\"net\"}\n"),
        ("console", &[], "{\"type\":\"console\"}\n"),
        ("rng", &[], "{\"type\":\"rng\"}\n"),
        ("vsock", &[], "{\"type\":\"vsock\"}\n"),
    ] {
        let arguments: Vec<_> = more.iter().copied().chain(["--print-capabilities"]).collect();
        let (code, printed, said) = outcome(command(kind, &arguments));
        assert_eq!((code, &*printed), (Some(0), json), "{said}");
    }
}

#[test]
fn under_the_name_of_a_kind_it_is_that_kind() {
    let place = Place::new();
    let program = place.path("virtio-rng");
    symlink(BINARY, &program).unwrap();
    let mut command = Command::new(OsStr::new(&program));
    command.args(["vhost-user", "--socket-path"]).arg(place.socket());

    let daemon = Daemon::start(prepared(command));

    let (mut frontend, _) = connect(&place.socket());
    assert_eq!(frontend.get_queue_num().unwrap(), 1);
    daemon.assert_stops_cleanly();
}

#[test]
fn what_a_device_has_on_the_host_is_in_the_sockets_directory_and_goes_with_it() {
    let place = Place::new();
    let console = Daemon::start(command("console", &[&place.socket_option(), r#"port=[{name="log",sink="null"}]"#]));
    assert!(place.path("consoles/web/0").exists());
    console.assert_stops_cleanly();
    assert!(!place.path("consoles/web").exists());

    let run = format!("--run={}", place.path("run").display());
    let vsock = Daemon::start(command("vsock", &[&place.socket_option(), &run, "--name=db"]));
    assert!(place.path("run/vsock/db.sock").exists());
    vsock.assert_stops_cleanly();
    assert!(!place.path("run/vsock/db.sock").exists());
}
