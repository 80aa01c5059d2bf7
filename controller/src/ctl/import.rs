//! Lists of expected hosts as files: a JSON array, JSON lines, or CSV.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

use heartwatch_common::secret;

use crate::api::check_import;
use crate::control::ImportHost;

/// A list longer than this is not one, bytes.
const FILE_LEN_MAX: u64 = 1024 * 1024 * 1024;
/// Most hosts in one request.
const CHUNK_LEN_MAX: usize = 5_000;
/// Most bytes in one request, well below what the API takes.
const CHUNK_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Reads a list; `-` is the standard input. Errors name file, line and reason.
pub(super) fn read(path: &Path) -> Result<Vec<ImportHost>, String> {
    let name = path.display().to_string();
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(FILE_LEN_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(FILE_LEN_MAX + 1).read_to_string(&mut text))
    };
    read.map_err(|e| format!("{name}: {e}"))?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(format!("{name}: longer than {FILE_LEN_MAX} bytes"));
    }
    parse(&name, &text)
}

/// A piece of a list, for an error: short, and without a secret that stands in the place of a host.
fn shown(text: &str) -> String {
    super::text::shorten(&secret::hidden(text), 60).to_string()
}

/// Reads a list; which of the three forms it has is seen by its first character.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<ImportHost>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let at = |line: usize, message: String| format!("{name}:{line}: {}", secret::hidden(&message));
    let hosts = match text.trim_start().chars().next() {
        None => return Err(format!("{name}: no host in it")),
        Some('[') => {
            let hosts: Vec<ImportHost> =
                serde_json::from_str(text).map_err(|e| at(e.line(), e.to_string()))?;
            // A JSON value does not tell its line: the entry is named instead, for people's eyes.
            for (i, host) in hosts.iter().enumerate() {
                check_import(host)
                    .map_err(|e| format!("{name}: entry {} ({}): {e}", i + 1, host.id))?;
            }
            unique(name, "entry", hosts.iter().enumerate().map(|(i, h)| (i + 1, h)))?;
            hosts
        }
        Some(first) => {
            let mut hosts = Vec::new();
            for (i, line) in text.lines().enumerate() {
                let (number, line) = (i + 1, line.trim());
                let heading = hosts.is_empty() && (line == "id" || line.starts_with("id,"));
                if line.is_empty() || line.starts_with('#') || heading {
                    continue;
                }
                let host = if first == '{' { json_line(line) } else { csv_line(line) };
                let host = host.and_then(|h| check_import(&h).map(|()| h));
                hosts.push((number, host.map_err(|e| at(number, e))?));
            }
            unique(name, "line", hosts.iter().map(|(line, host)| (*line, host)))?;
            hosts.into_iter().map(|(_, host)| host).collect()
        }
    };
    if hosts.is_empty() { Err(format!("{name}: no host in it")) } else { Ok(hosts) }
}

fn unique<'a>(
    name: &str,
    what: &str,
    hosts: impl Iterator<Item = (usize, &'a ImportHost)>,
) -> Result<(), String> {
    let mut seen = HashMap::new();
    for (place, host) in hosts {
        if let Some(first) = seen.insert(host.id, place) {
            let id = host.id;
            return Err(format!(
                "{name}: {what} {place}: the host {id} stands in {what} {first} already"
            ));
        }
    }
    Ok(())
}

fn json_line(line: &str) -> Result<ImportHost, String> {
    serde_json::from_str(line).map_err(|e| {
        // The line number within the line is always 1, and would mislead.
        let text = e.to_string();
        text.rsplit_once(" at line").map_or(text.clone(), |(reason, _)| reason.to_owned())
    })
}

fn csv_line(line: &str) -> Result<ImportHost, String> {
    if line.contains('"') {
        return Err("quotes are not understood here: write such hosts as JSON lines".to_owned());
    }
    let mut fields = line.splitn(3, ',').map(str::trim);
    let id = fields.next().unwrap_or_default();
    let id = id.parse().map_err(|e| format!("`{}`: {e}", shown(id)))?;
    let name = fields.next().unwrap_or_default().to_owned();
    let mut labels = BTreeMap::new();
    let pairs = fields.next().unwrap_or_default();
    for pair in pairs.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("the label `{}` is not of the form key=value", shown(pair)))?;
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        if labels.insert(key.clone(), value).is_some() {
            return Err(format!("the label `{}` stands there twice", shown(&key)));
        }
    }
    Ok(ImportHost { id, name, labels })
}

