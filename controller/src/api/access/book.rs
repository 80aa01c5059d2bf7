//! The tokens that were given out: kept as hashes, found by them.
//!
//! A token is 256 random bits as text. Its BLAKE3 hash stands in the store, among the named values, as
//! `api-token/NAME`; the token itself is shown once and kept nowhere. To look one up, what was shown is
//! hashed and the hash is looked for in a map. That a map's comparisons take more or less time tells
//! something about the hash of a guess only, and nobody can choose a guess by its hash: it says nothing
//! about any token.
//!
//! A backup holds the hashes, and restoring one brings back tokens that were revoked since: revoke them
//! again.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};

use super::scope::{Scope, Who};
use crate::store::{Store, StoreError};

/// Most tokens.
pub const TOKENS_MAX: usize = 1_000;
/// Longest name, bytes.
const NAME_LEN_MAX: usize = 63;
/// Longest token that is looked at, bytes.
const TOKEN_LEN_MAX: usize = 512;
/// When a token was used last is written this often at most.
const USE_EVERY: Duration = Duration::from_secs(60);
/// What the names of stored tokens begin with.
const PREFIX: &str = "api-token/";

/// A token as it is kept, and shown: without itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Unique, 1 to 63 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was made.
    pub created_ms: Wall,
    /// When it ends; `None`: when it is revoked.
    pub expires_ms: Option<Wall>,
    /// When it was used last, to the minute; `None`: never.
    pub last_used_ms: Option<Wall>,
}

impl TokenRow {
    fn has_ended(&self, now: Wall) -> bool {
        self.expires_ms.is_some_and(|end| end.0 <= now.0)
    }
}

/// A row with its hash, as the store has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    hash: String,
    #[serde(flatten)]
    row: TokenRow,
}

/// Why a token was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::api) enum AddError {
    #[error("a token's name has 1 to 63 letters, digits, `.`, `_` or `-`")]
    Name,
    #[error("a token `{0}` exists: revoke it first, or choose another name")]
    Taken(String),
    #[error("there are {TOKENS_MAX} tokens already: revoke some")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a token that was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::api) enum Shown {
    Right(Who),
    Ended,
    Unknown,
}

/// All tokens but the one of the config.
pub struct TokenBook {
    rows: RwLock<HashMap<[u8; 32], TokenRow>>,
    /// Held by whoever writes to the store, so that a note of a use cannot bring back what was revoked.
    writing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for TokenBook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenBook({} tokens)", self.len())
    }
}

