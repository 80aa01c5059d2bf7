//! The fleet secrets in force: shown, rotated, retired, read anew after somebody edited their file.
//!
//! **Who would fall silent.** A host whose secret is taken out of force is not heard any more: that would be
//! called `down` though it lives. So whatever would take one out (a line that was removed, made `renew-only`
//! or changed, whether it comes to light at `reload`, at SIGHUP or at the next `rotate`) is refused while
//! hosts have lately proved themselves by it, unless an operator says so with open eyes. What was in force
//! stays in force then. Nothing guards a restart: it knows of no host's key, and takes the file as it is.

use std::time::Duration;

use heartwatch_common::auth::{Keyring, load_secret, replace_secret_file};
use heartwatch_common::id::KeyId;
use heartwatch_common::words;
use rand::Rng;
use std::sync::{Arc, PoisonError};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{EnrolError, Enrolling, SecretStatus, held};
use crate::shard::worker::Command as ShardCommand;

/// How long a shard may take to say how many hosts use which key.
const SHARD_ANSWER_MAX: Duration = Duration::from_secs(2);

/// Hosts by the key id that they proved themselves by last.
type Proved = [u64; 256];

/// Which secrets a change may take out of force although hosts beat under them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// None.
    Nothing,
    /// This one: it was asked for, and looked at.
    Lose(KeyId),
    /// Any: `--force`.
    Force,
}

/// Refuses a ring under which hosts would fall silent that beat under the one in force.
fn guard(now: &Keyring, next: &Keyring, counts: &Proved, may: May) -> Result<(), EnrolError> {
    let lost = now.lost_in(next).into_iter().filter(|id| match may {
        May::Nothing => true,
        May::Lose(asked) => *id != asked,
        May::Force => false,
    });
    let beating: Vec<_> =
        lost.map(|id| (id, counts[usize::from(id.0)])).filter(|l| l.1 > 0).collect();
    if beating.is_empty() {
        return Ok(());
    }
    let hosts: u64 = beating.iter().map(|(_, n)| n).sum();
    let ids: Vec<_> = beating.iter().map(|(id, _)| id.to_string()).collect();
    Err(EnrolError::Conflict(format!(
        "the secret file no longer lets hosts beat under secret {}, by which {} lately came \
         through: hosts would fall silent and be called down. The secrets in force stay in force. Put the \
         line back as it was and run `heartwatchctl secrets reload`; to end a secret, `secrets rotate`, wait \
         until its hosts have renewed (`heartwatchctl secrets` counts them), then `secrets retire`. If those \
         hosts are to fall silent: `heartwatchctl secrets reload --force`. A restart of the controller would \
         take the file as it is",
        ids.join(" and "),
        words::count(hosts, "host")
    )))
}

impl Enrolling {
    async fn proved_by(&self) -> Result<Proved, EnrolError> {
        let mut counts = [0; 256];
        for (i, shard) in self.p.shards.iter().enumerate() {
            let (answer, answered) = oneshot::channel();
            let sent = shard.send(ShardCommand::Keys(answer)).is_ok();
            let told = tokio::time::timeout(SHARD_ANSWER_MAX, answered).await;
            let Some(Ok(Ok(of_shard))) = sent.then_some(told) else {
                let text = format!("shard {i} did not answer in time: ask again");
                return Err(EnrolError::Secrets(text));
            };
            for (all, n) in counts.iter_mut().zip(of_shard.iter()) {
                *all += u64::from(*n);
            }
        }
        Ok(counts)
    }

    /// The fleet secrets and how many hosts beat under each.
    pub async fn secrets(&self) -> Result<Vec<SecretStatus>, EnrolError> {
        let counts = self.proved_by().await?;
        let ring = self.keyring();
        let current = ring.current().key_id();
        let row = |(key_id, live): (KeyId, bool)| SecretStatus {
            key_id,
            state: match live {
                _ if key_id == current => "current",
                true => "live",
                false => "renew-only",
            }
            .to_owned(),
            hosts: counts[usize::from(key_id.0)],
        };
        Ok(ring.key_ids().map(row).collect())
    }

    /// Makes a new secret the current one. Hosts are told to renew as they ask for acks, bounded in rate.
    pub async fn rotate(&self) -> Result<Vec<SecretStatus>, EnrolError> {
        let mut bytes = Zeroizing::new([0; 32]);
        held(&self.rng).fill_bytes(&mut *bytes);
        let how = |ring: &Keyring| {
            ring.rotated(*bytes).map_err(|_| {
                let text = "all 256 key ids are taken: take retired secrets that no host needs out of \
                            the file, then run `heartwatchctl secrets reload`";
                EnrolError::Conflict(text.to_owned())
            })
        };
        self.change(how, May::Nothing).await?;
        self.secrets().await
    }

