//! `GET /v1/candidates`: who could take over, and why others can't.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use heartwatch_common::id::HostId;

use super::extract::{Params, shorten};
use super::problem::Problem;
use super::{Api, hosts};
use crate::control::{CandidatesAsk, CandidatesReport};
use crate::policy::new_row;
use crate::policy::placement::{CANDIDATES_ASKED_MAX, CANDIDATES_MAX};

/// Most labels that somebody may name.
const LABELS_LEN_MAX: usize = 64;

/// `k=v,k=v`
pub(super) fn labels(text: &str) -> Result<BTreeMap<String, String>, Problem> {
    let mut labels = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let Some((key, value)) = part.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            let detail = format!("`{}` is no label: write `labels=zone=a,pool=web`", shorten(part));
            return Err(Problem::bad_request(detail));
        };
        if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|old| old != value) {
            let detail = format!("the label `{}` cannot have two values", shorten(key));
            return Err(Problem::bad_request(detail));
        }
    }
    if labels.len() > LABELS_LEN_MAX {
        return Err(Problem::bad_request(format!("at most {LABELS_LEN_MAX} labels are allowed")));
    }
    Ok(labels)
}

/// `GET /v1/candidates`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<CandidatesReport>, Problem> {
    let params = params.only(&["host", "labels", "same", "limit"])?;
    let failed = match (params.one("host")?, params.one("labels")?) {
        (Some(host), None) => hosts::find(&api, host)?.row,
        (None, Some(text)) => {
            // A host that does not exist: no real id is all zeroes.
            let nobody = new_row(HostId([0; 16]), api.clock.wall());
            crate::store::HostRow { labels: labels(text)?, ..nobody }
        }
        _ => {
            let detail = "either `host`, an id or a name, or `labels`, such as `labels=zone=a,pool=web`, \
                          is needed";
            return Err(Problem::bad_request(detail));
        }
    };
    let same = params.one("same")?.map(|list| {
        list.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    });
    if same.as_ref().is_some_and(|same| same.len() > LABELS_LEN_MAX) {
        return Err(Problem::bad_request(format!("at most {LABELS_LEN_MAX} labels are allowed")));
    }
    let limit = params.number("limit", 1, CANDIDATES_ASKED_MAX as u64)?;
    let limit = limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(CANDIDATES_MAX);
    Ok(Json(api.control.candidates(CandidatesAsk { failed, same, limit }).await?))
}