fn hash(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

async fn save(store: &dyn Store, hash: &[u8; 32], row: &TokenRow) -> Result<(), StoreError> {
    let stored = Stored { hash: hex::encode(hash), row: row.clone() };
    let text = serde_json::to_string(&stored).map_err(|e| StoreError::Invalid(e.to_string()))?;
    store.put(&format!("{PREFIX}{}", row.name), Some(text)).await
}

impl TokenBook {
    /// An empty one.
    pub fn empty() -> Self {
        Self { rows: RwLock::default(), writing: tokio::sync::Mutex::new(()) }
    }

    /// Reads what was given out before.
    ///
    /// # Errors
    /// The store cannot be read, or a token in it has no form that we know: who may come in must not be
    /// guessed.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let mut rows = HashMap::new();
        for (name, text) in store.list(PREFIX).await? {
            let damaged = |e: String| StoreError::Open(format!("{name} is damaged: {e}"));
            let stored: Stored = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
            let mut hash = [0; 32];
            hex::decode_to_slice(&stored.hash, &mut hash).map_err(|e| damaged(e.to_string()))?;
            rows.insert(hash, stored.row);
        }
        Ok(Self { rows: RwLock::new(rows), ..Self::empty() })
    }

    /// How many there are, ended ones too.
    pub fn len(&self) -> usize {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All, by name.
    pub fn list(&self) -> Vec<TokenRow> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = rows.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Whose token this is.
    pub(in crate::api) fn look_up(&self, token: &str, now: Wall) -> Shown {
        if token.len() > TOKEN_LEN_MAX {
            return Shown::Unknown;
        }
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        match rows.get(&hash(token)) {
            None => Shown::Unknown,
            Some(row) if row.has_ended(now) => Shown::Ended,
            Some(row) => Shown::Right(Who { name: row.name.clone(), scope: row.scope }),
        }
    }

    /// Notes that a token is used. `true`: it is time to write that down ([`TokenBook::save_use`]).
    pub(in crate::api) fn note_use(&self, token: &str, now: Wall) -> bool {
        let every = i64::try_from(USE_EVERY.as_millis()).unwrap_or(i64::MAX);
        let is_due = |row: &TokenRow| row.last_used_ms.is_none_or(|at| now.0 - at.0 >= every);
        let hash = hash(token);
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        if !rows.get(&hash).is_some_and(is_due) {
            return false;
        }
        drop(rows);
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let Some(row) = rows.get_mut(&hash).filter(|row| is_due(row)) else { return false };
        row.last_used_ms = Some(now);
        true
    }

    /// Writes down when a token was used last.
    pub(in crate::api) async fn save_use(
        &self,
        name: &str,
        store: &dyn Store,
    ) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let found = {
            let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
            rows.iter().find(|(_, row)| row.name == name).map(|(hash, row)| (*hash, row.clone()))
        };
        match found {
            Some((hash, row)) => save(store, &hash, &row).await,
            // Revoked meanwhile.
            None => Ok(()),
        }
    }

    /// Takes a new token in, once it is on the disk. Ended ones make room if there is none.
    pub(in crate::api) async fn add(
        &self,
        token: &str,
        row: TokenRow,
        now: Wall,
        store: &dyn Store,
    ) -> Result<(), AddError> {
        if !is_name(&row.name) {
            return Err(AddError::Name);
        }
        // In the journal it would be taken for the one of the config.
        if row.name == super::FILE_TOKEN {
            return Err(AddError::Taken(row.name));
        }
        let _writing = self.writing.lock().await;
        let all = self.list();
        // The name of one that has ended is free again: its row is written over.
        if all.iter().any(|other| other.name == row.name && !other.has_ended(now)) {
            return Err(AddError::Taken(row.name));
        }
        if all.len() >= TOKENS_MAX {
            let ended: Vec<_> = all.iter().filter(|row| row.has_ended(now)).collect();
            if ended.is_empty() {
                return Err(AddError::Full);
            }
            for old in ended {
                self.take_out(&old.name);
                store.put(&format!("{PREFIX}{}", old.name), None).await?;
            }
        }
        let hash = hash(token);
        save(store, &hash, &row).await?;
        self.take_out(&row.name);
        self.rows.write().unwrap_or_else(PoisonError::into_inner).insert(hash, row);
        Ok(())
    }

    fn take_out(&self, name: &str) -> bool {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let before = rows.len();
        rows.retain(|_, row| row.name != name);
        rows.len() < before
    }

    /// Revokes a token. `false`: there is none of that name. It is refused from now on even if the store
    /// cannot be written; on such an error it would be good again after a restart.
    pub(in crate::api) async fn revoke(
        &self,
        name: &str,
        store: &dyn Store,
    ) -> Result<bool, StoreError> {
        let _writing = self.writing.lock().await;
        let was_there = self.take_out(name);
        if was_there || is_name(name) {
            // Also when it is not known here: an earlier revocation may not have reached the disk.
            store.put(&format!("{PREFIX}{name}"), None).await?;
        }
        Ok(was_there)
    }
}

