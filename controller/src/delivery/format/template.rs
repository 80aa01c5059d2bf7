//! Requests as an operator's template says.
//!
//! A template file is TOML; `method`, `url`, each header and `body` are minijinja templates:
//!
//! ```toml
//! method = "POST"                                # default
//! url = "{{ url }}/v2/enqueue"                   # default: "{{ url }}"
//! headers = { content-type = "application/json" } # default
//! body = '{"host": {{ host.name | tojson }}}'    # default: "{{ event | tojson }}"
//! [vars]                                         # defaults of what the receiver's `vars` may set
//! severity = "critical"
//! ```
//!
//! They know `event` (the whole journaled event), `type`, `timestamp`, `data`, `host` (`data.host`), `url`
//! (the receiver's), `vars.NAME`, `secrets.NAME`, the filters and tests of minijinja, the filters `tojson`,
//! `urlencode` (every byte but letters, digits and `-._~`) and `base64`, and `refuse("why")`, which makes the
//! event unsendable. What is undefined is an error where it is printed or filtered, not an empty text.
//! Nothing of the attempt is known (no time, no number), so every attempt says the same.
//!
//! What hosts say of themselves (names, labels) is not to be trusted, so:
//! - a body whose content type is JSON must be JSON: use the filter `tojson` for every text;
//! - the URL's host must be the same for every event, or match the receiver's `allow_hosts`: no agent can
//!   have the receiver's credentials sent elsewhere by naming itself cleverly;
//! - each part costs at most [`FUEL`] and is at most [`PART_LEN_MAX`] long.
//!
//! [`Template::try_on`] renders samples of every event that the rules send, one of them with texts full of
//! quotes and newlines; a template that fails there is refused at start and by `check-config`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use heartwatch_common::auth::{SecretFileError, read_secret_file};
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use reqwest::Url;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Message, Unsendable, parsed};
use crate::config::TemplateConfig;
use crate::delivery::sample::{Sample, sample};
use crate::event::EventKind;
use crate::store::Outgoing;

/// Instructions that rendering one part may take: some thousand loop rounds.
pub const FUEL: u64 = 100_000;
/// Most bytes of a rendered part.
pub const PART_LEN_MAX: usize = 256 * 1_024;
/// Most bytes of a template file.
pub const FILE_LEN_MAX: u64 = 64 * 1_024;
/// What stands in front of a secret's name where it is not shown.
const MASK: &str = "SECRET-";

const METHODS: [&str; 5] = ["POST", "PUT", "PATCH", "DELETE", "GET"];

/// A template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("cannot read the template {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what a template file is.
    #[error("the template {path}: {message}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A secret cannot be read.
    #[error("the secret `{name}` of the template")]
    Secret {
        /// Its name.
        name: String,
        /// Why.
        source: SecretFileError,
    },
    /// It does not do for an event that a rule sends.
    #[error("the template {path} does not do for {kind}")]
    Event {
        /// The file.
        path: PathBuf,
        /// Which event.
        kind: EventKind,
        /// Why.
        source: Unsendable,
    },
}

/// Whether secrets are read or only named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// Read from their files.
    Read,
    /// `SECRET-name` stands for each: for previews and checks.
    Masked,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "post")]
    method: String,
    #[serde(default = "given_url")]
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default = "whole_event")]
    body: String,
    #[serde(default)]
    vars: BTreeMap<String, String>,
}

fn post() -> String {
    "POST".to_owned()
}

fn given_url() -> String {
    "{{ url }}".to_owned()
}

fn whole_event() -> String {
    "{{ event | tojson }}".to_owned()
}

/// What of a request is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strict {
    /// All: it is to be sent.
    All,
    /// All but which hosts the URL may name.
    Sample,
    /// That it can be rendered, and that its body is what its content type says. A name that is none makes
    /// no URL and no header either, and then nothing is sent, which is right.
    Body,
}

