//! A place for a secret that is still to be made: a new private file with room in it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Room that is written before, bytes: more than any token has.
const ROOM: usize = 1_024;

/// See the module. Dropped unfilled, it takes its file away again.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    file: File,
    is_filled: bool,
}

impl Place {
    /// Makes the file, mode 0600, and sees to it that the disk has room. `Err`: why not, and what to do;
    /// nothing was made, and what was there is as it was.
    pub(super) fn take(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(
            |e| match e.kind() {
                ErrorKind::AlreadyExists => {
                    format!("{shown} exists: name another file, or remove it; no token was made")
                }
                _ => format!("cannot make {shown}: {e}; no token was made"),
            },
        )?;
        let mut place = Self { path: path.to_owned(), file, is_filled: false };
        let room = place.file.write_all(&[b'\n'; ROOM]).and_then(|()| place.file.sync_all());
        room.map_err(|e| format!("cannot write {shown}: {e}; no token was made"))?;
        Ok(place)
    }

    /// Puts the secret there, on a line of its own.
    pub(super) fn fill(mut self, secret: &str) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(secret.as_bytes())?;
        self.file.write_all(b"\n")?;
        self.file.set_len(secret.len() as u64 + 1)?;
        self.file.sync_all()?;
        self.is_filled = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_filled {
            // An empty file left behind is in nobody's way but the next try's, which names it.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::auth::read_secret_file;

    #[test]
    fn a_place_is_new_and_private_and_goes_again_unless_it_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        drop(Place::take(&path).unwrap());
        assert!(!path.exists());
        Place::take(&path).unwrap().fill("secret").unwrap();
        assert_eq!(*read_secret_file(&path).unwrap(), "secret\n");
        let told = Place::take(&path).unwrap_err();
        assert!(told.contains("exists") && told.contains("no token was made"), "{told}");
        assert_eq!(*read_secret_file(&path).unwrap(), "secret\n", "as it was");
        let told = Place::take(&dir.path().join("none/token")).unwrap_err();
        assert!(told.contains("none/token"), "{told}");
    }
}