    /// Has a secret's keys renew only. Refused while hosts beat under it, unless `force`; the current one is
    /// refused always.
    pub async fn retire(
        &self,
        key_id: KeyId,
        force: bool,
    ) -> Result<Vec<SecretStatus>, EnrolError> {
        let on = self.secrets().await?.into_iter().find(|s| s.key_id == key_id);
        let on = on.ok_or_else(|| EnrolError::NotFound(format!("there is no secret {key_id}")))?;
        let refused = match on.state.as_str() {
            "current" => Some(format!(
                "secret {key_id} is the current one, under which new keys are made, and cannot be retired: \
                 first `heartwatchctl secrets rotate`, then wait until its hosts have renewed \
                 (`heartwatchctl secrets` counts them), then retire it"
            )),
            "renew-only" => Some(format!("secret {key_id} is retired already")),
            _ if on.hosts > 0 && !force => Some(format!(
                "{} still beat{} under secret {key_id} and would fall silent. Wait until they have \
                 renewed, give hosts without enrolment their new keys by hand, or say --force",
                words::count(on.hosts, "host"),
                if on.hosts == 1 { "s" } else { "" }
            )),
            _ => None,
        };
        if let Some(text) = refused {
            return Err(EnrolError::Conflict(text));
        }
        let how = |ring: &Keyring| {
            ring.retired(key_id).ok_or_else(|| {
                EnrolError::Conflict(format!(
                    "in the secret file, secret {key_id} is the first one, or is not live: run \
                     `heartwatchctl secrets reload`, and look at `heartwatchctl secrets`"
                ))
            })
        };
        self.change(how, May::Lose(key_id)).await?;
        self.secrets().await
    }

    /// Reads the file anew, after somebody edited it. Refused if hosts would fall silent, unless `force`.
    pub async fn reload(&self, force: bool) -> Result<Vec<SecretStatus>, EnrolError> {
        let _writing = self.writing.lock().await;
        let ring = self.read().await?;
        let may = if force { May::Force } else { May::Nothing };
        self.guarded(&ring, may).await?;
        self.take(ring);
        self.secrets().await
    }

    async fn guarded(&self, next: &Keyring, may: May) -> Result<(), EnrolError> {
        let now = self.keyring();
        // Shards are asked only if it matters: one that is stuck must not stand in the way of the rest.
        if may == May::Force || now.lost_in(next).is_empty() {
            return Ok(());
        }
        guard(&now, next, &self.proved_by().await?, may)
    }

    async fn read(&self) -> Result<Keyring, EnrolError> {
        let path = self.p.secret_file.clone();
        let read = tokio::task::spawn_blocking(move || load_secret::<Keyring>(&path)).await;
        read.map_err(|e| EnrolError::Secrets(e.to_string()))?
            .map_err(|e| EnrolError::Secrets(format!("{:#}", anyhow::Error::from(e))))
    }

    /// Changes the file, then the ring in force: a crash between leaves a file that is read at the start.
    async fn change(
        &self,
        how: impl FnOnce(&Keyring) -> Result<Keyring, EnrolError>,
        may: May,
    ) -> Result<(), EnrolError> {
        let _writing = self.writing.lock().await;
        // What is in the file, not what is in force: an edit that was not reloaded must not be lost.
        let ring = how(&self.read().await?)?;
        self.guarded(&ring, may).await?;
        let (path, text) = (self.p.secret_file.clone(), ring.to_text());
        let write = move || replace_secret_file(&path, &text, None);
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|e| EnrolError::Secrets(e.to_string()))?.map_err(|e| {
            EnrolError::Secrets(format!(
                "cannot write {}: {e}; edit it by hand as root (`heartwatchctl secret new` makes a line), \
                 then run `heartwatchctl secrets reload`",
                self.p.secret_file.display()
            ))
        })?;
        self.take(ring);
        Ok(())
    }

    fn take(&self, ring: Keyring) {
        let ids: Vec<String> = ring.key_ids().map(|(id, _)| id.to_string()).collect();
        let ring = Arc::new(ring);
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&ring);
        for (i, shard) in self.p.shards.iter().enumerate() {
            if shard.send(ShardCommand::Keyring(Arc::clone(&ring))).is_err() {
                log::error!("shard {i} is too busy to take the new secrets: reload them again");
            }
        }
        log::info!("fleet secrets in force: {}", ids.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::auth::FleetSecret;

    fn ring(ids: &[u8]) -> Keyring {
        let secrets = ids.iter().map(|id| FleetSecret::new(KeyId(*id), [*id; 32])).collect();
        Keyring::new(secrets).unwrap()
    }

    #[test]
    fn no_change_silences_hosts_that_lately_proved_themselves_unless_somebody_says_so() {
        let (now, mut counts) = (ring(&[3, 2, 1]), [0; 256]);
        (counts[3], counts[1]) = (40, 7);
        let told =
            |next: &Keyring, may| guard(&now, next, &counts, may).err().map(|e| e.to_string());
        assert_eq!(told(&now, May::Nothing), None);
        assert_eq!(told(&ring(&[4, 3, 1]), May::Nothing), None, "nobody beats under 2");
        let one = told(&ring(&[3, 2]), May::Nothing).unwrap();
        assert!(one.contains("secret 1, by which 7 hosts") && one.contains("--force"), "{one}");
        let two = told(&ring(&[2]), May::Nothing).unwrap();
        assert!(two.contains("secret 3 and 1, by which 47 hosts"), "{two}");
        assert_eq!(told(&ring(&[3, 2]), May::Lose(KeyId(1))), None);
        let other = told(&ring(&[2]), May::Lose(KeyId(1))).unwrap();
        assert!(other.contains("secret 3, by which 40 hosts"), "{other}");
        assert_eq!(told(&ring(&[2]), May::Force), None);
    }
}
