//! Configuration as its users meet it: files, variables, mistakes, secrets.

use std::io::Write as _;
use std::net::SocketAddr;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default)]
struct Sample {
    #[serde(deserialize_with = "listen")]
    listen: SocketAddr,
    #[serde(deserialize_with = "optional_listen")]
    metrics_listen: Option<SocketAddr>,
    database_url: DatabaseUrl,
    token: Secret,
    names: Vec<String>,
    server: ServerConfig,
    database: DatabaseConfig,
    telemetry: TelemetryConfig,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:50051".parse().expect("address"),
            metrics_listen: Some("127.0.0.1:9464".parse().expect("address")),
            database_url: DatabaseUrl::sqlite("sample.db"),
            token: Secret::new(""),
            names: Vec::new(),
            server: ServerConfig::default(),
            database: DatabaseConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Sample, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    load("SAMPLE", Some(file.path()), pairs(env))
}

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn an_empty_or_absent_file_gives_the_defaults() {
    assert_eq!(load_text("", &[]).expect("empty"), Sample::default());
    let absent: Sample = load("SAMPLE", None, pairs(&[])).expect("absent");
    assert_eq!(absent, Sample::default());
}

#[test]
fn a_file_that_is_named_must_exist() {
    let error = load::<Sample>("SAMPLE", Some(Path::new("/nowhere/sample.toml")), pairs(&[]));
    assert!(error.expect_err("unreadable").to_string().contains("/nowhere/sample.toml"));
}

#[test]
fn the_environment_overrides_the_file() {
    let config = load_text(
        "listen = '127.0.0.1:1'\n[telemetry]\nlog = 'warn'\nlog_format = 'json'\n",
        &[
            ("SAMPLE_LISTEN", "127.0.0.1:2"),
            ("SAMPLE_TELEMETRY__LOG", "debug"),
            ("SAMPLE_SERVER__MAX_CALLS", "7"),
            ("SAMPLE_TOKEN", "12345"),
            ("SAMPLE_NAMES", "['a', 'b']"),
            ("SAMPLE_METRICS_LISTEN", ""),
        ],
    )
    .expect("valid");
    assert_eq!(config.listen.port(), 2);
    assert_eq!(config.telemetry.log, "debug");
    assert_eq!(config.telemetry.log_format, LogFormat::Json);
    assert_eq!(config.server.max_calls.get(), 7);
    assert_eq!(config.token.expose(), "12345");
    assert_eq!(config.names, ["a", "b"]);
    assert_eq!(config.metrics_listen, None);
}

#[test]
fn unknown_keys_are_refused_in_the_file_and_left_alone_in_the_environment() {
    for (text, key) in [("listne = 1", "listne"), ("[telemetry]\nlogs = 'x'", "telemetry.logs")] {
        let error = load_text(text, &[]).expect_err("unknown key").to_string();
        assert!(error.ends_with(&format!("unknown key {key}")), "{error}");
    }
    let env = [
        ("SAMPLE_PORT", "tcp://10.0.0.1:80"),
        ("SAMPLE_TELEMETRY__UNKNOWN", "1"),
        ("SAMPLE_UNKNOWN__TABLE__KEY", "1"),
        ("SAMPLER_LISTEN", "nonsense"),
        ("SAMPLE", "nonsense"),
    ];
    assert_eq!(load_text("", &env).expect("left alone"), Sample::default());
    let mut ours = pairs(&env);
    ours.push(("SAMPLE_LISTEN".to_owned(), "127.0.0.1:1".to_owned()));
    assert_eq!(
        unknown_variables::<Sample>("SAMPLE", ours),
        ["SAMPLE_PORT", "SAMPLE_TELEMETRY__UNKNOWN", "SAMPLE_UNKNOWN__TABLE__KEY"]
    );
}

#[test]
fn a_value_that_does_not_fit_names_its_variable() {
    for (name, value) in [
        ("SAMPLE_LISTEN", "here"),
        ("SAMPLE_SERVER__MAX_CALLS", "many"),
        ("SAMPLE_SERVER__MAX_CALLS", "0"),
        ("SAMPLE_SERVER__MAX_CALLS", "-1"),
        ("SAMPLE_METRICS_LISTEN", "9464"),
        ("SAMPLE_TELEMETRY__LOG_FORMAT", "xml"),
    ] {
        let error = load_text("", &[(name, value)]).expect_err(name).to_string();
        assert!(error.starts_with(&format!("environment {name}: ")), "{error}");
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_line_and_wrong_kinds_in_the_words_of_toml() {
    let error = load_text("token = 'a'\n\nlisten =\n", &[]).expect_err("half a line").to_string();
    assert!(error.contains(": line 3: "), "{error}");
    let error = load_text("", &[("SAMPLE_NAMES", "a,b")]).expect_err("no list").to_string();
    assert!(error.ends_with(r#"expected a list such as ["a", "b"]"#), "{error}");
    let error = load_text("[server]\nmax_calls = 0\n", &[]).expect_err("none").to_string();
    assert!(error.ends_with("integer `0`, expected a positive whole number in `server.max_calls`"), "{error}");
}

#[test]
fn secrets_are_not_printed() {
    let config = load_text("token = 'hunter2'\ndatabase_url = 'postgres://me:hunter2@db:5432/x?password=hunter2'", &[])
        .expect("valid");
    let printed = format!("{config:?}");
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("postgres://me@db:5432/x"), "{printed}");

    let urls =
        "[database]\nreader_url = 'postgres://me:hunter2@replica/x'\nmigrator_url = 'postgres://you:hunter2@db/x'";
    let config = load_text(urls, &[]).expect("valid");
    let printed = format!("{config:?}");
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("postgres://me@replica:5432/x") && printed.contains("postgres://you@db:5432/x"));
    let config = load_text(urls, &[("SAMPLE_DATABASE__READER_URL", "")]).expect("valid");
    assert_eq!(config.database.reader_url, None);

    let error = load_text("", &[("SAMPLE_DATABASE_URL", "mysql://me:hunter2@db/x")]);
    let error = error.expect_err("scheme").to_string();
    assert!(error.contains("sqlite://PATH"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_password_with_odd_characters_is_not_printed() {
    for url in [
        "postgres://me:p@ss:w@db/x",
        "postgres://me:p/ss@db/x",
        "postgres://me:p?ss@db/x",
        "postgres://me@db/x?password=p@ss",
        "postgresql://me:p@ss@[::1]:5432/x",
    ] {
        let shown = DatabaseUrl::new(url).expect("valid").to_string();
        assert!(!shown.contains("ss"), "{shown}");
    }
    assert_eq!(
        DatabaseUrl::new("sqlite:///var/lib/a.db?mode=rwc").expect("valid").sqlite_path(),
        Some(PathBuf::from("/var/lib/a.db"))
    );
}

#[test]
fn an_address_that_is_none_is_refused_with_its_name_and_an_example() {
    let wanted = "\"localhost:1\" is no address, wanted is an IP address and a port, such as 127.0.0.1:50051";
    let error = load_text("", &[("SAMPLE_LISTEN", "localhost:1")]).expect_err("refused").to_string();
    assert_eq!(error, format!("environment SAMPLE_LISTEN: {wanted}"));
    let error = load_text("listen = 'localhost:1'", &[]).expect_err("refused").to_string();
    assert!(error.ends_with(&format!(": {wanted} in `listen`")), "{error}");
}
