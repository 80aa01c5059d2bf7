use super::*;

fn parse(text: &str) -> Result<AgentConfig, String> {
    with(text, &Overrides::default())
}

fn with(text: &str, overrides: &Overrides) -> Result<AgentConfig, String> {
    let raw: RawConfig = toml::from_str(text).map_err(|e| e.to_string())?;
    AgentConfig::new(raw, overrides, "a-host").map_err(|e| e.to_string())
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let c = parse("").unwrap();
    assert_eq!(
        (c.interval, c.jitter, c.interval_min, c.interval_max, c.ack_every),
        (Duration::from_secs(1), 0.2, Duration::from_millis(100), Duration::from_secs(60), 10)
    );
    assert_eq!((c.name.as_str(), c.log_level), ("a-host", LogLevel::Info));
    assert_eq!(c.state_dir, Path::new("/var/lib/heartwatch-agent"));
    assert!(c.check_controllers().unwrap_err().to_string().contains("--controller"));
}

#[test]
fn the_example_shows_the_defaults() {
    let example = parse(EXAMPLE).unwrap();
    assert_eq!(example.controllers, ["controller.example:2328".parse().unwrap()]);
    let defaults = parse("controllers = [\"controller.example\"]").unwrap();
    assert_eq!(example, defaults);
    // Every key is there, those without a fixed default as comments.
    for key in ["key_file", "join_token_file", "enroll_url", "machine_id_file", "host_id", "name"] {
        assert!(EXAMPLE.contains(key), "{key}");
    }
    for key in ["[labels]", "runtime_dir", "log_level"] {
        assert!(EXAMPLE.contains(key), "{key}");
    }
    let uncommented: String =
        EXAMPLE.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l).to_owned() + "\n").collect();
    let full = parse(&uncommented).unwrap();
    assert!(full.host_id.is_some() && full.key_file.is_some() && full.labels.len() == 2);
}

#[test]
fn flags_outrank_the_file_and_labels_add_up() {
    let overrides = Overrides {
        controllers: Some(vec!["b:1".to_owned()]),
        interval: Some(Span(Duration::from_secs(3))),
        labels: Some(vec![("zone".to_owned(), "flag".to_owned())]),
        ..Overrides::default()
    };
    let text = "controllers = [\"a\"]\ninterval = \"2s\"\nname = \"n\"\n\
                [labels]\nzone = \"file\"\nrack = \"r1\"";
    let c = with(text, &overrides).unwrap();
    assert_eq!(c.controllers, ["b:1".parse().unwrap()]);
    assert_eq!((c.interval, c.name.as_str()), (Duration::from_secs(3), "n"));
    assert_eq!((c.labels["zone"].as_str(), c.labels["rack"].as_str()), ("flag", "r1"));
    // Of two values the last won, without a word.
    let pair = |value: &str| ("zone".to_owned(), value.to_owned());
    let twice = Overrides { labels: Some(vec![pair("a"), pair("b")]), ..Overrides::default() };
    let told = with("", &twice).unwrap_err();
    assert!(told.contains("labels.zone") && told.contains("both `a` and `b`"), "{told}");
}

#[test]
fn the_effective_config_is_itself_a_config() {
    let text = "controllers = [\"a\", \"[::1]:9\"]\nkey_file = \"/k\"\ninterval = \"250ms\"\n\
                host_id = \"8a4e3b1c5d6f70819203a4b5c6d7e8f9\"\n[labels]\nzone = \"a b\"";
    let c = parse(text).unwrap();
    assert_eq!(parse(&c.to_toml().unwrap()).unwrap(), c);
}

#[test]
fn endpoints_are_read_and_shown() {
    for (text, shown) in [
        ("ctl", "ctl:2328"),
        ("ctl.example:99", "ctl.example:99"),
        ("192.0.2.1", "192.0.2.1:2328"),
        ("[2001:db8::1]", "[2001:db8::1]:2328"),
        ("[::1]:7", "[::1]:7"),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
    }
    let long = "x".repeat(254);
    for bad in
        ["", ":1", "a:0", "a:65536", "a:x", "::1", "[::1", "[a]:1", "[::1]x", "a b", "u/v", &long]
    {
        assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
    }
    assert!("::1".parse::<Endpoint>().unwrap_err().contains("brackets"));
}

