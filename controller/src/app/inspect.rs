//! What a start would read, read without starting: for `check-config`.
//!
//! Nothing is made, opened for beats or changed. What a first start makes (the fleet secret, the API's token
//! and certificate in the state directory) may be missing; what is there must be good.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use heartwatch_common::auth::{Keyring, load_secret, read_secret_file};
use heartwatch_common::time::Wall;

use super::SecretError;
use crate::api::ApiToken;
use crate::config::{Config, Kind};
use crate::delivery::target;
use crate::tls::{self, make};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A start would end with it.
    pub wrong: Vec<String>,
    /// A start would go on.
    pub odd: Vec<String>,
}

/// Reads every file that the config names.
pub fn inspect(config: &Config, now: Wall) -> Report {
    let mut report = Report::default();
    if let Err(why) = look_into(&config.state_dir) {
        report.wrong.push(why);
        return report;
    }
    let own = |path: &Path| path.parent() == Some(&config.state_dir) && !path.exists();
    let fleet = &config.fleet_secret_file;
    if !own(fleet) {
        report.take(load_secret::<Keyring>(fleet).map(drop).map_err(SecretError::from));
    }
    let token = &config.api_token_file;
    if !own(token) {
        report.take(read_secret_file(token).map_err(SecretError::from).and_then(|text| {
            let bad = |source| SecretError::Token { path: token.clone(), source };
            ApiToken::new(&text).map(drop).map_err(bad)
        }));
    }
    let (certificate, key) = config.api.files.clone().unwrap_or_else(|| {
        (config.state_dir.join(make::CERTIFICATE_FILE), config.state_dir.join(make::KEY_FILE))
    });
    let client_ca = config.api.client_ca_file.clone();
    if config.api.files.is_some() || certificate.exists() {
        match tls::inspect(&tls::Files { certificate, key, client_ca }) {
            Ok(current) => report.odd.extend(current.warning(now)),
            Err(wrong) => wrong.into_iter().for_each(|e| report.take(Err::<(), _>(e))),
        }
    } else if let Some(path) = client_ca {
        report.take(tls::inspect_authorities(&path));
    }
    target::inspect(config).into_iter().for_each(|e| report.take(Err::<(), _>(e)));
    for (name, receiver) in &config.receivers {
        if let Kind::Exec { command } = &receiver.kind
            && let Some(why) = not_executable(Path::new(&command[0]))
        {
            report.odd.push(format!("receiver {name}: its command {} {why}", command[0]));
        }
    }
    report.wrong.extend(not_its_own(config));
    report
}

impl Report {
    fn take<E: std::error::Error>(&mut self, done: Result<(), E>) {
        self.wrong.extend(done.err().map(|e| chain(&e)));
    }
}

/// An error with its causes.
fn chain(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(cause) => format!("{e}: {}", chain(cause)),
        None => e.to_string(),
    }
}

/// A state directory that is there must be one, and what is in it must be seen: else all would seem missing.
fn look_into(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    match std::fs::metadata(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(format!("cannot look at the state directory {shown}: {e}")),
        Ok(meta) if !meta.is_dir() => Err(format!("the state directory {shown} is no directory")),
        Ok(_) => std::fs::read_dir(dir).map(drop).map_err(|e| {
            format!(
                "cannot look into the state directory {shown}: {e}; run this as root or as the controller's user, or \
                 with --no-files"
            )
        }),
    }
}

/// Why a command can't be run.
fn not_executable(program: &Path) -> Option<String> {
    match std::fs::metadata(program) {
        Err(e) => Some(format!("cannot be run: {e}")),
        Ok(meta) if !meta.is_file() || meta.mode() & 0o111 == 0 => {
            Some("is no program that can be run: chmod +x?".to_owned())
        }
        Ok(_) => None,
    }
}

/// Files that root can read here and the controller cannot: a secret is its owner's alone, and the controller
/// runs as who owns the state directory.
fn not_its_own(config: &Config) -> Vec<String> {
    let owner = std::fs::metadata(&config.state_dir).map(|meta| meta.uid());
    let Ok(owner @ 1..) = owner else { return Vec::new() };
    if !nix::unistd::geteuid().is_root() {
        return Vec::new();
    }
    let user = nix::unistd::User::from_uid(owner.into()).ok().flatten();
    let user = user.map_or_else(|| owner.to_string(), |user| user.name);
    let foreign = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.uid() != owner)
    };
    let text = |path: PathBuf| {
        let shown = path.display();
        format!(
            "{shown} is not {user}'s, as whom the controller runs, and cannot be read by it: chown {user} {shown}"
        )
    };
    secret_files(config).into_iter().filter(foreign).map(text).collect()
}