/// Cuts a list into requests that the API takes.
pub(super) fn chunks(hosts: &[ImportHost]) -> impl Iterator<Item = &[ImportHost]> {
    let mut rest = hosts;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(CHUNK_LEN_MAX).take_while(|host| {
            bytes += size(host);
            bytes <= CHUNK_BYTES_MAX
        });
        // One alone always fits: its texts are bounded.
        let len = fits.count().max(1).min(rest.len());
        let (chunk, after) = rest.split_at(len);
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// At most so many bytes of JSON: every byte of a text may need six, as `\u0000` does.
fn size(host: &ImportHost) -> usize {
    let texts: usize = host.labels.iter().map(|(k, v)| k.len() + v.len() + 8).sum();
    100 + 6 * (host.name.len() + texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "8a4e3b1c5d6f70819203a4b5c6d7e8f9";
    const B: &str = "00000000000000000000000000000001";

    #[test]
    fn the_three_forms_say_the_same() {
        let array = format!(
            r#"[{{"id": "{A}", "name": "web-1", "labels": {{"zone": "a", "rack": "r=1"}}}},
               {{"id": "{B}"}}]"#
        );
        let lines = format!(
            "{{\"id\": \"{A}\", \"name\": \"web-1\", \"labels\": {{\"zone\": \"a\", \"rack\": \"r=1\"}}}}\n\n\
             {{\"id\": \"{B}\"}}\n"
        );
        let csv = format!("\u{feff}id,name,labels\n# ours\n{A}, web-1 ,zone=a; rack=r=1;\n\n{B}\n");
        let hosts = parse("x", &array).unwrap();
        assert_eq!((hosts.len(), hosts[0].labels["rack"].as_str()), (2, "r=1"));
        assert_eq!(parse("x", &lines).unwrap(), hosts);
        assert_eq!(parse("x", &csv).unwrap(), hosts);
    }

    #[test]
    fn no_error_shows_a_secret_that_stands_in_the_place_of_a_host() {
        let key = B.repeat(2);
        for line in [
            format!("hwk1:1:0:{key}"),
            key.clone(),
            format!("{A},n,hwj1_{B}_{key}"),
            format!("{A},n,{key}"),
            format!("{A},n,hwj1_{B}=1;hwj1_{B}=2"),
            format!("{{\"id\": \"hwt1_{key}\"}}"),
            format!("{{\"id\": \"{A}\", \"hwt1_{key}\": 1}}"),
            format!("[{{\"id\": \"{A}\", \"hwt1_{key}\": 1}}]"),
        ] {
            let error = parse("f", &line).unwrap_err();
            assert!(error.starts_with("f:1: ") && !error.contains(&B[..24]), "{line}\n{error}");
        }
    }

    #[test]
    fn bad_lists_are_refused_with_file_line_and_reason() {
        let cases = [
            (String::new(), "f: no host"),
            ("# only this\n".to_owned(), "f: no host"),
            ("[]".to_owned(), "f: no host"),
            (format!("{A},ok\nzz,name"), "f:2: `zz`: a host id is 32 hexadecimal digits"),
            (format!("{A},ok\n\n{B},n,zone"), "f:3: the label `zone` is not"),
            (format!("{A},n,zone=a;zone=b"), "f:1: the label `zone` stands there twice"),
            (format!("{A},n,=b"), "f:1: a label has no key"),
            (format!("{A},\"a,b\""), "f:1: quotes are not understood"),
            (format!("{A},{}", "x".repeat(300)), "f:1: its name is longer than 255 bytes"),
            (
                format!("{A},a\n{B},b\n{A},c"),
                "f: line 3: the host 8a4e3b1c5d6f70819203a4b5c6d7e8f9 stands in line 1",
            ),
            (format!("{{\"id\": \"{A}\"}}\n{{\"id\": 5}}"), "f:2: invalid type"),
            (format!("{{\"id\": \"{A}\", \"nmae\": \"x\"}}"), "f:1: unknown field `nmae`"),
            (format!("[\n{{\"id\": \"{A}\"}},\n{{\"id\": \"5\"}}]"), "f:3: a host id is 32"),
            (format!("[{{\"id\": \"{A}\"}}, {{\"id\": \"{A}\"}}]"), "f: entry 2: the host"),
            ("[{".to_owned(), "f:1: EOF"),
        ];
        for (text, wanted) in cases {
            let error = parse("f", &text).unwrap_err();
            assert!(error.starts_with(wanted), "{error}\nis not\n{wanted}");
            assert!(error.len() < 400);
        }
    }

    #[test]
    fn requests_stay_below_what_the_api_takes() {
        let host = |n: usize, label: usize| ImportHost {
            id: heartwatch_common::id::HostId(u128::try_from(n).unwrap().to_be_bytes()),
            name: "h".to_owned(),
            labels: (0..label).map(|i| (format!("{i:0255}"), "\u{1}".repeat(255))).collect(),
        };
        let small: Vec<_> = (0..12_001).map(|n| host(n, 0)).collect();
        let lens: Vec<_> = chunks(&small).map(<[_]>::len).collect();
        assert_eq!(lens, [5_000, 5_000, 2_001]);
        let big: Vec<_> = (0..600).map(|n| host(n, 64)).collect();
        let mut seen = 0;
        for chunk in chunks(&big) {
            seen += chunk.len();
            assert!(serde_json::to_vec(chunk).unwrap().len() <= crate::api::IMPORT_BODY_LEN_MAX);
        }
        assert_eq!(seen, 600);
        assert_eq!(chunks(&[]).count(), 0);
    }
}
