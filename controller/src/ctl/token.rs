//! The API token that a command sends: where it stands, and what to do if it cannot be had.
//!
//! A file that was named (`--token-file`, `HEARTWATCH_TOKEN_FILE`) must be usable, whatever the command: who
//! names one means it, and a "no" from far away would not say that it was never read. The usual one may be
//! missing where nothing is changed, as the controller's own machine may read without.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use heartwatch_common::auth::{SecretFileError, read_secret_file};
use heartwatch_common::secret;
use zeroize::Zeroizing;

use super::args::Global;
use super::client::is_loopback;
use super::{CtlError, chain};
use crate::api::ApiToken;

/// Where packages have the controller keep its own.
const USUAL: &str = "/var/lib/heartwatch-controller/api-token";

/// Which file is looked into.
pub(super) fn path(global: &Global) -> PathBuf {
    global.token_file.clone().unwrap_or_else(|| PathBuf::from(USUAL))
}

/// The token for a command that is refused without one.
pub(super) fn needed(global: &Global) -> Result<Zeroizing<String>, CtlError> {
    read(&path(global)).map_err(|why| match &global.token_file {
        Some(_) => named(&why),
        None => CtlError::Config(format!(
            "{why}; this command changes something and needs the controller's API token: run it on the \
             controller's machine as root or as the controller's user, or copy the controller's \
             api_token_file here (mode 600) and say --token-file or HEARTWATCH_TOKEN_FILE"
        )),
    })
}

/// The token for what may need none, or why there is none: only the usual file may be missing, and it is
/// left alone where somebody on the way could read the token.
pub(super) fn for_reading(
    global: &Global,
) -> Result<(Option<Zeroizing<String>>, Option<String>), CtlError> {
    let path = path(global);
    if global.token_file.is_some() {
        return read(&path).map(|token| (Some(token), None)).map_err(|why| named(&why));
    }
    let url = reqwest::Url::parse(&global.url).ok();
    if !url.is_some_and(|url| url.scheme() == "https" || is_loopback(&url)) {
        return Ok((None, None));
    }
    Ok(match read(&path) {
        Ok(token) => (Some(token), None),
        Err(why) => (None, Some(format!("{why}; or say --token-file or HEARTWATCH_TOKEN_FILE"))),
    })
}

fn named(why: &str) -> CtlError {
    CtlError::Config(format!("{why} (named by --token-file or HEARTWATCH_TOKEN_FILE)"))
}

/// A token file's content. `Err`: what is wrong with it, and what would mend it.
fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    if secret::is_no_name(&path.to_string_lossy()) {
        return Err("a token itself stands where the name of its file belongs: put it into a file of mode 600".into());
    }
    let shown = path.display();
    let text = read_secret_file(path).map_err(|e| {
        let what_to_do = match &e {
            SecretFileError::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound => ": is the path right?",
                ErrorKind::PermissionDenied => ": run this as its owner or as root",
                _ => "",
            },
            _ => "",
        };
        format!("{}{what_to_do}", chain(&e))
    })?;
    let made = "`heartwatchctl api-token create --out FILE` makes one";
    if text.trim().is_empty() {
        return Err(format!("{shown} is empty and should hold an API token: {made}"));
    }
    if text.trim_start().starts_with("hwj1_") {
        return Err(format!(
            "{shown} holds a join token, which lets hosts in; an API token is needed: {made}"
        ));
    }
    ApiToken::new(&text).map_err(|e| format!("{shown} holds no API token: {e}; {made}"))?;
    Ok(text)
}
