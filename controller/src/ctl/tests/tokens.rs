//! Whether a token's file is usable is told at once, and no token is made that nobody has.

use super::*;

/// Of files that hold no token: what stands in them, their mode, and what is said.
const BAD: [(&str, u32, &str); 5] = [
    ("", 0o600, "is empty"),
    ("short", 0o600, "holds no API token"),
    ("two words that make no token", 0o600, "holds no API token"),
    ("hwj1_00112233445566778899aabbccddeeff", 0o600, "holds a join token"),
    (TOKEN, 0o644, "chmod 600"),
];

#[test]
fn a_named_token_file_that_cannot_be_used_is_told_whatever_is_asked_for() {
    let served = Served::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let path = file.to_str().unwrap();
    // Nobody listens there: the file is looked at first.
    let elsewhere = "https://controller.example.invalid:2328";
    let told = |url: &str, verb: &[&str]| {
        let error = command(&[verb, &["--url", url, "--token-file", path]].concat()).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_CONFIG, "{error}");
        chain(&error)
    };
    let each = |expected: &str| {
        for url in [served.url.as_str(), elsewhere, "http://controller.example.invalid"] {
            for verb in [&["status"][..], &["hosts"], &["why", "x"], &["pause", "--end"]] {
                let said = told(url, verb);
                assert!(said.contains(path) && said.contains(expected), "{verb:?}: {said}");
                assert!(said.contains("--token-file"), "{said}");
            }
        }
    };
    each("is the path right?");
    for (text, mode, expected) in BAD {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        each(expected);
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    command(&["status", "--url", &served.url, "--token-file", path]).unwrap();
}

#[test]
fn the_usual_token_file_may_be_missing_where_none_is_needed() {
    let served = Served::new();
    let cli = |args: &[&str]| Cli::try_parse_from([&["heartwatchctl"], args].concat()).unwrap();
    if std::env::var_os("HEARTWATCH_TOKEN_FILE").is_some()
        || token::path(&cli(&["status"]).global).exists()
    {
        return;
    }
    command(&["status", "--url", &served.url]).unwrap();
    let far = cli(&["status", "--url", "https://controller.example"]);
    let (none, why) = token::for_reading(&far.global).unwrap();
    let why = why.unwrap();
    assert!(none.is_none() && why.contains("/api-token") && why.contains("--token-file"), "{why}");
    // Where it could be read on the way, it is not even looked for.
    let plain = cli(&["status", "--url", "http://controller.example"]);
    assert_eq!(token::for_reading(&plain.global).unwrap(), (None, None));
    assert!(token::needed(&far.global).unwrap_err().to_string().contains("changes something"));
}

#[test]
fn a_token_is_made_only_if_its_file_can_be_and_never_over_another() {
    let served = Served::new();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let names = || -> Vec<String> {
        let list = served.json(&["api-token", "list"]);
        let rows = list["tokens"].as_array().unwrap().clone();
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let create = |name: &str, out: &str| {
        served.run(&["api-token", "create", "--name", name, "--scope", "read", "--out", out])
    };
    let theirs = write(dir.path(), "theirs", "precious");
    for (out, expected) in
        [(theirs.as_str(), "exists"), (path("no/such/dir").as_str(), "cannot make")]
    {
        let told = chain(&create("a", out).unwrap_err());
        assert!(told.contains(expected) && told.contains("no token was made"), "{told}");
        assert!(names().is_empty());
    }
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "precious");

    assert!(create("a", &path("a")).unwrap().contains(&path("a")));
    let made = std::fs::read_to_string(path("a")).unwrap();
    assert!(
        made.starts_with("hwt1_") && made.ends_with('\n') && made.lines().count() == 1,
        "{made}"
    );
    let mode = std::fs::metadata(path("a")).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode, names()), (0o600, vec!["a".to_owned()]));
    command(&["hosts", "--url", &served.url, "--token-file", &path("a")]).unwrap();

    // The controller says no: no file is left behind, and the token that is there stays.
    let told = chain(&create("a", &path("again")).unwrap_err());
    assert!(told.contains("a token `a` exists"), "{told}");
    assert!(!Path::new(&path("again")).exists());
    assert_eq!(names(), ["a"]);
}

