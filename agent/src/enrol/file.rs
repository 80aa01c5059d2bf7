//! The enrolment file: to which controller this host belongs, and as whom. Nothing in it is secret, but it
//! stands beside the key, mode 0600, as JSON.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use heartwatch_common::auth::replace_secret_file;
use heartwatch_common::id::HostId;
use serde::{Deserialize, Serialize};

use super::machine::Machine;

/// Its name in the state folder, and of the credential.
pub const FILE_NAME: &str = "enrolment";
/// What one that cannot be used is called when another takes its place.
pub const BROKEN_NAME: &str = "enrolment.broken";
/// Longest, bytes.
const LEN_MAX: u64 = 64 * 1024;

/// See the module. Written by `enroll`, and by `heartwatchctl enroll --offline`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Who this host is.
    pub host: HostId,
    /// The controller's API, for renewals: `https://…`. Without it the key is renewed by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Where to beat to, unless the config says so.
    pub controllers: Vec<String>,
    /// Labels that the host was given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The machine that it belongs to. Without it: the first one that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

/// The file is there and cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the enrolment file {path} cannot be used: `heartwatch-agent enroll` puts a good one in its place, and keeps \
     this one beside it"
)]
pub struct BadFile {
    /// Which.
    pub path: PathBuf,
    /// What is wrong.
    pub source: io::Error,
}

impl Enrolment {
    /// Reads it: from the state folder, else from systemd's credentials. `None`: there is none.
    pub fn read(state_dir: &Path, credentials: Option<&Path>) -> Result<Option<Self>, BadFile> {
        for dir in [Some(state_dir), credentials].into_iter().flatten() {
            let path = dir.join(FILE_NAME);
            match read(&path) {
                Ok(found) => return Ok(Some(found)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(BadFile { path, source }),
            }
        }
        Ok(None)
    }

    /// Writes it into the state folder, for `owner` if one is given.
    pub fn write(&self, state_dir: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        replace_secret_file(&state_dir.join(FILE_NAME), &text, owner)
    }

    /// Puts one that cannot be used out of the way, for people to look at: in the state folder, under
    /// [`BROKEN_NAME`]. `None`: there is none, or it is good.
    pub fn set_aside(state_dir: &Path) -> io::Result<Option<PathBuf>> {
        let path = state_dir.join(FILE_NAME);
        match read(&path) {
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(_) => {
                let aside = state_dir.join(BROKEN_NAME);
                std::fs::rename(&path, &aside)?;
                Ok(Some(aside))
            }
        }
    }

    /// Whether it belongs to another machine.
    pub fn is_foreign(&self, here: &Machine) -> bool {
        self.machine.is_some_and(|machine| !machine.may_be(here))
    }
}

fn read(path: &Path) -> io::Result<Enrolment> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(LEN_MAX).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_being_written_and_the_state_folder_comes_before_credentials() {
        let (state, credentials) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let read = || Enrolment::read(state.path(), Some(credentials.path()));
        assert_eq!(read().unwrap(), None);
        let given = Enrolment {
            host: HostId([1; 16]),
            url: None,
            controllers: vec!["c:2328".to_owned()],
            labels: BTreeMap::new(),
            machine: None,
        };
        given.write(credentials.path(), None).unwrap();
        assert_eq!(read().unwrap(), Some(given.clone()));
        let here = Machine::this(Path::new("/none"));
        assert!(!given.is_foreign(&here));
        let own = Enrolment { host: HostId([2; 16]), machine: Some(here), ..given.clone() };
        own.write(state.path(), None).unwrap();
        assert_eq!(read().unwrap(), Some(own.clone()));
        let other = Machine { id: heartwatch_common::enrol::Hex([7; 32]), product: None };
        assert!(!own.is_foreign(&here) && own.is_foreign(&other));
        std::fs::write(state.path().join(FILE_NAME), "{").unwrap();
        assert!(read().unwrap_err().to_string().contains("heartwatch-agent enroll"));
        let aside = Enrolment::set_aside(state.path()).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(aside).unwrap(), "{");
        assert_eq!(read().unwrap(), Some(given), "what the credentials say");
        assert_eq!(Enrolment::set_aside(state.path()).unwrap(), None);
        own.write(state.path(), None).unwrap();
        assert_eq!(Enrolment::set_aside(state.path()).unwrap(), None, "a good one stays");
    }
}
