//! How this host gets its key: `enroll`, by hand or by itself at the first start, and renewals.
//!
//! What is said: [`heartwatch_common::enrol`]. What is kept, all in the state folder, mode 0600:
//!
//! | file | what |
//! | --- | --- |
//! | `key` | the host's key |
//! | `key.previous` | the one before, until the controller has answered under the new one |
//! | `enrolment` | whom this host belongs to, and as whom: [`Enrolment`] |
//! | `enrolment.broken` | one that could not be read, and whose place another took |
//! | `enrolling` | the number of an enrolment that is not done yet, so that a repetition is known as such |
//!
//! Everything here blocks: on names, on connections, on the disk. It runs before the first beat, or on a
//! thread of its own.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use heartwatch_common::auth::{
    HostKey, SecretFileError, load_secret, read_secret_file, replace_secret_file,
};
use heartwatch_common::enrol::{
    ENROL_PATH, EnrolAnswer, EnrolRequest, Exchange, Hex, JoinToken, NONCE_PATH, NonceAnswer,
    Proof, Purpose, RENEW_PATH, RenewAnswer, RenewRequest, Revoked, STANDING_PATH, StandingAnswer,
    StandingRequest,
};
use heartwatch_common::id::HostId;
use heartwatch_common::secret;
use heartwatch_common::time::Clock;
use rand::Rng;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

pub use file::Enrolment;
pub use https::{HttpError, Trust, Url};
pub use machine::Machine;

pub mod file;
pub mod https;
pub mod machine;

/// The key before the present one.
const PREVIOUS: &str = "key.previous";
/// The number of an enrolment under way.
const ATTEMPT: &str = "enrolling";

/// It did not work.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The join token cannot be had.
    #[error("cannot use the join token in {from}: {reason}")]
    Token {
        /// Where it should be.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// A token where its file's name belongs.
    #[error(
        "--token-file wants the name of a file, and was given a token itself: put it into a file of mode 600, or say \
         `--token-file -` and paste it. It is in your shell's history now: revoke it (`heartwatchctl token revoke` \
         and its name)"
    )]
    TokenItself,
    /// A token without a pin, and no authority.
    #[error(
        "this join token does not say which certificate the controller has: give --ca FILE with the \
         certificate of the authority that signed it"
    )]
    NoTrust,
    /// The controller was not reached, or said no.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// What it said makes no sense.
    #[error("the controller's answer is not understood (is it of another version?): {0}")]
    Answer(String),
    /// The state folder.
    #[error("cannot write {path}: run `enroll` as root, or as the user of the agent")]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl EnrolError {
    /// Whether the same may work later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Http(e) if e.may_pass())
    }
}

/// Reads a join token from a file that only its owner can read, or from the standard input (`-`).
pub fn token(from: &Path) -> Result<JoinToken, EnrolError> {
    if secret::is_no_name(&from.to_string_lossy()) {
        return Err(EnrolError::TokenItself);
    }
    let wrong = |reason: String| EnrolError::Token { from: from.display().to_string(), reason };
    let text = if from == Path::new("-") {
        use std::io::Read;
        let mut text = Zeroizing::new(String::new());
        io::stdin().take(4_096).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
        text
    } else {
        read_secret_file(from).map_err(|e| wrong(crate::app::chain(&e)))?
    };
    text.parse().map_err(|e| wrong(format!("{e}")))
}

/// What an enrolment needs to know.
#[derive(Debug)]
pub struct Plan {
    /// The controller's API.
    pub url: Url,
    /// What lets this host in.
    pub token: JoinToken,
    /// The authority that signed the controller's certificate; without it the token's pin tells.
    pub ca: Option<PathBuf>,
    /// Who it would like to be.
    pub host: HostId,
    /// Its name, for people.
    pub name: String,
    /// Which machine this is.
    pub machine: Machine,
    /// Its present key as that host, if it has one.
    pub present: Option<HostKey>,
    /// Where all is kept.
    pub state_dir: PathBuf,
    /// Where the key goes.
    pub key_file: PathBuf,
}

fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, EnrolError> {
    serde_json::from_str(text).map_err(|e| EnrolError::Answer(e.to_string()))
}

