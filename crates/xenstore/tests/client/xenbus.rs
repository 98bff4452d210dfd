//! The way over the kernel's device. A pseudo-terminal stands in for it: a character device of a path of its own, which
//! reads and writes both ways and does not block.

use std::fs::File;
use std::path::PathBuf;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use xenstore::{Address, Options, Store};

use crate::rogue::{message, serve_one};

const READ: u32 = 2;

/// A character device whose other side answers READ with `value`; the file keeps it alive.
fn device(value: &'static [u8]) -> (PathBuf, File) {
    let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&host).unwrap();
    unlockpt(&host).unwrap();
    let path = PathBuf::from(ptsname(&host, Vec::new()).unwrap().into_string().unwrap());
    let client = File::options().read(true).write(true).open(&path).unwrap();
    let mut settings = tcgetattr(&client).unwrap();
    settings.make_raw();
    tcsetattr(&client, OptionalActions::Now, &settings).unwrap();
    std::thread::spawn(move || serve_one(File::from(host), |request| Some(message(READ, request.id, value))));
    (path, client)
}

#[tokio::test]
async fn requests_go_through_the_device() {
    let (path, _client) = device(b"through the kernel");
    let addresses = vec![Address::Xenbus(path)];

    let store = Store::connect(Options { addresses, ..Options::default() }).await.unwrap();

    assert_eq!(store.read("/a").await.unwrap(), Some(b"through the kernel".to_vec()));
}
