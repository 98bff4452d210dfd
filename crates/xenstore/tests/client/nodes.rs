//! Reading and writing nodes, outside of transactions.

use xenstore::wire::WireError;
use xenstore::{Access, Error, Permission};

use crate::fixture;

#[tokio::test]
async fn a_written_value_is_read_back_by_anyone() {
    let f = fixture().await;

    f.store.write("/local/domain/0/a", "1").await.unwrap();
    f.xenstored.set("/b", "2");

    assert_eq!(f.xenstored.get("/local/domain/0/a"), Some(b"1".to_vec()));
    assert_eq!(f.store.read_string("/b").await.unwrap().as_deref(), Some("2"));
}

#[tokio::test]
async fn a_missing_node_is_none_and_not_an_error() {
    let f = fixture().await;

    assert_eq!(f.store.read("/none").await.unwrap(), None);
    assert_eq!(f.store.directory("/none").await.unwrap(), None);
    assert_eq!(f.store.permissions("/none").await.unwrap(), None);
    f.store.rm("/none/below").await.unwrap();
}

#[tokio::test]
async fn relative_paths_start_at_the_home_of_the_domain() {
    let f = fixture().await;

    f.store.write("backend/x", "1").await.unwrap();

    assert_eq!(f.xenstored.get("/local/domain/0/backend/x"), Some(b"1".to_vec()));
}

#[tokio::test]
async fn a_value_may_be_any_bytes_and_only_read_string_wants_text() {
    let f = fixture().await;
    f.xenstored.set("/bytes", b"\xff\0\n");

    let bytes = f.store.read("/bytes").await.unwrap();
    let text = f.store.read_string("/bytes").await;

    assert_eq!(bytes, Some(b"\xff\0\n".to_vec()));
    assert!(matches!(text, Err(Error::NotText { path, .. }) if path == "/bytes"));
}

#[tokio::test]
async fn a_directory_lists_its_children_only() {
    let f = fixture().await;
    for path in ["/d/b/deep", "/d/a", "/dx"] {
        f.xenstored.set(path, "");
    }
    f.store.mkdir("/d/c").await.unwrap();

    let children = f.store.directory("/d").await.unwrap().unwrap();
    let none = f.store.directory("/d/a").await.unwrap().unwrap();

    assert_eq!(children, ["a", "b", "c"]);
    assert!(none.is_empty());
}

#[tokio::test]
async fn a_directory_too_long_for_a_message_comes_in_parts() {
    let f = fixture().await;
    let names: Vec<String> = (0..700).map(|index| format!("child-{index:010}")).collect();
    for name in &names {
        f.xenstored.set(&format!("/big/{name}"), "");
    }

    let listed = f.store.directory("/big").await.unwrap().unwrap();

    assert_eq!(listed, names);
}

#[tokio::test]
async fn rm_takes_all_below_with_it() {
    let f = fixture().await;
    f.xenstored.set("/a/b/c", "1");

    f.store.rm("/a/b").await.unwrap();

    assert_eq!(f.xenstored.get("/a/b/c"), None);
    assert_eq!(f.xenstored.get("/a"), Some(vec![]));
}

#[tokio::test]
async fn permissions_are_kept_in_order() {
    let f = fixture().await;
    f.xenstored.set("/p", "");
    let wanted = [Permission { access: Access::None, domid: 0 }, Permission { access: Access::Read, domid: 7 }];

    f.store.set_permissions("/p", &wanted).await.unwrap();

    assert_eq!(f.store.permissions("/p").await.unwrap().unwrap(), wanted);
}

#[tokio::test]
async fn domains_are_known_once_introduced() {
    let f = fixture().await;
    f.xenstored.introduce_domain(7);

    assert!(f.store.is_domain_introduced(7).await.unwrap());
    assert!(!f.store.is_domain_introduced(8).await.unwrap());
    assert_eq!(f.store.domain_path(8).await.unwrap(), "/local/domain/8");
}

#[tokio::test]
async fn concurrent_requests_get_each_its_own_answer() {
    let f = fixture().await;
    for index in 0..50 {
        f.xenstored.set(&format!("/n/{index}"), index.to_string());
    }
    let read = |index: usize| {
        let store = f.store.clone();
        tokio::spawn(async move { (index, store.read_string(&format!("/n/{index}")).await.unwrap().unwrap()) })
    };

    let reads: Vec<_> = (0..50).map(read).collect();

    for read in reads {
        let (index, value) = read.await.unwrap();
        assert_eq!(value, index.to_string());
    }
}

#[tokio::test]
async fn more_than_the_socket_holds_arrives_whole() {
    let f = fixture().await;
    let value = |index: usize| format!("{index:04000}");
    let write = |index: usize| {
        let store = f.store.clone();
        tokio::spawn(async move { store.write(&format!("/n/{index}"), value(index)).await })
    };

    let writes: Vec<_> = (0..500).map(write).collect();

    for write in writes {
        write.await.unwrap().unwrap();
    }
    for index in 0..500 {
        assert_eq!(f.xenstored.get(&format!("/n/{index}")), Some(value(index).into_bytes()));
    }
}

#[tokio::test]
async fn what_breaks_a_limit_is_not_sent() {
    let f = fixture().await;

    let long = f.store.write("/a", [0; 4096]).await.unwrap_err();
    let nul = f.store.read("/a\0b").await.unwrap_err();
    let unwatchable = f.store.watch(&"a".repeat(4000)).await.unwrap_err();

    assert!(matches!(long, Error::BadRequest { source: WireError::PayloadTooLong { len: 4099, most: 4096 }, .. }));
    assert!(matches!(nul, Error::BadRequest { source: WireError::BadPath, .. }));
    assert!(matches!(unwatchable, Error::BadRequest { source: WireError::PathTooLong { .. }, .. }));
    assert_eq!(f.store.read("/a").await.unwrap(), None, "the connection is as good as before");
}

#[tokio::test]
async fn a_refusal_says_what_was_asked_and_why_not() {
    let f = fixture().await;

    let error = f.store.read("/not//well-formed").await.unwrap_err();

    assert_eq!(error.to_string(), "Xenstored refused Read of \"/not//well-formed\": EINVAL");
}