/// Whoever owns the state folder owns what root puts there.
pub(crate) fn owner(dir: &Path) -> Option<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    std::fs::metadata(dir).ok().map(|meta| (meta.uid(), meta.gid()))
}

impl Plan {
    fn trust(&self) -> Result<Trust, EnrolError> {
        match (&self.ca, self.token.pin) {
            (Some(ca), _) => Ok(Trust::Ca(ca.clone())),
            (None, Some(pin)) => Ok(Trust::Pin(pin)),
            (None, None) => Err(EnrolError::NoTrust),
        }
    }

    /// The number of this enrolment: kept until it is done, so that asking again after a lost answer takes
    /// no second use of the token. Another token or host is another enrolment.
    fn attempt<R: Rng + ?Sized>(&self, rng: &mut R) -> Result<Hex<16>, EnrolError> {
        let path = self.state_dir.join(ATTEMPT);
        let what = format!("{} {}", self.token.hash(), self.host);
        if let Ok(text) = read_secret_file(&path)
            && let Some((attempt, of)) = text.trim().split_once(' ')
            && of == what
            && let Ok(attempt) = attempt.parse()
        {
            return Ok(attempt);
        }
        let attempt = Hex::draw(rng);
        let text = format!("{attempt} {what}");
        replace_secret_file(&path, &text, owner(&self.state_dir))
            .map_err(|source| EnrolError::State { path, source })?;
        Ok(attempt)
    }

    /// Enrols this host: asks, and keeps the answer. What was kept before stays if it fails.
    pub fn carry_out<R: Rng + ?Sized>(
        &self,
        clock: &dyn Clock,
        rng: &mut R,
    ) -> Result<Enrolment, EnrolError> {
        let state = |path: &Path, source| EnrolError::State { path: path.to_owned(), source };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.state_dir)
            .map_err(|e| state(&self.state_dir, e))?;
        let trust = self.trust()?;
        let attempt = self.attempt(rng)?;
        let proof = match &self.present {
            None => None,
            Some(key) => Some(self.proof(key, attempt, &trust, clock)?),
        };
        let ask = EnrolRequest {
            token: self.token.to_text(),
            host: self.host,
            attempt,
            name: self.name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: self.machine.hash(),
            proof,
        };
        let body = Zeroizing::new(
            serde_json::to_string(&ask).map_err(|e| EnrolError::Answer(e.to_string()))?,
        );
        let text = https::request(&self.url, &trust, ENROL_PATH, Some(&body), clock)?;
        let answer: EnrolAnswer = parsed(&text)?;
        // Looked at before anything is replaced.
        let key: HostKey = answer.key.parse().map_err(|e| EnrolError::Answer(format!("{e}")))?;
        let mut controllers = answer.controllers;
        if controllers.is_empty() {
            let mut endpoint = self.url.0.clone();
            endpoint.port = answer.port;
            controllers.push(endpoint.to_string());
        }
        let enrolment = Enrolment {
            host: answer.host,
            url: Some(self.url.to_string()),
            controllers,
            labels: answer.labels,
            machine: Some(self.machine),
        };
        let owner = owner(&self.state_dir);
        replace_secret_file(&self.key_file, &key.to_text(), owner)
            .map_err(|e| state(&self.key_file, e))?;
        if let Some(aside) =
            Enrolment::set_aside(&self.state_dir).map_err(|e| state(&self.state_dir, e))?
        {
            log::warn!("the enrolment file could not be read: it is {} now", aside.display());
        }
        enrolment.write(&self.state_dir, owner).map_err(|e| state(&self.state_dir, e))?;
        for done in [PREVIOUS, ATTEMPT] {
            let path = self.state_dir.join(done);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(state(&path, e)),
                _ => {}
            }
        }
        Ok(enrolment)
    }

    fn proof(
        &self,
        key: &HostKey,
        attempt: Hex<16>,
        trust: &Trust,
        clock: &dyn Clock,
    ) -> Result<Proof, EnrolError> {
        let text = https::request(&self.url, trust, NONCE_PATH, None, clock)?;
        let nonce = parsed::<NonceAnswer>(&text)?.nonce;
        let ex = Exchange { host: self.host, nonce, own: attempt };
        let mac = ex.proof(Purpose::Enrol, key);
        Ok(Proof { nonce, key_id: key.key_id(), generation: key.generation(), mac })
    }
}

