//! Xenstored goes away and comes back.

use tempfile::TempDir;
use xenstore::{Address, Error, Options, Store};

use crate::{eventually, fixture, next, options, waiting};

#[tokio::test]
async fn without_xenstored_connect_says_where_it_looked_and_what_to_do() {
    let dir = TempDir::new().unwrap();
    let addresses = vec![Address::Socket(dir.path().join("socket")), Address::Xenbus(dir.path().join("xenbus"))];

    let error = Store::connect(Options { addresses, ..Options::default() }).await.unwrap_err().to_string();

    assert!(error.starts_with("Xenstored is not running"), "{error}");
    assert!(error.contains("/socket: No such file") && error.contains("/xenbus: No such file"), "{error}");
    assert!(error.contains("systemctl start xenstored"), "{error}");
}

#[tokio::test]
async fn the_first_address_that_answers_is_used() {
    let f = fixture().await;
    let addresses = vec![Address::Xenbus("/nonexistent".into()), Address::Socket(f.xenstored.socket().into())];

    let store = Store::connect(Options { addresses, ..Options::default() }).await.unwrap();

    store.write("/a", "1").await.unwrap();
}

#[tokio::test]
async fn after_a_restart_requests_work_again() {
    let f = fixture().await;
    f.xenstored.set("/a", "1");

    f.xenstored.disconnect_all();

    eventually(async || f.store.read("/a").await.is_ok_and(|value| value == Some(b"1".to_vec()))).await;
}

#[tokio::test]
async fn during_the_outage_requests_fail_with_the_reason() {
    let f = fixture().await;
    f.xenstored.refuse_connections().unwrap();
    f.xenstored.disconnect_all();

    eventually(async || f.store.read("/a").await.is_err()).await;
    let error = f.store.write("/a", "1").await.unwrap_err();
    let no_watch = f.store.watch("/a").await.unwrap_err();
    f.xenstored.accept_connections().unwrap();

    assert!(error.to_string().contains("was lost (it was closed by the other side)"), "{error}");
    assert!(matches!(no_watch, Error::ConnectionLost { .. }));
    eventually(async || f.store.write("/a", "2").await.is_ok()).await;
    assert_eq!(f.xenstored.get("/a"), Some(b"2".to_vec()));
    assert_eq!(f.xenstored.watch_count(), 0, "the watch that failed is not registered behind our back");
}

#[tokio::test]
async fn every_watch_is_registered_again_and_says_that_all_may_have_changed() {
    let f = fixture().await;
    let mut first = f.store.watch("/w").await.unwrap();
    let mut second = f.store.watch("@releaseDomain").await.unwrap();
    next(&mut first).await;
    next(&mut second).await;
    f.xenstored.refuse_connections().unwrap();
    f.xenstored.disconnect_all();
    f.xenstored.set("/w/missed", "1");
    f.xenstored.accept_connections().unwrap();

    assert_eq!(next(&mut first).await, "/w");
    assert_eq!(next(&mut second).await, "@releaseDomain");
    eventually(async || f.store.read("/w").await.is_ok()).await;
    waiting(&mut first).await;
    f.xenstored.set("/w/seen", "1");
    assert_eq!(next(&mut first).await, "/w/seen");
    assert_eq!(f.xenstored.watch_count(), 2);
}

#[tokio::test]
async fn a_watch_dropped_during_the_outage_does_not_come_back() {
    let f = fixture().await;
    let dropped = f.store.watch("/dropped").await.unwrap();
    let mut kept = f.store.watch("/kept").await.unwrap();
    next(&mut kept).await;
    f.xenstored.refuse_connections().unwrap();
    f.xenstored.disconnect_all();
    eventually(async || f.store.read("/a").await.is_err()).await;

    drop(dropped);
    f.xenstored.accept_connections().unwrap();
    next(&mut kept).await;

    assert_eq!(f.xenstored.watch_count(), 1);
}

#[tokio::test]
async fn the_connection_ends_with_the_last_user() {
    let f = fixture().await;
    let other = Store::connect(options(f.xenstored.socket())).await.unwrap();
    let watch = other.watch("/w").await.unwrap();
    drop(other);
    assert_eq!(f.xenstored.connection_count(), 2, "a watch is a user too");

    drop(watch);

    eventually(async || f.xenstored.connection_count() == 1).await;
}
