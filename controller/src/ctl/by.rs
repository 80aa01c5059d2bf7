//! Who says what others will ask about.

use clap::Args;
use nix::unistd::{Uid, User};

#[derive(Debug, Args)]
pub(super) struct By {
    /// Who says so [default: whom this machine knows you as].
    #[arg(long, env = "USER")]
    by: Option<String>,
}

impl By {
    pub(super) fn text(&self) -> String {
        let uid = Uid::current();
        // A machine that cannot be asked for names still knows the number.
        text(self.by.as_deref(), || User::from_uid(uid).ok().flatten().map(|u| u.name), uid)
    }
}

fn text(said: Option<&str>, known: impl FnOnce() -> Option<String>, uid: Uid) -> String {
    match said.filter(|text| !text.trim().is_empty()) {
        Some(said) => said.to_owned(),
        None => known().unwrap_or_else(|| format!("uid {uid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_it_is_the_user_and_without_a_name_the_number() {
        let uid = Uid::from_raw(1_007);
        let known = || Some("ann".to_owned());
        assert_eq!(text(Some("bob"), known, uid), "bob");
        assert_eq!(text(None, known, uid), "ann");
        assert_eq!(text(Some(" "), known, uid), "ann");
        assert_eq!(text(None, || None, uid), "uid 1007");
    }
}
