use super::*;
use crate::store::Cursor;
use crate::store::sqlite::restore;

fn epoch_file(dir: &Path) -> std::path::PathBuf {
    dir.join(EPOCH_FILE)
}

fn token(db: &Db, n: u128) -> u64 {
    db.append(&[event(n, EventKind::HostDown, &["a"])]).unwrap()[0].token.unwrap().0
}

#[test]
fn a_second_controller_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let first = open_in(dir.path()).unwrap();
    let error = open_in(dir.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Open(_)), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    assert!(matches!(restore(Path::new("/none"), dir.path()), Err(StoreError::Open(_))));
    drop(first);
    assert_eq!(open_in(dir.path()).unwrap().controller(), ControllerId(7));
}

#[test]
fn the_identity_is_drawn_once() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_in(dir.path()).unwrap());
    let db = Db::open(&dir.path().join(DB_FILE), &epoch_file(dir.path()), ControllerId(9)).unwrap();
    assert_eq!((db.controller(), db.epoch()), (ControllerId(7), 2));
}

#[test]
fn a_newer_database_and_a_foreign_one_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(DB_FILE);
    drop(open_in(dir.path()).unwrap());
    let pragma = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    pragma("PRAGMA user_version = 99");
    let text = open_in(dir.path()).unwrap_err().to_string();
    assert!(text.contains("newer controller (schema 99"), "{text}");
    pragma("PRAGMA user_version = 1; PRAGMA application_id = 1");
    let text = open_in(dir.path()).unwrap_err().to_string();
    assert!(text.contains("not a Heartwatch store"), "{text}");
    std::fs::write(&path, "this is not a database, but long enough to be read as one".repeat(99))
        .unwrap();
    assert!(matches!(open_in(dir.path()), Err(StoreError::Open(_))));
}

#[test]
fn a_full_disk_loses_nothing_acknowledged_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let db = open_in(dir.path()).unwrap();
    let first = append(&db, event(1, EventKind::HostDown, &["a"]))[0];
    let pages: i64 = db.c.pragma_query_value(None, "page_count", |r| r.get(0)).unwrap();
    db.c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).unwrap();
    let mut acknowledged = 1;
    let error = (2..10_000)
        .find_map(|n| match db.append(&[event(n, EventKind::HostDown, &["a"])]) {
            Ok(_) => {
                acknowledged += 1;
                None
            }
            Err(e) => Some(e),
        })
        .unwrap();
    assert!(matches!(&error, StoreError::Unavailable(t) if t.contains("free space")), "{error}");
    assert!(matches!(db.check(), Err(StoreError::Unavailable(_))));
    assert_eq!(db.events(Cursor(0), None, 1_000).unwrap().len(), acknowledged);
    go(&db, first);
    drop(db);
    let db = open_in(dir.path()).unwrap();
    assert_eq!(db.events(Cursor(0), None, 1_000).unwrap().len(), acknowledged);
    db.check().unwrap();
    append(&db, event(20_000, EventKind::HostDown, &["a"]));
}

#[test]
fn a_database_replaced_by_an_older_copy_goes_on_with_higher_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let db = open_in(dir.path()).unwrap();
    token(&db, 1);
    // In the same run, so that nothing in the copy looks old.
    db.backup(&copy).unwrap();
    let mut last = token(&db, 2);
    drop(db);
    for n in 10..13 {
        std::fs::copy(&copy, dir.path().join(DB_FILE)).unwrap();
        let db = open_in(dir.path()).unwrap();
        let next = token(&db, n);
        assert!(next > last, "{next} > {last}");
        last = token(&db, n + 10);
    }
}

#[test]
fn the_epoch_rises_at_every_start_whichever_copy_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let write = |n: u64| std::fs::write(epoch_file(dir.path()), n.to_string()).unwrap();
    let epoch = || open_in(dir.path()).map(|db| db.epoch());
    assert_eq!(epoch().unwrap(), 1);
    assert_eq!(epoch().unwrap(), 2);
    std::fs::remove_file(epoch_file(dir.path())).unwrap();
    assert_eq!(epoch().unwrap(), 3);
    std::fs::remove_file(dir.path().join(DB_FILE)).unwrap();
    assert_eq!(epoch().unwrap(), 4);
    write(2);
    assert_eq!(epoch().unwrap(), 5);
    assert_eq!(std::fs::read_to_string(epoch_file(dir.path())).unwrap(), "5\n");
    for bad in ["", "soon", "-1", "99999999999999999999"] {
        std::fs::write(epoch_file(dir.path()), bad).unwrap();
        let text = epoch().unwrap_err().to_string();
        assert!(text.contains("does not hold a number"), "{text}");
    }
    write(1 << 20);
    assert_eq!(epoch().unwrap(), (1 << 20) + 1);
    assert_eq!(epoch().unwrap(), (1 << 20) + 1, "the second half is not spent on restarts");
    write(u64::MAX);
    assert!(epoch().unwrap_err().to_string().contains("beyond"));
}

#[test]
fn a_backup_is_restored_with_a_higher_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.db");
    let db = open_in(dir.path()).unwrap();
    token(&db, 1);
    db.backup(&copy).unwrap();
    let late = token(&db, 2);
    assert!(matches!(db.backup(&copy), Err(StoreError::Invalid(_))), "never overwrites");
    drop(db);
    restore(&copy, dir.path()).unwrap();
    let db = open_in(dir.path()).unwrap();
    assert_eq!(db.epoch(), 3, "one for the restore, one for the start");
    assert_eq!(db.events(Cursor(0), None, 10).unwrap().len(), 1);
    assert_eq!(db.controller(), ControllerId(7));
    assert!(token(&db, 3) > late);
    drop(db);
    restore(&copy, dir.path()).unwrap();
    assert_eq!(open_in(dir.path()).unwrap().epoch(), 5);
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_str().unwrap().contains(".restore")), "{names:?}");
}

#[test]
fn a_useless_backup_leaves_the_store_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = open_in(dir.path()).unwrap();
    token(&db, 1);
    let copy = dir.path().join("copy.db");
    db.backup(&copy).unwrap();
    drop(db);
    let bad = dir.path().join("bad.db");
    let mut bytes = std::fs::read(&copy).unwrap();
    let len = bytes.len();
    bytes[4_096..len - 4_096].fill(0xa5);
    for content in [bytes, b"not a database".to_vec(), Vec::new()] {
        std::fs::write(&bad, content).unwrap();
        let error = restore(&bad, dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Open(_)), "{error}");
    }
    assert!(restore(&dir.path().join("none"), dir.path()).is_err());
    let db = open_in(dir.path()).unwrap();
    assert_eq!(db.events(Cursor(0), None, 10).unwrap().len(), 1);
}

#[test]
fn a_backup_replaces_a_damaged_store() {
    let dir = tempfile::tempdir().unwrap();
    let db = open_in(dir.path()).unwrap();
    token(&db, 1);
    let copy = dir.path().join("copy.db");
    db.backup(&copy).unwrap();
    drop(db);
    std::fs::write(dir.path().join(DB_FILE), "ruined").unwrap();
    std::fs::write(dir.path().join("heartwatch.db-wal"), "ruined").unwrap();
    restore(&copy, dir.path()).unwrap();
    assert_eq!(open_in(dir.path()).unwrap().events(Cursor(0), None, 10).unwrap().len(), 1);
}
