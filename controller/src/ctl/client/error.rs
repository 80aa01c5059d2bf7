//! Why the controller could not be asked, or said no.

use std::path::PathBuf;

use crate::api::problem::Problem;

/// Why the controller could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not a URL of an API.
    #[error("`{url}` is no URL of a controller's API ({message}): write https://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file with certificates or a key cannot be used.
    #[error("{path} {why}")]
    Trust {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Who answers there is not believed to be the controller, or does not believe us.
    #[error(
        "no trusted connection with {url}: {objection}; say --ca FILE with the authority of its certificate, \
         or --pin with its SHA-256, which `heartwatchctl status` on its own machine shows"
    )]
    Tls {
        /// Where.
        url: String,
        /// What TLS objects to.
        objection: String,
    },
    /// The HTTP client could not be made.
    #[error("cannot make an HTTP client")]
    Build(#[source] reqwest::Error),
    /// Nobody listens there.
    #[error(
        "cannot reach a controller at {url}: is it running there (`systemctl status \
         heartwatch-controller`, or `heartwatch-controller run`)? If it listens elsewhere, say --url \
         or HEARTWATCH_URL"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What the system said.
        source: reqwest::Error,
    },
    /// It did not answer in time.
    #[error("the controller at {url} did not answer in time; what was asked may still happen")]
    TimedOut {
        /// Where.
        url: String,
    },
    /// The conversation broke.
    #[error("the conversation with the controller at {url} broke")]
    Broken {
        /// Where.
        url: String,
        /// How.
        source: reqwest::Error,
    },
    /// The controller said no.
    #[error("{}: {}", .0.title, .0.detail)]
    Problem(Box<Problem>),
    /// Something else answered.
    #[error(
        "{url} answered with {status}, but not as a Heartwatch controller does: is it the right URL?"
    )]
    Foreign {
        /// Where.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// There is nothing behind the URL's path.
    #[error(
        "no controller's API is at {url}: the URL has the path `{path}`, and the API has none of its own; write \
         https://HOST:PORT alone (a path is only for a proxy that adds one)"
    )]
    Path {
        /// Where.
        url: String,
        /// Its path.
        path: String,
    },
    /// A secret stands where a name belongs.
    #[error(
        "a key or a token stands where a name belongs: nothing was sent. `heartwatchctl token list` and \
         `heartwatchctl api-token list` tell the names of tokens, `heartwatchctl hosts` those of hosts. It is in \
         your shell's history now: revoke it"
    )]
    Secret,
    /// The answer has not the expected form.
    #[error("the controller's answer is not understood: are its version and this one's the same?")]
    Form(#[source] serde_json::Error),
    /// A request that changes something was to be made without a token.
    #[error("this needs the API token")]
    NoToken,
    /// The file for a backup cannot be written.
    #[error("cannot write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ClientError {
    /// The controller's own words, if it said no.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}
