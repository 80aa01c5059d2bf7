//! The operator's settings of how the API is reached.

use std::path::PathBuf;

use heartwatch_common::config::ConfigError;
use serde::{Deserialize, Serialize};

use super::RawConfig;

/// Most names in `api.host_names`.
const HOST_NAMES_MAX: usize = 32;

/// How the API proves who it is, and what it asks of those who come.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawApi {
    /// Its certificate and what leads to its authority, PEM. Default: one made at first start.
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key, PEM, mode 0600. Default: the one made with it.
    pub key_file: Option<PathBuf>,
    /// Authorities, PEM, by one of which TLS clients must show a certificate. Default: they need none.
    pub client_ca_file: Option<PathBuf>,
    /// Whether plain HTTP from this machine itself may read without a token. Default: true.
    pub loopback_reads: bool,
    /// Names, beside `localhost` and its addresses, by which it may ask so; at most 32.
    pub host_names: Vec<String>,
}

impl Default for RawApi {
    fn default() -> Self {
        Self {
            certificate_file: None,
            key_file: None,
            client_ca_file: None,
            loopback_reads: true,
            host_names: Vec::new(),
        }
    }
}

/// See [`RawApi`].
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// The certificate's and the key's file; `None`: in the state directory, made at first start.
    pub files: Option<(PathBuf, PathBuf)>,
    /// See [`RawApi::client_ca_file`].
    pub client_ca_file: Option<PathBuf>,
    /// See [`RawApi::loopback_reads`].
    pub loopback_reads: bool,
    /// See [`RawApi::host_names`]; in lower case.
    pub host_names: Vec<String>,
}

fn check_host_names(names: &[String]) -> Result<Vec<String>, ConfigError> {
    let wrong = |message: String| ConfigError::value("api.host_names", message);
    if names.len() > HOST_NAMES_MAX {
        return Err(wrong(format!("at most {HOST_NAMES_MAX} names are allowed")));
    }
    let is_good = |name: &str| {
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        name.len() <= 253 && name.split('.').all(label)
    };
    match names.iter().find(|name| !is_good(name)) {
        Some(bad) => Err(wrong(format!(
            "`{bad}` is no host name: write it as watch.example, without http:// and without a port"
        ))),
        None => Ok(names.iter().map(|name| name.to_ascii_lowercase()).collect()),
    }
}

impl RawConfig {
    pub(super) fn check_api(&self) -> Result<ApiConfig, ConfigError> {
        let raw = &self.api;
        let files = match (&raw.certificate_file, &raw.key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (Some(_), None) => {
                let message = "api.certificate_file is set: say in which file its key stands";
                return Err(ConfigError::value("api.key_file", message));
            }
            (None, Some(_)) => {
                let message = "api.key_file is set: say in which file its certificate stands";
                return Err(ConfigError::value("api.certificate_file", message));
            }
        };
        let client_ca_file = raw.client_ca_file.clone();
        let host_names = check_host_names(&raw.host_names)?;
        Ok(ApiConfig { files, client_ca_file, loopback_reads: raw.loopback_reads, host_names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_comes_with_its_key() {
        for (given, missing) in
            [("certificate_file", "api.key_file"), ("key_file", "api.certificate_file")]
        {
            let raw: RawConfig = toml::from_str(&format!("[api]\n{given} = \"/x\"")).unwrap();
            let text = raw.check_api().unwrap_err().to_string();
            assert!(text.contains(missing), "{text}");
        }
        let both = "[api]\ncertificate_file = \"/c\"\nkey_file = \"/k\"";
        let both: RawConfig = toml::from_str(both).unwrap();
        assert_eq!(both.check_api().unwrap().files, Some(("/c".into(), "/k".into())));
    }
    #[test]
    fn host_names_are_names_alone() {
        let of = |names: &str| {
            let raw: RawConfig = toml::from_str(&format!("[api]\nhost_names = [{names}]")).unwrap();
            raw.check_api().map(|api| api.host_names).map_err(|e| e.to_string())
        };
        assert_eq!(of("\"Watch.Example\", \"box\"").unwrap(), ["watch.example", "box"]);
        for bad in ["http://x", "x:2328", "", "a..b", "*.example", "[::1]"] {
            let text = of(&format!("{bad:?}")).unwrap_err();
            assert!(text.contains("api.host_names") && text.contains("without a port"), "{text}");
        }
        assert!(of(&"\"x\", ".repeat(33)).unwrap_err().contains("at most 32"));
    }
}