/// Notes a use and, now and then, writes it down beside the request.
pub(in crate::api) fn used(
    book: &Arc<TokenBook>,
    store: &Arc<dyn Store>,
    token: &str,
    name: &str,
    now: Wall,
) {
    if !book.note_use(token, now) {
        return;
    }
    let (book, store, name) = (Arc::clone(book), Arc::clone(store), name.to_owned());
    tokio::spawn(async move {
        if let Err(e) = book.save_use(&name, &*store).await {
            log::debug!("cannot note that the token {name} was used: {e}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::TestStore;

    const NOW: Wall = Wall(1_000_000);

    fn row(name: &str, expires: Option<i64>) -> TokenRow {
        TokenRow {
            name: name.to_owned(),
            scope: Scope::Operate,
            created_ms: NOW,
            expires_ms: expires.map(Wall),
            last_used_ms: None,
        }
    }

    #[tokio::test]
    async fn a_token_is_found_until_it_ends_or_is_revoked_also_after_a_restart() {
        let store = TestStore::default();
        let book = TokenBook::empty();
        book.add("secret-a", row("a", None), NOW, &store).await.unwrap();
        book.add("secret-b", row("b", Some(NOW.0 + 5)), NOW, &store).await.unwrap();
        let again = TokenBook::load(&store).await.unwrap();
        for book in [&book, &again] {
            assert!(matches!(book.look_up("secret-a", NOW), Shown::Right(who) if who.name == "a"));
            assert!(matches!(book.look_up("secret-b", Wall(NOW.0 + 4)), Shown::Right(_)));
            assert_eq!(book.look_up("secret-b", Wall(NOW.0 + 5)), Shown::Ended);
            assert_eq!(book.look_up("secret-c", NOW), Shown::Unknown);
            assert_eq!(book.look_up(&"x".repeat(513), NOW), Shown::Unknown);
        }
        assert!(again.revoke("a", &store).await.unwrap());
        assert_eq!(again.look_up("secret-a", NOW), Shown::Unknown);
        assert!(!again.revoke("a", &store).await.unwrap());
        let later = TokenBook::load(&store).await.unwrap();
        assert_eq!(later.list().iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["b"]);
        let kept = store.list("").await.unwrap();
        assert!(kept.iter().all(|(_, text)| !text.contains("secret")), "{kept:?}");
    }

    #[tokio::test]
    async fn names_are_good_and_unique_and_their_number_is_bounded() {
        let (store, book) = (TestStore::default(), TokenBook::empty());
        for bad in ["", "a b", "a/b", "é", &"x".repeat(64)] {
            let refused = book.add("t", row(bad, None), NOW, &store).await;
            assert!(matches!(refused, Err(AddError::Name)), "{bad}");
        }
        book.add("t", row("a", Some(NOW.0 + 1)), NOW, &store).await.unwrap();
        let taken = book.add("u", row("a", None), NOW, &store).await;
        assert!(matches!(taken, Err(AddError::Taken(name)) if name == "a"));
        let later = Wall(NOW.0 + 1);
        book.add("u", row("a", None), later, &store).await.unwrap();
        assert_eq!((book.look_up("t", later), book.len()), (Shown::Unknown, 1));
        for n in 1..TOKENS_MAX {
            let end = (n == 7).then_some(NOW.0 + 2);
            book.add(&format!("t{n}"), row(&format!("n{n}"), end), later, &store).await.unwrap();
        }
        assert!(matches!(book.add("x", row("x", None), later, &store).await, Err(AddError::Full)));
        book.add("x", row("x", None), Wall(NOW.0 + 2), &store).await.unwrap();
        assert_eq!((book.len(), book.look_up("t7", later)), (TOKENS_MAX, Shown::Unknown));
    }

    #[tokio::test]
    async fn uses_are_noted_now_and_then_and_never_bring_a_token_back() {
        let (store, book) = (TestStore::default(), TokenBook::empty());
        book.add("t", row("a", None), NOW, &store).await.unwrap();
        assert!(book.note_use("t", NOW) && !book.note_use("t", Wall(NOW.0 + 59_999)));
        book.save_use("a", &store).await.unwrap();
        let again = TokenBook::load(&store).await.unwrap();
        assert_eq!(again.list()[0].last_used_ms, Some(NOW));
        assert!(book.note_use("t", Wall(NOW.0 + 60_000)));
        book.revoke("a", &store).await.unwrap();
        book.save_use("a", &store).await.unwrap();
        assert!(TokenBook::load(&store).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_broken_store_makes_no_token_and_revokes_for_this_life() {
        let (store, book) = (TestStore::default(), TokenBook::empty());
        book.add("t", row("a", None), NOW, &store).await.unwrap();
        store.broken.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(
            book.add("u", row("b", None), NOW, &store).await,
            Err(AddError::Store(_))
        ));
        assert_eq!(book.look_up("u", NOW), Shown::Unknown);
        assert!(book.revoke("a", &store).await.is_err());
        assert_eq!(book.look_up("t", NOW), Shown::Unknown);
        store.broken.store(false, std::sync::atomic::Ordering::Relaxed);
        book.revoke("a", &store).await.unwrap();
        assert!(TokenBook::load(&store).await.unwrap().is_empty());
    }
}
