use super::*;
use serde_json::json;

const DOWN: [EventKind; 1] = [EventKind::HostDown];

fn template(text: &str) -> (tempfile::TempDir, TemplateConfig) {
    let dir = tempfile::tempdir().unwrap();
    let template_file = dir.path().join("t.toml");
    std::fs::write(&template_file, text).unwrap();
    let config = TemplateConfig {
        template_file,
        allow_hosts: Vec::new(),
        vars: BTreeMap::new(),
        secrets: BTreeMap::new(),
    };
    (dir, config)
}

fn tried(text: &str, edit: impl FnOnce(&mut TemplateConfig)) -> Result<Template, String> {
    let (_dir, mut config) = template(text);
    edit(&mut config);
    let say = |e: TemplateError| match std::error::Error::source(&e) {
        Some(source) => format!("{e}: {source}"),
        None => e.to_string(),
    };
    let url = "https://there.example/";
    let mut template = Template::read(&config, url, Secrets::Masked).map_err(say)?;
    template.try_on(DOWN, &Sample::default()).map_err(say)?;
    Ok(template)
}

#[test]
fn an_empty_template_posts_the_whole_event() {
    let down = sample(EventKind::HostDown, &Sample::default());
    let message = tried("", |_| ()).unwrap().render(&down).unwrap();
    assert_eq!((message.method.as_str(), message.url.as_str()), ("POST", "https://there.example"));
    assert_eq!(message.headers, [("content-type".to_owned(), "application/json".to_owned())]);
    let body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
    assert_eq!(body, serde_json::from_str::<serde_json::Value>(&down.body).unwrap());
}

#[test]
fn vars_of_the_receiver_win_and_secrets_are_masked() {
    let text = "body = '''{\"a\": {{ vars.a | tojson }}, \"s\": {{ secrets.key | tojson }}}'''\n\
                headers.X-Auth = \"{{ ('u:' ~ secrets.key) | base64 }}\"\n[vars]\na = \"file\"";
    let template = tried(text, |c| {
        c.vars.insert("a".to_owned(), "receiver".to_owned());
        c.secrets.insert("key".to_owned(), "/nowhere".into());
    });
    let message =
        template.unwrap().render(&sample(EventKind::HostDown, &Sample::default())).unwrap();
    let body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
    assert_eq!(body, json!({ "a": "receiver", "s": "SECRET-key" }));
    assert_eq!(message.headers[0], ("x-auth".to_owned(), STANDARD.encode("u:SECRET-key")));
}

#[test]
fn secrets_are_read_from_files_that_only_their_owner_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, mut config) = template("body = '{{ secrets.key | tojson }}'");
    let file = dir.path().join("key");
    std::fs::write(&file, "hunter2\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    config.secrets.insert("key".to_owned(), file.clone());
    let read = || Template::read(&config, "http://a/", Secrets::Read);
    assert!(matches!(read(), Err(TemplateError::Secret { .. })));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let down = sample(EventKind::HostDown, &Sample::default());
    assert_eq!(read().unwrap().render(&down).unwrap().body, "\"hunter2\"");
}

#[test]
fn what_would_fail_later_is_refused_at_once_with_its_reason() {
    let bad = [
        ("bdoy = ''", "bdoy"),
        ("body = '{% if %}'", "syntax"),
        ("body = '{{ host.nmae | tojson }}'", "undefined"),
        ("body = '{{ host.nmae }}'", "undefined"),
        ("url = 'http://a/{{ host.nmae | urlencode }}'", "undefined"),
        ("url = 'http://a/{{ \"..\" | urlencode }}'", "path"),
        ("body = '{\"host\": \"{{ host.name }}\"}'", "tojson"),
        ("method = 'BREW'", "POST, PUT"),
        ("url = 'ftp://x/'", "http://"),
        ("url = 'http://{{ host.name }}/'", "allow_hosts"),
        ("headers.x = '{{ type ~ \"\\n\" }}x'", "control character"),
        ("body = '{{ refuse(\"not this one\") }}'", "not this one"),
        ("body = '{% for i in range(99999) %}{{ i }}{% endfor %}'", "steps"),
        ("body = '{% for i in range(9000) %}{{ event | tojson }}{% endfor %}'", "longer than"),
    ];
    for (text, wanted) in bad {
        let Err(error) = tried(text, |_| ()).map(drop) else { panic!("{text} passes") };
        assert!(error.contains(wanted), "{text}\n{error}");
    }
}

#[test]
fn no_host_chooses_where_credentials_go() {
    let text = "url = 'https://{{ host.labels.bmc }}.bmc.example/x'";
    let error = tried(text, |_| ()).map(drop).unwrap_err();
    assert!(error.contains("allow_hosts"), "{error}");
    // With a pattern the names are free within it.
    let template = tried(text, |c| c.allow_hosts = vec!["*.bmc.example".to_owned()]).unwrap();
    let render = |bmc: &str| {
        let labels = BTreeMap::from([("bmc".to_owned(), bmc.to_owned())]);
        template.render(&sample(EventKind::HostDown, &Sample { labels, ..Sample::default() }))
    };
    assert_eq!(render("b-7").unwrap().url, "https://b-7.bmc.example/x");
    for evil in ["evil.example/", "evil.example#", "u:p@evil.example:1/", "a\\", "", "x y"] {
        assert!(render(evil).is_err(), "{evil}");
    }
    let one = tried("url = 'https://a.example/{{ host.name | urlencode }}'", |_| ()).unwrap();
    let message = one.render(&sample(EventKind::HostDown, &Sample::default().nasty())).unwrap();
    assert_eq!(Url::parse(&message.url).unwrap().host_str(), Some("a.example"));
}
