//! The client against testkit's xenstored, and against servers that break the protocol.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod driver_domain;
mod nodes;
mod recovery;
mod rogue;
mod transactions;
mod watches;
mod xenbus;

use std::time::Duration;

use tempfile::TempDir;
use testkit::xenstored::Xenstored;
use xenstore::{Address, Options, Store, Watch};

/// A xenstored and a client of it.
struct Fixture {
    xenstored: Xenstored,
    store: Store,
    _dir: TempDir,
}

async fn fixture() -> Fixture {
    fixture_in(0).await
}

/// The client runs in this domain.
async fn fixture_in(domid: u16) -> Fixture {
    let dir = TempDir::new().unwrap();
    let xenstored = Xenstored::start_for(domid, dir.path().join("socket")).unwrap();
    let store = Store::connect(options(xenstored.socket())).await.unwrap();
    Fixture { xenstored, store, _dir: dir }
}

fn options(socket: &std::path::Path) -> Options {
    Options { addresses: vec![Address::Socket(socket.to_owned())], ..Options::default() }
}

/// Waits for a condition that another thread or task brings about.
async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the condition never came true");
}

/// The next event, which has to come.
async fn next(watch: &mut Watch) -> String {
    tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("no event came")
}

/// The events that wait already.
async fn waiting(watch: &mut Watch) -> Vec<String> {
    let mut events = Vec::new();
    loop {
        tokio::select! {
            biased;
            event = watch.next() => events.push(event),
            () = std::future::ready(()) => return events,
        }
    }
}
