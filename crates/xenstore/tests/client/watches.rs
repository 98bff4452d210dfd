//! Watches: what is reported, what is coalesced, that nothing is lost.

use xenstore::Error;

use crate::{eventually, fixture, next, waiting};

#[tokio::test]
async fn the_first_event_is_the_path_itself() {
    let f = fixture().await;

    let mut watch = f.store.watch("/not/there/yet").await.unwrap();

    assert_eq!(next(&mut watch).await, "/not/there/yet");
}

#[tokio::test]
async fn changes_at_and_below_the_path_are_reported() {
    let f = fixture().await;
    let mut watch = f.store.watch("/w").await.unwrap();
    next(&mut watch).await;

    f.xenstored.set("/w/a/b", "1");
    let written = next(&mut watch).await;
    f.xenstored.rm("/w");
    let removed = next(&mut watch).await;

    assert_eq!((written.as_str(), removed.as_str()), ("/w/a/b", "/w"));
}

#[tokio::test]
async fn a_watch_on_a_node_sees_its_parent_removed() {
    let f = fixture().await;
    f.xenstored.set("/w/a/b", "1");
    let mut watch = f.store.watch("/w/a/b").await.unwrap();
    next(&mut watch).await;

    f.xenstored.rm("/w");

    assert_eq!(next(&mut watch).await, "/w/a/b");
}

#[tokio::test]
async fn a_relative_watch_reports_relative_paths() {
    let f = fixture().await;
    let mut watch = f.store.watch("backend/virtio_disk").await.unwrap();
    next(&mut watch).await;

    f.xenstored.set("/local/domain/0/backend/virtio_disk/7/51712/state", "1");

    assert_eq!(next(&mut watch).await, "backend/virtio_disk/7/51712/state");
}

#[tokio::test]
async fn special_watches_report_the_coming_and_going_of_domains() {
    let f = fixture().await;
    let mut coming = f.store.watch("@introduceDomain").await.unwrap();
    let mut going = f.store.watch("@releaseDomain").await.unwrap();
    next(&mut coming).await;
    next(&mut going).await;

    f.xenstored.introduce_domain(7);
    assert_eq!(next(&mut coming).await, "@introduceDomain");
    f.xenstored.release_domain(7);
    assert_eq!(next(&mut going).await, "@releaseDomain");
}

#[tokio::test]
async fn each_watch_gets_its_own_events() {
    let f = fixture().await;
    let mut first = f.store.watch("/w").await.unwrap();
    let mut second = f.store.watch("/w").await.unwrap();
    let mut other = f.store.watch("/x").await.unwrap();
    for watch in [&mut first, &mut second, &mut other] {
        next(watch).await;
    }

    f.xenstored.set("/w", "1");

    assert_eq!(next(&mut first).await, "/w");
    assert_eq!(next(&mut second).await, "/w");
    assert!(waiting(&mut other).await.is_empty());
}

#[tokio::test]
async fn dropping_a_watch_unregisters_it() {
    let f = fixture().await;
    let watch = f.store.watch("/w").await.unwrap();
    let kept = f.store.watch("/w").await.unwrap();

    drop(watch);

    eventually(async || f.xenstored.watch_count() == 1).await;
    drop(kept);
}

#[tokio::test]
async fn a_refused_watch_leaves_nothing_behind() {
    let f = fixture().await;

    let error = f.store.watch("/not//well-formed").await.unwrap_err();

    assert!(matches!(error, Error::Refused { .. }));
    assert_eq!(f.store.read("/a").await.unwrap(), None);
    assert_eq!(f.xenstored.watch_count(), 0);
}

#[tokio::test]
async fn a_flood_of_one_path_is_one_event() {
    let f = fixture().await;
    let mut watch = f.store.watch("/w").await.unwrap();
    next(&mut watch).await;

    for value in 0..20_000 {
        f.xenstored.set("/w/noisy", value.to_string());
    }
    let last = f.store.read_string("/w/noisy").await.unwrap();

    assert_eq!(last.as_deref(), Some("19999"));
    assert_eq!(waiting(&mut watch).await, ["/w/noisy"]);
}

#[tokio::test]
async fn a_flood_of_many_paths_becomes_the_watchs_own_path() {
    let f = fixture().await;
    let mut watch = f.store.watch("/w").await.unwrap();
    next(&mut watch).await;

    for index in 0..5000 {
        f.xenstored.set(&format!("/w/{index}"), "");
    }
    f.store.read("/w").await.unwrap();
    let events = waiting(&mut watch).await;

    assert!(events.iter().any(|path| path == "/w"), "says that anything may have changed");
    assert!(events.len() < 1000, "bounded: {}", events.len());
}

#[tokio::test]
async fn a_noisy_path_does_not_starve_the_others() {
    let f = fixture().await;
    let mut watch = f.store.watch("/w").await.unwrap();
    next(&mut watch).await;
    f.xenstored.set("/w/1-noisy", "");
    f.xenstored.set("/w/2-quiet", "");
    f.store.read("/w").await.unwrap();

    let mut events = Vec::new();
    for _ in 0..2 {
        events.push(next(&mut watch).await);
        f.xenstored.set("/w/1-noisy", "");
        f.store.read("/w").await.unwrap();
    }

    assert_eq!(events, ["/w/1-noisy", "/w/2-quiet"]);
}
