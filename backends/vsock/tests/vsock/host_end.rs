//! The socket on the host: made, refused, taken away.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use virtio_backend::{Kind, Owner, reach};
use virtio_vsock::{Config, Vsock};

use crate::harness::owner;

fn at(socket: &Path) -> Config {
    Config { socket: Some(socket.to_owned()), ..Config::default() }
}

fn refusal(socket: &Path) -> String {
    let mut config = at(socket);
    let error = Vsock::open(&mut config, &owner(Path::new("/nowhere"))).unwrap_err();
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[test]
fn a_socket_of_its_own_is_made_in_the_owners_directory_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, owner) = (Config::default(), owner(folder.path()));
    let listener = Vsock::open(&mut config, &owner).unwrap();
    let socket = folder.path().join("vsock/web.sock");
    assert_eq!(config.socket.as_ref(), Some(&socket));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&socket).unwrap();
    assert_eq!(Vsock::host_end(&config), format!("CID 3 at {}", socket.display()));
    assert_eq!(Vsock::exclusive(&config), [format!("socket {}", socket.display())]);

    drop(listener);
    Vsock::close(&config, &owner);
    assert!(!socket.exists());
    Vsock::close(&config, &owner);
}

#[test]
fn a_guests_second_device_has_another_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut configs = [Config::default(), Config::default()];
    let mut open = Vec::new();
    for (index, config) in configs.iter_mut().enumerate() {
        open.push(Vsock::open(config, &Owner { index, ..owner(folder.path()) }).unwrap());
    }
    assert_ne!(configs[0], configs[1]);
}

#[test]
fn a_name_left_behind_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let _listener = Vsock::open(&mut at(&socket), &owner(folder.path())).unwrap();
    UnixStream::connect(&socket).unwrap();
}

#[test]
fn what_is_somebody_elses_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let _living = UnixListener::bind(path("living")).unwrap();
    // One that takes nobody in and has as many waiting as it lets.
    let busy = UnixListener::bind(path("busy")).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    let _waits = UnixStream::connect(path("busy")).unwrap();
    let _other_kind = UnixDatagram::bind(path("datagrams")).unwrap();
    fs::write(path("file"), "precious").unwrap();
    fs::create_dir(path("directory")).unwrap();
    symlink(path("file"), path("link")).unwrap();

    for name in ["living", "busy"] {
        assert!(refusal(&path(name)).contains("Another program listens"), "{name}");
    }
    let words = refusal(&path("datagrams"));
    assert!(words.contains("datagrams") && words.contains("wrong type"), "{words}");
    for name in ["file", "directory", "link"] {
        let words = refusal(&path(name));
        assert!(words.contains("is not a socket") && words.contains(name), "{words}");
    }
    assert_eq!(fs::read_to_string(path("file")).unwrap(), "precious");
    UnixStream::connect(path("living")).unwrap();
    assert!(path("busy").exists() && path("datagrams").exists());
    // Not even taken away by mistake.
    Vsock::close(&at(&path("file")), &owner(folder.path()));
    assert!(path("file").exists());
}

#[test]
fn h10_a_place_that_cannot_be_is_refused_in_words() {
    let missing = refusal(Path::new("/nowhere/at/all.sock"));
    assert!(missing.contains("/nowhere/at/all.sock") && missing.contains("No such file"), "{missing}");
    let long = Owner { guest: "g".repeat(90), ..owner(Path::new("/tmp")) };
    let folder = tempfile::tempdir().unwrap();
    let error = Vsock::open(&mut Config::default(), &Owner { directory: folder.path().into(), ..long }).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn a_device_is_made_of_one_listening_socket_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = at(&folder.path().join("s"));
    let make = |config: &Config, descriptors| Vsock::make(config, descriptors, reach::directly::<Vsock>(config));
    assert!(make(&config, Vec::new()).is_err());
    let (one, _other) = UnixStream::pair().unwrap();
    assert!(make(&config, vec![one.into()]).is_err());
    let listener = Vsock::open(&mut config, &owner(folder.path())).unwrap();
    assert!(make(&Config::default(), listener).is_err());
}
