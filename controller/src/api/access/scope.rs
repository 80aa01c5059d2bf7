//! What a token may do. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How much somebody may do; each includes what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// See everything that is shown.
    Read,
    /// Steer: holds, pauses, maintenance, reports of orders.
    Operate,
    /// Give and take rights, fetch the whole store, remove hosts.
    Admin,
}

impl Scope {
    /// Every scope, the least first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// As it stands in JSON and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is not a scope: use read, operate or admin"))
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::api) struct Who {
    /// The token's name; what stands in the token file of the config is `api-token`.
    pub(in crate::api) name: String,
    pub(in crate::api) scope: Scope,
}

impl Who {
    /// Anybody on this machine who showed no token.
    pub(in crate::api) fn anybody() -> Self {
        Self { name: "anybody on this machine".to_owned(), scope: Scope::Read }
    }

    /// Who is named as having said something; if nobody is, whose token it is.
    pub(in crate::api) fn said(&self, by: &str) -> String {
        if by.trim().is_empty() { format!("token {}", self.name) } else { by.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_rise_and_survive_their_text_form() {
        assert!(Scope::Read < Scope::Operate && Scope::Operate < Scope::Admin);
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        assert!("root".parse::<Scope>().unwrap_err().contains("read, operate or admin"));
    }
}
