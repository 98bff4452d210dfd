//! The way over the kernel's device. A pseudo-terminal stands in for it: a character device of a path of its own, which
//! reads and writes both ways and does not block.

use std::fs::File;
use std::path::PathBuf;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use xenstore::wire::WireError;
use xenstore::{Address, Error, Options, Store};

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

#[tokio::test]
async fn the_store_says_by_which_way_it_is_reached() {
    let (path, _client) = device(b"3");
    let addresses = vec![Address::Socket("/nonexistent/socket".into()), Address::Xenbus(path.clone())];

    let store = Store::connect(Options { addresses, ..Options::default() }).await.unwrap();

    assert_eq!(Some(&*store.address()), path.to_str());
}

#[tokio::test]
async fn a_message_that_is_more_than_the_device_takes_is_not_sent() {
    let (path, _client) = device(b"as good as before");
    let store = Store::connect(Options { addresses: vec![Address::Xenbus(path)], ..Options::default() }).await.unwrap();

    let long = store.write("/a", [0; 4096 - 16 - 3 + 1]).await.unwrap_err();

    let Error::BadRequest { source, .. } = long else { panic!("{long}") };
    assert_eq!(source, WireError::PayloadTooLong { len: 4081, most: 4080 });
    assert_eq!(store.read("/a").await.unwrap(), Some(b"as good as before".to_vec()));
}
