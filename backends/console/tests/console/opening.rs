//! What a console takes of the host, and leaves there.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use tempfile::TempDir;
use virtio_backend::{Kind, Owner, reach};
use virtio_console::{Config, ConfigError, Console};

use crate::harness::{Rig, owner, wait_until};
use crate::readers::{connection, read_up_to};

fn config(written: &str, directory: &TempDir) -> Config {
    toml::from_str(&written.replace("DIR", directory.path().to_str().unwrap())).unwrap()
}

fn refusal(written: &str, directory: &TempDir) -> ConfigError {
    Console::open(&mut config(written, directory), &owner(directory.path())).unwrap_err()
}

#[test]
fn links_and_sockets_are_found_by_number_and_name_and_go_with_the_device() {
    let rig = Rig::new(
        "path = \"DIR/tty\"\n[[port]]\nname = \"agent\"\nsink = \"socket\"\n\
         [[port]]\nname = \"log\"\nsink = \"file\"\npath = \"DIR/log\"",
    );
    let directory = rig.directory.path();
    let terminal = rig.config.ports[0].terminal.clone().unwrap();
    assert!(terminal.starts_with("/dev/pts"));
    for (link, end) in [
        (directory.join("tty"), terminal.clone()),
        (rig.place("0"), terminal),
        (rig.place("1"), rig.place("agent.sock")),
        (rig.place("agent"), rig.place("agent.sock")),
        (rig.place("2"), directory.join("log")),
        (rig.place("log"), directory.join("log")),
    ] {
        assert_eq!(fs::read_link(&link).unwrap(), end, "{}", link.display());
    }
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(rig.place("agent.sock")), 0o600);
    assert_eq!(mode(directory.join("log")), 0o600);
    assert_eq!(mode(directory.join("consoles/web")), 0o700);
    let end = Console::host_end(&rig.config);
    assert!(end.starts_with("pty ") && end.contains("agent.sock") && end.ends_with("/log"), "{end}");

    let Rig { transport, descriptors, config, owner, directory, .. } = rig;
    drop((transport, descriptors));
    wait_until("everything is taken away", || {
        Console::close(&config, &owner);
        let left: Vec<_> = fs::read_dir(directory.path().join("consoles")).unwrap().collect();
        left.is_empty() && !fs::exists(directory.path().join("tty")).unwrap()
    });
    assert!(fs::exists(directory.path().join("log")).unwrap(), "but what was printed stays");
}

#[test]
fn a_second_console_of_a_guest_stands_beside_the_first() {
    let rig = Rig::new("sink = \"socket\"");
    let second = Owner { index: 1, ..rig.owner.clone() };
    let mut config = Config::default();
    let _descriptors = Console::open(&mut config, &second).unwrap();
    assert_eq!(config.ports[0].path.as_deref(), Some(&*rig.place("1.0")));
    Console::close(&config, &second);
    assert!(!fs::exists(rig.place("1.0")).unwrap() && fs::exists(rig.place("0.sock")).unwrap());
}

#[test]
fn a_socket_that_somebody_listens_to_is_refused_and_not_disturbed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("taken");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();

    let refused = refusal("sink = \"socket\"\npath = \"DIR/taken\"", &directory);

    assert!(matches!(refused, ConfigError::SocketInUse { .. }), "{refused}");
    assert!(listener.accept().is_err(), "nobody has knocked");
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(directory.path().join("stale")).unwrap());
    let mut config = config("sink = \"socket\"\npath = \"DIR/stale\"", &directory);
    let _descriptors = Console::open(&mut config, &owner(directory.path())).unwrap();
    UnixStream::connect(directory.path().join("stale")).unwrap();
}

#[test]
fn a_link_that_was_left_behind_is_replaced_and_a_file_in_its_place_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("consoles/web");
    fs::create_dir_all(&place).unwrap();
    symlink("/dev/pts/gone", place.join("0")).unwrap();
    let mut config = Config::default();
    let _descriptors = Console::open(&mut config, &owner(directory.path())).unwrap();
    assert_eq!(fs::read_link(place.join("0")).unwrap(), config.ports[0].terminal.clone().unwrap());

    fs::write(directory.path().join("mine"), "precious").unwrap();
    let refused = refusal("path = \"DIR/mine\"", &directory);
    assert!(matches!(refused, ConfigError::Occupied { .. }), "{refused}");
    let refused = refusal("sink = \"socket\"\npath = \"DIR/mine\"", &directory);
    assert!(matches!(refused, ConfigError::Occupied { .. }), "{refused}");
    assert_eq!(fs::read(directory.path().join("mine")).unwrap(), b"precious");
}

#[test]
fn h10_what_is_no_regular_file_is_not_written_to() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("target"), "").unwrap();
    symlink(directory.path().join("target"), directory.path().join("link")).unwrap();
    fs::create_dir(directory.path().join("folder")).unwrap();
    for path in ["DIR/link", "DIR/folder", "/dev/null"] {
        let refused = refusal(&format!("sink = \"file\"\npath = \"{path}\""), &directory);
        assert!(matches!(refused, ConfigError::Occupied { .. }), "{path}: {refused}");
    }
    let refused = refusal("sink = \"file\"\npath = \"DIR/nowhere/log\"", &directory);
    assert!(refused.to_string().contains("nowhere/log"), "{refused}");
}

#[test]
fn h10_a_path_too_long_for_a_socket_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let refused = refusal(&format!("sink = \"socket\"\npath = \"DIR/{}\"", "x".repeat(120)), &directory);
    assert!(refused.to_string().contains("shorter `path`"), "{refused}");
}

#[test]
fn h10_what_fails_half_way_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    refusal(
        "[[port]]\nname = \"a\"\nsink = \"socket\"\n[[port]]\nname = \"b\"\nsink = \"file\"\npath = \"/dev/null\"",
        &directory,
    );
    assert_eq!(fs::read_dir(directory.path().join("consoles")).unwrap().count(), 0);
}

#[test]
fn a_device_made_of_other_descriptors_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config("", &directory);
    let mut descriptors = Console::open(&mut config, &owner(directory.path())).unwrap();
    descriptors.pop();
    let make = |config: &Config, descriptors| Console::make(config, descriptors, reach::directly::<Console>(config));
    assert!(matches!(make(&config, descriptors), Err(ConfigError::Descriptors)));
    let descriptors = Console::open(&mut config.clone(), &owner(directory.path())).unwrap();
    let null = Config { ports: vec![toml::from_str("sink = \"null\"").unwrap()], ..Config::default() };
    assert!(matches!(make(&null, descriptors), Err(ConfigError::Descriptors)));
}

#[test]
fn a_second_reader_of_a_socket_is_turned_away_and_the_next_is_let_in() {
    let rig = Rig::classic("sink = \"socket\"");
    let first = connection(&rig.place("0"));
    rig.print(0, b"for the first");
    assert_eq!(read_up_to(&first, 13), b"for the first");

    let mut second = UnixStream::connect(rig.place("0")).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    wait_until("it is counted", || rig.counter("readers_refused") == 1);
    drop(first);

    wait_until("the place is free", || {
        let third = connection(&rig.place("0"));
        rig.print(0, b"x");
        read_up_to(&third, 1) == b"x"
    });
}

#[test]
fn nothing_but_what_is_configured_is_exclusive() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(Console::exclusive(&Config::default()), Vec::<String>::new());
    let config = config("sink = \"stdio\"\n[[port]]\nname = \"a\"\nsink = \"file\"\npath = \"/x\"", &directory);
    assert_eq!(Console::exclusive(&config), ["standard input and output", "file /x", "file /x.1"]);
}