fn secret_files(config: &Config) -> Vec<PathBuf> {
    let mut files = vec![config.fleet_secret_file.clone(), config.api_token_file.clone()];
    files.extend(config.api.files.iter().map(|(_, key)| key.clone()));
    for receiver in config.receivers.values() {
        files.extend(receiver.secret_file.clone());
        files.extend(receiver.bearer_token_file.clone());
        files.extend(receiver.client_files.iter().map(|(_, key)| key.clone()));
        if let Kind::Template(template) = &receiver.kind {
            files.extend(template.secrets.values().cloned());
        }
    }
    files.sort();
    files.dedup();
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawConfig;
    use heartwatch_common::auth::create_secret_file;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Wall = Wall(1_800_000_000_000);

    fn of(dir: &Path, text: &str) -> Report {
        let text = text.replace("DIR", dir.to_str().unwrap());
        let raw: RawConfig = toml::from_str(&text).unwrap();
        inspect(&raw.check().unwrap(), NOW)
    }

    #[test]
    fn what_a_first_start_makes_may_be_missing_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(dir.path(), "state_dir = \"DIR/state\""), Report::default());
        assert_eq!(of(dir.path(), "state_dir = \"DIR\""), Report::default());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// It said that all was well, and the next start failed.
    #[test]
    fn all_that_is_wrong_is_told_and_not_the_first_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        create_secret_file(&at("bearer"), "two words").unwrap();
        create_secret_file(&at("signing"), "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
        std::fs::set_permissions(at("signing"), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(at("ca.pem"), "nothing").unwrap();
        create_secret_file(&at("fleet"), "hwf1:1:00").unwrap();
        create_secret_file(&at("key.pem"), "nothing").unwrap();
        std::fs::write(at("t.toml"), "body = '{{'").unwrap();
        let text = "
            state_dir = 'DIR/state'
            fleet_secret_file = 'DIR/fleet'
            api_token_file = 'DIR/no-token'
            [api]
            certificate_file = 'DIR/no-cert.pem'
            key_file = 'DIR/key.pem'
            client_ca_file = 'DIR/ca.pem'
            [receivers.a]
            url = 'https://a/'
            secret_file = 'DIR/signing'
            bearer_token_file = 'DIR/bearer'
            ca_file = 'DIR/ca.pem'
            client_cert_file = 'DIR/no-client.pem'
            client_key_file = 'DIR/key.pem'
            [receivers.t]
            format = 'template'
            url = 'https://a/'
            template_file = 'DIR/t.toml'
            secrets = { x = 'DIR/no-secret' }
            [receivers.e]
            kind = 'exec'
            command = ['/nonexistent/run']
        ";
        let Report { wrong, odd } = of(dir.path(), text);
        let expected = [
            ("fleet", "64 hex digits"),
            ("no-token", "No such file"),
            ("no-cert.pem", "No such file"),
            ("key.pem", "no private key"),
            ("ca.pem", "certificate"),
            ("receiver a", "chmod 600"),
            ("bearer", "one line"),
            ("receiver a", "ca.pem"),
            ("no-client.pem", "No such file"),
            ("t.toml", "receiver t"),
            ("no-secret", "receiver t"),
        ];
        for (file, what) in expected {
            let told = wrong.iter().any(|text| text.contains(file) && text.contains(what));
            assert!(told, "{file}, {what}: {wrong:#?}");
        }
        assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
        assert!(odd[0].contains("/nonexistent/run"), "{odd:?}");
    }

    #[test]
    fn a_key_must_fit_its_certificate_and_one_that_ends_is_odd() {
        let dir = tempfile::tempdir().unwrap();
        let pair = |name: &str| {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            make::ensure(&dir, "127.0.0.1:1".parse().unwrap(), NOW).unwrap()
        };
        let ((cert, key), (_, other)) = (pair("a"), pair("b"));
        let text = |key: &Path| {
            format!("state_dir = 'DIR/s'\n[api]\ncertificate_file = {cert:?}\nkey_file = {key:?}")
        };
        assert_eq!(of(dir.path(), &text(&key)), Report::default());
        let wrong = of(dir.path(), &text(&other)).wrong;
        assert!(wrong.len() == 1 && wrong[0].contains("cannot be used together"), "{wrong:?}");
        let raw: RawConfig = toml::from_str(&text(&key).replace("DIR", "/nonexistent")).unwrap();
        let late = inspect(&raw.check().unwrap(), Wall(NOW.0 * 2));
        assert!(late.wrong.is_empty() && late.odd[0].contains("ended"), "{late:?}");
    }
}