/// Takes nothing that is printed.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_token_that_cannot_be_shown_is_revoked_again() {
    let served = Served::new();
    let file = served.token_file();
    let args = ["heartwatchctl", "--url", &served.url, "--token-file", file.to_str().unwrap()];
    let verb = ["api-token", "create", "--name", "a", "--scope", "admin"];
    let cli = Cli::try_parse_from([&args[..], &verb].concat()).unwrap();
    let told = chain(&execute(&cli, &mut Closed).unwrap_err());
    assert!(told.contains("was revoked again"), "{told}");
    assert_eq!(served.json(&["api-token", "list"])["tokens"], json!([]));
}

/// They were sent, logged, journaled, and told back.
#[test]
fn a_secret_is_not_sent_in_the_place_of_a_name() {
    let served = Served::new();
    let digits = "00112233445566778899aabbccddeeff";
    let key = digits.repeat(2);
    let host_key = format!("hwk1:1:0:{key}");
    for args in [
        &["token", "revoke", digits][..],
        &["token", "create", "--name", digits],
        &["api-token", "revoke", &key],
        &["api-token", "create", "--scope", "read", "--name", digits],
        &["host", &host_key],
        &["why", &key],
        &["forget", &key],
        &["freeze", &key],
        &["events", "--host", &key],
        &["deliveries", "--host", &host_key],
        &["hosts", "revoke", &key, "--reason", "x"],
        &["hosts", "revoke", &key, "--lift"],
        &["hosts", "single", &key, "--reason", "x"],
        &["holds", "approve", &key, "--reason", "x"],
        &["maintenance", "add", &key, "--for", "1m", "--reason", "x"],
        &["rules", "test", &key],
        &["candidates", &key],
        &["receivers", "test", &key],
    ] {
        let error = served.run(args).unwrap_err();
        let told = chain(&error);
        assert_eq!(error.exit_code(), EXIT_USAGE, "{args:?}: {told}");
        assert!(told.contains("nothing was sent") && !told.contains("2233"), "{args:?}: {told}");
    }
    assert!(served.world.control.audited.lock().unwrap().is_empty());
    // Whatever the word is for, and before anything is said about it.
    for word in [host_key.as_str(), "hwj1_00ff", "--reason=the key hwt1_00ff leaked"] {
        let args = ["heartwatchctl", "key", word].map(OsString::from);
        let told = without_secret(&args).unwrap_err().to_string();
        assert!(told.contains("word 2") && !told.contains("00"), "{told}");
        assert_eq!(crate::ctl::run(args), EXIT_USAGE);
    }
    let error = command(&["status", "--token-file", "hwt1_00ff"]).unwrap_err();
    assert!(!chain(&error).contains("00ff") && error.exit_code() == EXIT_CONFIG, "{error}");
}

#[test]
fn a_url_that_is_none_is_told_plainly_and_without_its_password() {
    let served = Served::new();
    let url = served.url.replace("http://", "http://ann:hunter2@");
    let error = command(&["status", "--url", &url]).unwrap_err();
    let told = chain(&error);
    assert_eq!(error.exit_code(), EXIT_USAGE);
    assert!(told.contains("a name and a password") && told.contains("--token-file"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    let error = command(&["status", "--url", "ftp://ann:hunter2@x"]).unwrap_err();
    assert!(!chain(&error).contains("hunter2"), "{error}");
    for path in ["/metrics", "/v1/status"] {
        let error = command(&["status", "--url", &format!("{}{path}", served.url)]).unwrap_err();
        let told = chain(&error);
        assert!(told.contains(&format!("has the path `{path}`")), "{told}");
    }
}
