//! Who could take over, as somebody asks.

use serde::{Deserialize, Serialize};

use crate::policy::placement::Placement;
use crate::store::HostRow;

/// For whom somebody is looked for.
#[derive(Clone, Debug)]
pub struct CandidatesAsk {
    /// The host, or one that does not exist with the labels in question.
    pub failed: HostRow,
    /// Labels in which candidates must equal it; `None`: as the rules for `host.down` say.
    pub same: Option<Vec<String>>,
    /// Most candidates.
    pub limit: usize,
}

/// Who could take over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidatesReport {
    /// Labels in which candidates equal the host.
    pub same: Vec<String>,
    /// Who, and why not others.
    #[serde(flatten)]
    pub placement: Placement,
}
