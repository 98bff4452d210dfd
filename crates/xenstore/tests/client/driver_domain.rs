//! In a domain that is not Dom0: what it may, and what it is refused.

use xenstore::Error;

use crate::{eventually, fixture_in, next, waiting};

#[tokio::test]
async fn relative_paths_start_at_the_home_of_the_domain_and_its_id_is_there() {
    let f = fixture_in(3).await;

    assert_eq!(f.store.read_string("domid").await.unwrap().as_deref(), Some("3"));
}

#[tokio::test]
async fn what_is_others_is_refused_whether_it_is_there_or_not() {
    let f = fixture_in(3).await;
    f.xenstored.set("/local/domain/5/name", "web");

    for path in ["/local/domain/5/name", "/local/domain/5/vm", "/local/domain/7/name", "/libxl"] {
        assert!(f.store.read(path).await.unwrap_err().is_not_permitted(), "{path}");
        assert!(f.store.directory(path).await.unwrap_err().is_not_permitted(), "{path}");
        assert!(f.store.write(path, "x").await.unwrap_err().is_not_permitted(), "{path}");
    }
    assert!(f.store.is_domain_introduced(5).await.unwrap_err().is_not_permitted());
    assert_eq!(f.store.read("backend/none").await.unwrap(), None, "its own home it may read");
    assert!(f.store.write("domid", "0").await.unwrap_err().is_not_permitted(), "and not write");
}

#[tokio::test]
async fn what_the_toolstack_made_for_it_is_its_own() {
    let f = fixture_in(3).await;
    let device = "/local/domain/3/backend/virtio_disk/5/51712";
    f.xenstored.set(device, "");
    f.xenstored.set_permissions(device, &["n3", "r5"]);
    f.xenstored.set(&format!("{device}/state"), "1");
    let mut watch = f.store.watch("backend/virtio_disk").await.unwrap();
    assert_eq!(next(&mut watch).await, "backend/virtio_disk");

    let write = f.store.transaction(async |nodes| nodes.write("backend/virtio_disk/5/51712/state", "2").await);
    write.await.unwrap();
    assert_eq!(f.xenstored.get(&format!("{device}/state")), Some(b"2".to_vec()));
    assert_eq!(next(&mut watch).await, "backend/virtio_disk/5/51712/state");

    f.xenstored.rm(device);
    assert_eq!(next(&mut watch).await, "backend/virtio_disk/5/51712");
    assert_eq!(f.store.read("backend/virtio_disk/5/51712/state").await.unwrap(), None);
}

#[tokio::test]
async fn of_others_nodes_and_ends_it_hears_nothing() {
    let f = fixture_in(3).await;
    let mut name = f.store.watch("/local/domain/5/name").await.unwrap();
    let mut deaths = f.store.watch("@releaseDomain").await.unwrap();
    assert_eq!(
        (next(&mut name).await, next(&mut deaths).await),
        ("/local/domain/5/name".into(), "@releaseDomain".into())
    );

    f.xenstored.set("/local/domain/5/name", "web");
    f.xenstored.release_domain(5);
    f.xenstored.set("/local/domain/3/x", "1");

    // What comes after has come.
    eventually(async || matches!(f.store.read("x").await, Ok(Some(_)))).await;
    assert!(waiting(&mut name).await.is_empty() && waiting(&mut deaths).await.is_empty());
}

#[tokio::test]
async fn a_refusal_is_no_lost_connection() {
    let f = fixture_in(3).await;

    let error = f.store.read("/local/domain/5/name").await.unwrap_err();

    assert!(matches!(error, Error::Refused { .. }) && !error.is_not_found(), "{error}");
    assert_eq!(f.xenstored.connection_count(), 1);
}
