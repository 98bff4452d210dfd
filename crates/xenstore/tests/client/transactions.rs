//! Transactions: all or nothing, tried again on conflict, aborted when not ended.

use std::cell::Cell;

use xenstore::Error;

use crate::{eventually, fixture};

#[tokio::test]
async fn changes_appear_together_at_the_end() {
    let f = fixture().await;

    let seen_inside = f
        .store
        .transaction(async |tx| {
            tx.write("/t/a", "1").await?;
            tx.write("/t/b", "2").await?;
            assert_eq!(f.xenstored.get("/t/a"), None, "not before the end");
            tx.read_string("/t/a").await
        })
        .await
        .unwrap();

    assert_eq!(seen_inside.as_deref(), Some("1"));
    assert_eq!(f.xenstored.get("/t/a"), Some(b"1".to_vec()));
    assert_eq!(f.xenstored.get("/t/b"), Some(b"2".to_vec()));
}

#[tokio::test]
async fn a_conflicting_change_makes_it_run_again_on_the_new_values() {
    let f = fixture().await;
    f.xenstored.set("/counter", "1");
    let attempts = Cell::new(0);

    f.store
        .transaction(async |tx| {
            let value: u32 = tx.read_string("/counter").await?.unwrap().parse().unwrap();
            if attempts.replace(attempts.get() + 1) == 0 {
                f.xenstored.set("/counter", "10");
            }
            tx.write("/counter", (value + 1).to_string()).await
        })
        .await
        .unwrap();

    assert_eq!(attempts.get(), 2);
    assert_eq!(f.xenstored.get("/counter"), Some(b"11".to_vec()));
}

#[tokio::test]
async fn a_change_elsewhere_is_no_conflict() {
    let f = fixture().await;
    f.xenstored.set("/mine/a", "1");
    f.xenstored.set("/other", "1");
    let attempts = Cell::new(0);

    f.store
        .transaction(async |tx| {
            attempts.set(attempts.get() + 1);
            tx.write("/mine/a", "2").await?;
            f.xenstored.set("/other", "2");
            Ok::<_, Error>(())
        })
        .await
        .unwrap();

    assert_eq!(attempts.get(), 1);
}

#[tokio::test]
async fn endless_conflicts_end_in_an_error() {
    let f = fixture().await;
    f.xenstored.fail_commits(u32::MAX);

    let result = f.store.transaction(async |tx| tx.write("/a", "1").await).await;

    assert!(matches!(result, Err(Error::Contended { attempts }) if attempts > 1));
    assert_eq!(f.xenstored.get("/a"), None);
}

#[tokio::test]
async fn a_body_that_fails_aborts() {
    let f = fixture().await;

    let result: Result<(), Box<dyn std::error::Error>> = f
        .store
        .transaction(async |tx| {
            tx.write("/a", "1").await?;
            Err("changed my mind".into())
        })
        .await;

    assert_eq!(result.unwrap_err().to_string(), "changed my mind");
    eventually(async || f.xenstored.transaction_count() == 0).await;
    assert_eq!(f.xenstored.get("/a"), None);
}

#[tokio::test]
async fn a_cancelled_transaction_aborts() {
    let f = fixture().await;
    let store = f.store.clone();
    let task = tokio::spawn(async move {
        let stuck = async |tx: &xenstore::Transaction| {
            tx.write("/a", "1").await?;
            std::future::pending::<Result<(), Error>>().await
        };
        tokio::select! { result = store.transaction(stuck) => result, () = std::future::pending() => Ok(()) }
    });
    eventually(async || f.xenstored.transaction_count() == 1).await;

    task.abort();

    eventually(async || f.xenstored.transaction_count() == 0).await;
    assert_eq!(f.xenstored.get("/a"), None);
}

#[tokio::test]
async fn a_transaction_cancelled_before_it_has_begun_is_none() {
    let f = fixture().await;

    tokio::select! {
        biased;
        result = f.store.transaction(async |tx| tx.write("/a", "1").await) => panic!("already: {result:?}"),
        // What was asked is on its way.
        () = tokio::task::yield_now() => {}
    }
    f.store.read("/a").await.unwrap();

    eventually(async || f.xenstored.transaction_count() == 0).await;
    assert_eq!(f.store.read("/a").await.unwrap(), None);
}

#[tokio::test]
async fn a_transaction_does_not_survive_its_connection() {
    let f = fixture().await;

    let result = f
        .store
        .transaction(async |tx| {
            tx.write("/old", "1").await?;
            f.xenstored.disconnect_all();
            eventually(async || f.store.read("/old").await.is_ok()).await;
            // On the new connection another transaction has got the same id.
            f.store.transaction(async |_| tx.write("/old", "2").await).await
        })
        .await;

    assert!(matches!(result, Err(Error::ConnectionLost { .. })), "{result:?}");
    assert_eq!(f.xenstored.get("/old"), None);
}