/// Fetches the next key of a host. The answer is sealed under the present one, so it matters little who
/// carries it.
pub fn renew<R: Rng + ?Sized>(
    url: &Url,
    host: HostId,
    present: &HostKey,
    clock: &dyn Clock,
    rng: &mut R,
) -> Result<HostKey, EnrolError> {
    let text = https::request(url, &Trust::Sealed, NONCE_PATH, None, clock)?;
    let nonce = parsed::<NonceAnswer>(&text)?.nonce;
    let ex = Exchange { host, nonce, own: Hex::draw(rng) };
    let (key_id, generation) = (present.key_id(), present.generation());
    let mac = ex.proof(Purpose::Renew, present);
    let ask = RenewRequest { host, key_id, generation, nonce, own: ex.own, mac };
    let body = serde_json::to_string(&ask).map_err(|e| EnrolError::Answer(e.to_string()))?;
    let text = https::request(url, &Trust::Sealed, RENEW_PATH, Some(&body), clock)?;
    let answer: RenewAnswer = parsed(&text)?;
    let next = answer.open(&ex, present);
    next.ok_or_else(|| EnrolError::Answer("it is not sealed with this host's key".to_owned()))
}

/// Asks whether this host was revoked. The answer is sealed under its key, so it matters little who carries
/// it.
pub fn standing<R: Rng + ?Sized>(
    url: &Url,
    host: HostId,
    present: &HostKey,
    clock: &dyn Clock,
    rng: &mut R,
) -> Result<Option<Revoked>, EnrolError> {
    let text = https::request(url, &Trust::Sealed, NONCE_PATH, None, clock)?;
    let nonce = parsed::<NonceAnswer>(&text)?.nonce;
    let ex = Exchange { host, nonce, own: Hex::draw(rng) };
    let (key_id, generation) = (present.key_id(), present.generation());
    let mac = ex.proof(Purpose::Standing, present);
    let ask = StandingRequest { host, key_id, generation, nonce, own: ex.own, mac };
    let body = serde_json::to_string(&ask).map_err(|e| EnrolError::Answer(e.to_string()))?;
    let text = https::request(url, &Trust::Sealed, STANDING_PATH, Some(&body), clock)?;
    let answer: StandingAnswer = parsed(&text)?;
    if !answer.answers(&ex, present) {
        return Err(EnrolError::Answer("it is not sealed with this host's key".to_owned()));
    }
    Ok(answer.revoked)
}

/// Keeps a renewed key beside the one before it: a crash at any moment leaves one that is good.
pub fn keep_renewed(
    state_dir: &Path,
    key_file: &Path,
    present: &HostKey,
    next: &HostKey,
) -> Result<(), EnrolError> {
    let write = |path: PathBuf, key: &HostKey| {
        replace_secret_file(&path, &key.to_text(), owner(state_dir))
            .map_err(|source| EnrolError::State { path, source })
    };
    write(state_dir.join(PREVIOUS), present)?;
    write(key_file.to_owned(), next)
}

/// The key before the present one, if that has not proved good yet.
pub fn previous(state_dir: &Path) -> Option<HostKey> {
    load_secret(&state_dir.join(PREVIOUS)).ok()
}

/// The present key is good: forgets the one before.
pub fn forget_previous(state_dir: &Path) -> io::Result<()> {
    std::fs::remove_file(state_dir.join(PREVIOUS))
}

/// The present key is of no use: the one before is the present one again.
pub fn go_back(state_dir: &Path, key_file: &Path) -> io::Result<()> {
    let text = read_secret_file(&state_dir.join(PREVIOUS)).map_err(|e| match e {
        SecretFileError::Io { source, .. } => source,
        other => io::Error::other(other),
    })?;
    replace_secret_file(key_file, text.trim(), owner(state_dir))?;
    forget_previous(state_dir)
}
