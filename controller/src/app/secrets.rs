//! Secrets of the controller: read from files that only it may read, made at first start.

use std::path::{Path, PathBuf};

use heartwatch_common::auth::{
    FleetSecret, Keyring, SecretFileError, create_secret_file, load_secret, read_secret_file,
};
use heartwatch_common::id::KeyId;
use rand::Rng;

use crate::api::{ApiToken, ApiTokenError};

/// A secret is not usable.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is not.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The token file's content is not.
    #[error("the API token file {path} is not usable: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ApiTokenError,
    },
    /// It did not exist and could not be made.
    #[error("cannot make the secret file {path}")]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn make(path: &Path, what: &str, text: &str) -> Result<(), SecretError> {
    create_secret_file(path, text)
        .map_err(|source| SecretError::Create { path: path.to_owned(), source })?;
    log::info!("made {what} in {}", path.display());
    Ok(())
}

/// Reads the fleet secrets. Makes one if the file does not exist and lies in the state directory; one
/// that an operator put elsewhere and that is not there is a typo, and a new secret in its place would
/// lock out the whole fleet.
pub(super) fn keyring<R: Rng + ?Sized>(
    path: &Path,
    state_dir: &Path,
    rng: &mut R,
) -> Result<Keyring, SecretError> {
    if !path.exists() && path.parent() == Some(state_dir) {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        make(path, "a fleet secret", &FleetSecret::new(KeyId(1), bytes).to_text())?;
    }
    Ok(load_secret(path)?)
}

/// Reads the API token; draws one if the file does not exist and lies in the state directory.
pub(super) fn api_token<R: Rng + ?Sized>(
    path: &Path,
    state_dir: &Path,
    rng: &mut R,
) -> Result<ApiToken, SecretError> {
    if !path.exists() && path.parent() == Some(state_dir) {
        make(path, "an API token", &ApiToken::draw(rng))?;
    }
    let text = read_secret_file(path)?;
    ApiToken::new(&text).map_err(|source| SecretError::Token { path: path.to_owned(), source })
}