#[test]
fn what_cannot_be_is_refused_with_its_key() {
    let long = format!("labels.k: `{}`", "v".repeat(191));
    let many: String = (0..20).map(|n| format!("k{n} = \"{}\"\n", "v".repeat(100))).collect();
    for (text, expected) in [
        ("interval = \"1ms\"", "interval: 1ms is out of bounds"),
        ("interval = \"1h\"", "interval: 1h is out of bounds"),
        ("interval = 1", "line 1"),
        ("intervall = \"1s\"", "unknown field"),
        ("interval_min = \"2s\"", "interval_min: 2s is out of bounds"),
        ("interval_max = \"500ms\"", "interval_max: 500ms is out of bounds"),
        ("jitter = 0.6", "jitter: 0.6"),
        ("jitter = -0.1", "jitter: -0.1"),
        ("jitter = nan", "jitter: NaN"),
        ("ack_every = 0", "ack_every: 0"),
        ("name = \"\"", "name: must not be empty"),
        ("name = \"a\\nb\"", "control character"),
        ("controllers = [\"a\", \"a:2328\"]", "controllers: `a:2328` is there twice"),
        ("controllers = [\"a:b\"]", "controllers: `a:b`"),
        ("host_id = \"xyz\"", "32 hexadecimal digits"),
        ("[labels]\n\"\" = \"v\"", "labels: must not be empty"),
        ("[labels]\nk = \"\"", "labels.k: must not be empty"),
        ("[labels]\n\"a=b\" = \"v\"", "may hold `=`"),
        ("[labels]\nk = \"a=b\"", "may hold `=`"),
        (&format!("[labels]\nk = \"{}\"", "v".repeat(191)), &long),
        (&format!("[labels]\n{many}"), "shorten or drop labels"),
        (&format!("[labels]\n{} = \"v\"", "k".repeat(64)), "at most 63"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let nine: Vec<String> = (0..9).map(|n| format!("\"c{n}\"")).collect();
    let error = parse(&format!("controllers = [{}]", nine.join(","))).unwrap_err();
    assert!(error.contains("at most 8"), "{error}");
}

#[test]
fn local_bounds_follow_an_unusual_interval() {
    let c = parse("interval = \"50ms\"").unwrap();
    assert_eq!(c.interval_min, Duration::from_millis(50));
    let c = parse("interval = \"2m\"").unwrap();
    assert_eq!(c.interval_max, Duration::from_secs(120));
}

#[test]
fn a_missing_file_is_an_error_only_if_it_was_named() {
    let named = Overrides {
        config: Some(PathBuf::from("/nonexistent/agent.toml")),
        ..Overrides::default()
    };
    assert!(matches!(read(&named, "h"), Err(ConfigError::Io { .. })));
}

/// They are told to the controllers, which show and journal them.
#[test]
fn a_secret_is_no_name_no_label_and_no_folder() {
    let digits = "00ff".repeat(16);
    let label = |key: &str, value: &str| Overrides {
        labels: Some(vec![(key.to_owned(), value.to_owned())]),
        ..Overrides::default()
    };
    let name = |name: &str| Overrides { name: Some(name.to_owned()), ..Overrides::default() };
    let dir = |dir: &str| Overrides { state_dir: Some(dir.into()), ..Overrides::default() };
    for wrong in [
        name("hwk1:1:0:00ff"),
        label("pool", "hwj1_00ff"),
        label("hwj1_00ff", "a"),
        dir("hwt1_00ff"),
        dir(&digits),
    ] {
        let error = with("", &wrong).unwrap_err();
        assert!(error.contains("secret") && !error.contains("00ff"), "{error}");
    }
    for same in [label("certificate", &digits), name(&digits)] {
        assert!(with("", &same).is_ok(), "a hash looks the same, and the id of a container");
    }
}
