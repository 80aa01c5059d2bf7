use std::sync::Arc;

use super::*;
use crate::store::sqlite::SqliteStore;
use crate::store::{Cursor, Store};

fn open(dir: &Path) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(dir, ControllerId(7)).unwrap())
}

#[tokio::test]
async fn writes_from_many_tasks_all_last() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let tasks: Vec<_> = (1..=300u128)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut one = event(n, EventKind::HostDown, &["a"]);
                one.host = Some(host((n % 7) as u8));
                store.append(vec![one]).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    store.shutdown().await;
    let db = open_in(dir.path()).unwrap();
    assert_eq!(db.events(Cursor(0), None, 1_000).unwrap().len(), 300);
}

#[tokio::test]
async fn one_bad_command_does_not_spoil_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let many = vec![event(9, EventKind::HostDown, &[]); 101];
    let mut wrong = event(3, EventKind::HostForgotten, &[]);
    wrong.host = Some(host(9));
    let (a, b, c, d) = tokio::join!(
        store.append(vec![event(1, EventKind::HostDown, &["a"])]),
        store.append(many),
        store.forget(host(1), wrong),
        store.append(vec![event(2, EventKind::HostDown, &["a"])]),
    );
    assert!(a.is_ok() && d.is_ok());
    assert!(matches!(b, Err(StoreError::Invalid(_))));
    assert!(matches!(c, Err(StoreError::Invalid(_))));
    assert_eq!(store.head().await.unwrap(), Cursor(2));
    store.shutdown().await;
}

#[tokio::test]
async fn a_group_that_the_disk_refuses_is_answered_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let squeeze = |pages: i64| {
        store.write(move |db| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            Ok(db.c.query_row(&sql, [], |_| Ok(()))?)
        })
    };
    // Pages that a migration has set free.
    store.put("fill", Some("x".repeat(100_000))).await.unwrap();
    squeeze(1).await.unwrap();
    let mut big = event(1, EventKind::HostDown, &["a"]);
    big.data.insert("fill".to_owned(), "x".repeat(100_000).into());
    let small = || async {
        let mut one = event(2, EventKind::HostDown, &["a"]);
        one.host = Some(host(2));
        store.append(vec![one]).await
    };
    let (refused, _) = tokio::join!(store.append(vec![big.clone()]), small());
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(matches!(store.check().await, Err(StoreError::Unavailable(_))));
    squeeze(1_000_000).await.unwrap();
    store.append(vec![big]).await.unwrap();
    small().await.unwrap();
    assert_eq!(store.head().await.unwrap(), Cursor(2));
    store.check().await.unwrap();
    store.shutdown().await;
}

#[tokio::test]
async fn after_shutdown_writes_are_refused_and_the_directory_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.put("k", Some("v".to_owned())).await.unwrap();
    assert_eq!(store.get("k").await.unwrap().as_deref(), Some("v"));
    store.shutdown().await;
    store.shutdown().await;
    assert!(matches!(store.put("k", None).await, Err(StoreError::Unavailable(_))));
    assert!(!dir.path().join("heartwatch.db-wal").exists(), "the log is folded in");
    let again = open(dir.path());
    assert_eq!(again.get("k").await.unwrap().as_deref(), Some("v"));
    again.shutdown().await;
}

#[tokio::test]
async fn a_writer_that_dies_leaves_its_callers_with_unknown_and_the_next_with_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let lost: Result<(), _> = store.write(|_| panic!("planted")).await;
    assert!(matches!(lost, Err(StoreError::Unknown)));
    // The thread may take a moment to let go of its queue.
    loop {
        match store.check().await {
            Err(StoreError::Unknown) => tokio::task::yield_now().await,
            Err(StoreError::Unavailable(text)) => {
                break assert!(text.contains("restart"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn reads_and_backups_go_on_beside_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.append(vec![event(1, EventKind::HostDown, &["a", "~b"])]).await.unwrap();
    store.save_hosts(vec![row(1)]).await.unwrap();
    let to = dir.path().join("copy.db");
    let (backup, appended) =
        tokio::join!(store.backup(&to), store.append(vec![event(2, EventKind::HostDown, &["a"])]));
    backup.unwrap();
    appended.unwrap();
    assert_eq!(store.hosts(None, 9).await.unwrap(), [row(1)]);
    assert_eq!(store.pending("a", None, 10).await.unwrap().len(), 2);
    assert_eq!(store.held_hosts().await.unwrap(), [host(1)]);
    assert_eq!(store.events_of(host(1), 1).await.unwrap()[0].cursor, Cursor(2));
    assert_eq!(store.events(Cursor(1), None, 5).await.unwrap().len(), 1);
    assert_eq!(store.backlog().await.unwrap().by_receiver.len(), 2);
    assert_eq!(store.release(host(1), Receivers::All, Ok(()), NOW).await.unwrap().len(), 1);
    assert_eq!(store.deliveries(DeliveryFilter::default(), 9).await.unwrap().len(), 3);
    store.shutdown().await;
}