/// A template, compiled.
pub struct Template {
    path: PathBuf,
    env: Environment<'static>,
    headers: Vec<String>,
    url: String,
    vars: BTreeMap<String, String>,
    secrets: BTreeMap<String, Zeroizing<String>>,
    masked: bool,
    allow_hosts: Vec<String>,
    /// Scheme, host and port of every URL, unless `allow_hosts` says otherwise. Known once a sample was
    /// rendered.
    origin: Option<String>,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Template {
    /// Reads and compiles a receiver's template.
    ///
    /// # Errors
    /// If the file or a secret cannot be read, or something in it cannot be compiled.
    pub fn read(
        config: &TemplateConfig,
        url: &str,
        secrets: Secrets,
    ) -> Result<Self, TemplateError> {
        let path = config.template_file.clone();
        let io = |source| TemplateError::Io { path: path.clone(), source };
        let form = |message: String| TemplateError::Form { path: path.clone(), message };
        let len = std::fs::metadata(&path).map_err(io)?.len();
        if len > FILE_LEN_MAX {
            return Err(form(format!("{len} bytes, {FILE_LEN_MAX} are allowed")));
        }
        let text = std::fs::read_to_string(&path).map_err(io)?;
        let file: File = heartwatch_common::config::parse(&text).map_err(form)?;
        let mut env = environment();
        let mut headers: Vec<String> =
            file.headers.keys().map(|h| h.to_ascii_lowercase()).collect();
        let mut parts = vec![
            ("method".to_owned(), file.method),
            ("url".to_owned(), file.url),
            ("body".to_owned(), file.body),
        ];
        let own = file.headers.into_iter();
        parts.extend(own.map(|(h, t)| (format!("header {}", h.to_ascii_lowercase()), t)));
        if !headers.iter().any(|h| h == "content-type") {
            headers.push("content-type".to_owned());
            parts.push(("header content-type".to_owned(), "application/json".to_owned()));
        }
        for (part, source) in parts {
            env.add_template_owned(part, source).map_err(|e| form(complaint(&e)))?;
        }
        let mut vars = file.vars;
        vars.extend(config.vars.clone());
        let mut known = BTreeMap::new();
        for (name, file) in &config.secrets {
            let secret = match secrets {
                Secrets::Masked => Zeroizing::new(format!("{MASK}{name}")),
                Secrets::Read => read_secret_file(file)
                    .map(|text| Zeroizing::new(text.trim().to_owned()))
                    .map_err(|source| TemplateError::Secret { name: name.clone(), source })?,
            };
            known.insert(name.clone(), secret);
        }
        Ok(Self {
            path,
            env,
            headers,
            url: url.to_owned(),
            vars,
            secrets: known,
            masked: secrets == Secrets::Masked,
            allow_hosts: config.allow_hosts.clone(),
            origin: None,
        })
    }

    /// Tries it on every kind of event that it will be given, for hosts with these labels, and learns where
    /// its URLs point. To be called once, before the first request.
    ///
    /// # Errors
    /// If a sample cannot be rendered.
    pub fn try_on(
        &mut self,
        kinds: impl IntoIterator<Item = EventKind>,
        host: &Sample,
    ) -> Result<(), TemplateError> {
        let mut plain = host.clone();
        plain.labels.extend(self.labels().into_iter().map(|label| (label, "sample".to_owned())));
        let other = plain.other();
        let nasty = plain.nasty();
        for kind in kinds {
            let failed = |source| TemplateError::Event { path: self.path.clone(), kind, source };
            for host in [&plain, &other] {
                let url = self.message(&sample(kind, host), Strict::Sample).map_err(failed)?.url;
                if self.origin.is_none() && !self.is_masked(&url) {
                    self.origin = origin(&url);
                }
            }
            self.message(&sample(kind, &nasty), Strict::Body).map_err(failed)?;
        }
        Ok(())
    }

    /// The labels of hosts that it asks for by name.
    fn labels(&self) -> Vec<String> {
        let parts = self.env.templates();
        let names = parts.flat_map(|(_, part)| part.undeclared_variables(true));
        let label = |name: String| Some(name.rsplit_once("host.labels.")?.1.to_owned());
        names.filter_map(label).collect()
    }

    fn is_masked(&self, url: &str) -> bool {
        self.masked && url.contains(MASK)
    }

    pub(super) fn render(&self, outgoing: &Outgoing) -> Result<Message, Unsendable> {
        self.message(outgoing, Strict::All)
    }

    fn message(&self, outgoing: &Outgoing, strict: Strict) -> Result<Message, Unsendable> {
        let event = Value::from(Serde(parsed(outgoing)?));
        let at = |key: &str| event.get_attr(key).unwrap_or_default();
        let data = at("data");
        // The controller's own events are about none, which a template may ask.
        let host = data.get_attr("host").unwrap_or_default();
        let host = if host.is_undefined() { Value::from(()) } else { host };
        let secrets: BTreeMap<&str, &str> =
            self.secrets.iter().map(|(name, secret)| (name.as_str(), secret.as_str())).collect();
        let known = context! {
            type => at("type"),
            timestamp => at("timestamp"),
            host => host,
            data => data,
            event => event,
            url => self.url.trim_end_matches('/'),
            vars => Serde(&self.vars),
            secrets => Serde(secrets),
        };
        let part = |name: &str| self.part(name, &known);
        let method = part("method")?.trim().to_ascii_uppercase();
        if !METHODS.contains(&method.as_str()) {
            return Err(Unsendable(format!("the method must be one of {}", METHODS.join(", "))));
        }
        let url = part("url")?.trim().to_owned();
        self.check_url(&url, strict)?;
        let mut headers = Vec::new();
        for name in &self.headers {
            let value = part(&format!("header {name}"))?.trim().to_owned();
            if strict != Strict::Body && value.chars().any(char::is_control) {
                return Err(Unsendable(format!("the header {name} holds a control character")));
            }
            headers.push((name.clone(), value));
        }
        let body = part("body")?;
        let is_json = headers.iter().any(|(name, value)| {
            let media = value.split(';').next().unwrap_or_default().trim();
            name == "content-type" && (media.ends_with("/json") || media.ends_with("+json"))
        });
        if is_json && let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(&body) {
            let advice = "write every text as {{ … | tojson }}, without quotes around it";
            return Err(Unsendable(format!("the body is not JSON ({e}): {advice}")));
        }
        Ok(Message { method, url, headers, body })
    }

    fn part(&self, name: &str, known: &Value) -> Result<String, Unsendable> {
        let mut out = Capped(Vec::new());
        let rendered = self
            .env
            .get_template(name)
            .and_then(|template| template.render_captured_to(known.clone(), &mut out).map(drop));
        rendered.map_err(|e| Unsendable(complaint(&e)))?;
        String::from_utf8(out.0).map_err(|e| Unsendable(e.to_string()))
    }

    fn check_url(&self, url: &str, strict: Strict) -> Result<(), Unsendable> {
        if self.is_masked(url) || strict == Strict::Body {
            return Ok(());
        }
        let bad = |why: &str| Err(Unsendable(format!("the URL {why}")));
        let Ok(parsed) = Url::parse(url) else {
            return bad("is none: http:// or https:// is needed");
        };
        let (Some(host), "http" | "https") = (parsed.host_str(), parsed.scheme()) else {
            return bad("is neither http:// nor https://");
        };
        // Parsers let more through than any name holds.
        if host.contains(|c: char| !c.is_ascii_alphanumeric() && !"-._:[]".contains(c)) {
            return bad("names a host that cannot be");
        }
        if !self.allow_hosts.is_empty() {
            if strict == Strict::Sample {
                // Samples have no such names; real events are held to it.
                return Ok(());
            }
            let fits = |pattern: &String| match pattern.strip_prefix('*') {
                Some(domain) => host.len() > domain.len() && host.ends_with(domain),
                None => host == pattern,
            };
            return match self.allow_hosts.iter().any(fits) {
                true => Ok(()),
                false => bad("names a host that allow_hosts does not allow"),
            };
        }
        match &self.origin {
            Some(known) if origin(url).as_ref() != Some(known) => {
                bad("names another host for this event than for others: set allow_hosts")
            }
            _ => Ok(()),
        }
    }
}

fn origin(url: &str) -> Option<String> {
    Some(Url::parse(url).ok()?.origin().ascii_serialization())
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    // By name it would guess what to escape; each place here says it.
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    // Our own, as the usual ones make `null` and nothing of what is undefined.
    env.add_filter("tojson", |value: Value| -> Result<Value, minijinja::Error> {
        let json = serde_json::to_string(defined(&value)?);
        let bad = |e: serde_json::Error| {
            minijinja::Error::new(ErrorKind::BadSerialization, e.to_string())
        };
        json.map(Value::from_safe_string).map_err(bad)
    });
    env.add_filter("urlencode", |value: Value| -> Result<String, minijinja::Error> {
        let text = defined(&value)?.to_string();
        if [".", ".."].contains(&text.as_str()) {
            // A step in a path, encoded or not.
            let why = "`.` and `..` cannot be part of a URL's path";
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, why));
        }
        Ok(url_encoded(&text))
    });
    env.add_filter("base64", |text: String| STANDARD.encode(text));
    env.add_function("refuse", |why: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("refused: {why}")))
    });
    env
}

fn defined(value: &Value) -> Result<&Value, minijinja::Error> {
    if value.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    Ok(value)
}

/// Percent-encoded but for what RFC 3986 calls unreserved: fit for one segment of a path or one parameter.
fn url_encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if plain(b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// What went wrong and where, without the values that it went wrong with.
fn complaint(e: &minijinja::Error) -> String {
    match e.kind() {
        ErrorKind::WriteFailure => format!("a part is longer than {PART_LEN_MAX} bytes"),
        ErrorKind::OutOfFuel => format!("a part takes more than {FUEL} steps"),
        _ => e.to_string(),
    }
}

/// Takes no more than [`PART_LEN_MAX`].
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > PART_LEN_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
