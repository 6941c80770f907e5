use std::path::Path;

use pygmy_protocol::registration::Role;

use super::{Config, Document, Settings, lines::Lines, show::flatten};

const SERVERS: &str = r#"
[[server]]
name = "one"
role = "all"
listen = "127.0.0.1:8091"
public_listen = "127.0.0.1:8081"
"#;

fn load(text: &str, settings: &Settings) -> Result<Config, String> {
    Config::parse(Path::new("etc/pygmy.toml"), text, settings).map_err(|e| e.to_string())
}

fn error(text: &str) -> String {
    match load(text, &Settings::default()) {
        Ok(_) => panic!("this is valid: {text}"),
        Err(error) => error,
    }
}

fn origin(config: &Config, key: &str) -> (String, String) {
    let setting = config.settings().into_iter().find(|s| s.key == key).unwrap();
    (setting.value.to_string(), setting.origin)
}

#[test]
fn the_commented_configuration_has_every_setting_with_its_default() {
    let text = include_str!("../../../../config/pygmy.toml");
    let config = load(text, &Settings::default()).unwrap();
    let written = Document { servers: Vec::new(), ..config.document().clone() };
    assert_eq!(flatten(&written), flatten(&Document::default()));
    let lines = Lines::of(text).unwrap();
    for key in flatten(&Document::default()).into_keys() {
        assert!(lines.get(&key).is_some(), "{key} is missing");
    }
    for key in ["name", "role", "listen", "public_listen", "url", "dir", "respawn"] {
        assert!(lines.get(&format!("server.0.{key}")).is_some(), "{key} is missing");
    }
}

#[test]
fn an_unknown_key_or_table_names_its_line() {
    let wrong = error("[cluster]\n\nhearbeat_ms = 5\n");
    assert!(wrong.starts_with("etc/pygmy.toml:3: unknown key `hearbeat_ms`"), "{wrong}");
    let wrong = error("\n[limit]\nx = 1\n");
    assert!(wrong.starts_with("etc/pygmy.toml:2: unknown key `limit`"), "{wrong}");
    let wrong = error(&format!("{SERVERS}restart = \"x\"\n"));
    assert!(wrong.starts_with("etc/pygmy.toml:7: unknown key `restart`"), "{wrong}");
}

#[test]
fn a_bad_value_names_its_line_and_key() {
    for (text, line, word) in [
        ("[cluster]\nheartbeat_ms = 10\n", 2, "heartbeat_ms is 10; it must be from 50 to 60000"),
        ("[cluster]\nheartbeat_ms = \"x\"\n", 2, "invalid type"),
        ("[cluster]\nheartbeat_ms = -1\n", 2, "invalid value"),
        ("[limits]\n\nmax_body_bytes = 0\n", 3, "max_body_bytes"),
        ("[balancer]\nprobe_interval_ms = 1\n", 2, "probe_interval_ms"),
        ("[catalog]\nraft_heartbeat_ms = 1\n", 2, "raft_heartbeat_ms"),
        ("[frontend]\nlease_ms = 49\n", 2, "lease_ms is 49; it must be from 50 to 10000"),
        ("[frontend]\n\nlease_ms = 10001\n", 3, "lease_ms is 10001"),
        (
            "[catalog]\nraft_heartbeat_ms = 60\n[frontend]\nlease_ms = 239\n",
            4,
            "lease_ms is 239; it must be at least 240, 4 times catalog.raft_heartbeat_ms",
        ),
        (
            "[frontend]\n[catalog]\nraft_heartbeat_ms = 126\nelection_timeout_min_ms = 378\n",
            3,
            "raft_heartbeat_ms is 126; frontend.lease_ms must be at least 4 times as much, and is 500",
        ),
        (
            "[catalog]\nlog_segment_bytes = 67108865\n",
            2,
            "log_segment_bytes is 67108865; catalog.min_free_bytes must be at least 2 times as much",
        ),
        (
            "[catalog]\nlog_segment_bytes = 1048576\nmin_free_bytes = 2097151\n",
            3,
            "min_free_bytes is 2097151; it must be at least 2097152, 2 times catalog.log_segment",
        ),
        (
            "[limits]\nrequest_timeout_ms = 100\n",
            2,
            "request_timeout_ms is 100; it must be at least 2000, as is cluster.attempt_timeout_ms",
        ),
        (
            "[cluster]\nattempt_timeout_ms = 5001\n",
            2,
            "attempt_timeout_ms is 5001; limits.request_timeout_ms must be at least as much, and is",
        ),
        (
            "[catalog]\nraft_heartbeat_ms = 100\n",
            2,
            "raft_heartbeat_ms is 100; catalog.election_timeout_min_ms must be at least 3 times as",
        ),
        (
            "[catalog]\nelection_timeout_min_ms = 500\n",
            2,
            "election_timeout_min_ms is 500; catalog.election_timeout_max_ms must be at least as",
        ),
        (
            "[respawn]\nbackoff_max_ms = 100\n",
            2,
            "backoff_max_ms is 100; it must be at least 500, as is respawn.backoff_min_ms",
        ),
        ("[cluster]\nheartbeat_ms = \n", 2, ""),
        ("[[server]]\nname = \"a\"\nrole = \"shop\"\nlisten = \"127.0.0.1:1\"\n", 3, "shop"),
        ("[[server]]\nname = \"a\"\nrole = \"order\"\nlisten = \"here\"\n", 4, "socket address"),
    ] {
        let wrong = error(text);
        assert!(wrong.starts_with(&format!("etc/pygmy.toml:{line}: ")), "{wrong}");
        assert!(wrong.contains(word), "{wrong}");
    }
}

#[test]
fn a_respawn_command_is_the_servers_own_or_that_of_all() {
    let other = "[[server]]\nname = \"two\"\nrole = \"order\"\nlisten = \"127.0.0.1:1\"\n";
    let all = "[respawn]\ncommand = [\"systemctl\", \"{action}\", \"pygmy@{name}\"]\n";
    let own = "respawn = [\"ssh\", \"two\", \"{action}\"]\n";
    let config = load(&format!("{all}{SERVERS}{other}{own}"), &Settings::default()).unwrap();
    let [one, two] = &config.processes()[..] else { panic!("two servers") };
    assert_eq!(one.command, ["systemctl", "{action}", "pygmy@{name}"]);
    assert_eq!(two.command, ["ssh", "two", "{action}"]);
    assert_eq!(one.watcher_url.as_deref(), Some("http://127.0.0.1:8091/balancer"));
    assert_eq!(one.parts, ["one-frontend", "one-balancer", "one-order", "one-catalog"]);
    assert_eq!((two.watcher_url.as_ref(), &two.parts[..]), (None, &["two".to_owned()][..]));
    let wrong = error(&format!("[respawn]\ncommand = [\"x\",\n  \"{{nam}}\"]\n{SERVERS}"));
    let sentence =
        "etc/pygmy.toml:2: command has the unknown placeholder {nam}; known are {action}";
    assert!(wrong.starts_with(sentence), "{wrong}");
    let wrong = error(&format!("{SERVERS}respawn = [\"{{x}}\"]\n"));
    assert!(
        wrong.starts_with("etc/pygmy.toml:7: respawn has the unknown placeholder {x}"),
        "{wrong}"
    );
    let wrong = error("[respawn]\nafter_ms = 1\n");
    assert!(wrong.starts_with("etc/pygmy.toml:2: after_ms is 1"), "{wrong}");
}

#[test]
fn what_just_fits_together_is_valid() {
    let text = "[frontend]\nlease_ms = 240\n[catalog]\nraft_heartbeat_ms = 60\n\
                log_segment_bytes = 1048576\nmin_free_bytes = 2097152\n";
    assert!(load(&format!("{text}{SERVERS}"), &Settings::default()).is_ok());
    let flags = Settings::of(&[], &[("catalog.raft_heartbeat_ms", "61")]);
    let wrong = load(&format!("[frontend]\nlease_ms = 240\n{SERVERS}"), &flags).err().unwrap();
    assert!(
        wrong.starts_with("etc/pygmy.toml:2: lease_ms is 240; it must be at least 244"),
        "{wrong}"
    );
    let wrong = load(SERVERS, &Settings::of(&[], &[("frontend.lease_ms", "199")])).err().unwrap();
    assert!(wrong.starts_with("--set frontend.lease_ms: lease_ms is 199"), "{wrong}");
}

#[test]
fn servers_must_make_sense_together() {
    let second = "[[server]]\nname = \"one\"\nrole = \"order\"\nlisten = \"127.0.0.1:1\"\n";
    let wrong = error(&format!("{SERVERS}{second}"));
    assert!(wrong.starts_with("etc/pygmy.toml:8: name \"one\" is taken"), "{wrong}");
    assert!(wrong.contains("line 3"), "{wrong}");
    let second = "[[server]]\nname = \"two\"\nrole = \"order\"\nlisten = \"127.0.0.1:8081\"\n";
    let wrong = error(&format!("{SERVERS}{second}"));
    assert!(
        wrong.starts_with("etc/pygmy.toml:10: listen 127.0.0.1:8081 of two is taken by one"),
        "{wrong}"
    );
    let url = "http://127.0.0.1:8091/";
    let second = "[[server]]\nname = \"two\"\nrole = \"order\"\nlisten = \"127.0.0.1:1\"\nurl = ";
    let wrong = error(&format!("{SERVERS}{second}\"{url}\"\n"));
    let sentence = "etc/pygmy.toml:11: url of two: http://127.0.0.1:8091 is the URL of one; each";
    assert!(wrong.starts_with(sentence), "{wrong}");
    // Two machines with the same addresses, each called at its own URL.
    let machine = |name: &str, host: &str| {
        let text = SERVERS.replace("\"one\"", &format!("\"{name}\""));
        format!("{}url = \"http://{host}:8091\"\n", text.replace("127.0.0.1", "0.0.0.0"))
    };
    let two = |host| format!("{}{}", machine("one", "a"), machine("two", host));
    assert!(load(&two("b"), &Settings::default()).is_ok());
    assert!(error(&two("a")).contains("url of two: http://a:8091 is the URL of one"));
    let second = "[[server]]\nname = \"one-order\"\nrole = \"order\"\nlisten = \"127.0.0.1:1\"\n";
    for (text, line) in [(format!("{SERVERS}{second}"), 8), (format!("{second}{SERVERS}"), 7)] {
        let wrong = error(&text);
        let place = format!("etc/pygmy.toml:{line}: name \"one");
        assert!(wrong.starts_with(&place) && wrong.contains("its part one-order"), "{wrong}");
    }
    let wrong = error("[[server]]\nname = \"a\"\nrole = \"all\"\nlisten = \"127.0.0.1:1\"\n");
    assert!(wrong.starts_with("etc/pygmy.toml:1: public_listen is missing"), "{wrong}");
    let wrong = error("[[server]]\nname = \"a\"\nrole = \"order\"\nlisten = \"0.0.0.0:1\"\n");
    assert!(wrong.starts_with("etc/pygmy.toml:1: url is missing"), "{wrong}");
    let wrong = error("[[server]]\nname = \"../a\"\nrole = \"order\"\nlisten = \"127.0.0.1:1\"\n");
    assert!(wrong.starts_with("etc/pygmy.toml:2: name \"../a\""), "{wrong}");
    let wrong = error("[[server]]\nname = \"a\"\nrole = \"order\"\nlisten = \"127.0.0.1:1\"\n");
    assert!(wrong.contains("no server does the work of a frontend"), "{wrong}");
}

#[test]
fn flags_go_over_variables_over_the_file() {
    let text = format!("[cluster]\nheartbeat_ms = 100\n{SERVERS}");
    let key = "cluster.heartbeat_ms";
    let variables = [("PYGMY_HEARTBEAT_MS", "200"), ("PYGMY_BALANCER_PROBE_FAILURES", "5")];
    let in_file = load(&text, &Settings::default()).unwrap();
    assert_eq!(origin(&in_file, key), ("100".into(), "etc/pygmy.toml:2".into()));
    assert_eq!(origin(&in_file, "cluster.currency"), ("\"USD\"".into(), "default".into()));
    let over = load(&text, &Settings::of(&variables, &[])).unwrap();
    assert_eq!(origin(&over, key), ("200".into(), "PYGMY_HEARTBEAT_MS".into()));
    assert_eq!(over.document().balancer.probe_failures, 5);
    let over = load(&text, &Settings::of(&variables, &[(key, "300")])).unwrap();
    assert_eq!(origin(&over, key), ("300".into(), "--set cluster.heartbeat_ms".into()));
}

#[test]
fn a_bad_variable_or_flag_is_named() {
    let wrong = |variables, flags| {
        load(SERVERS, &Settings::of(variables, flags)).err().expect("this is wrong")
    };
    let error = wrong(&[("PYGMY_HEARTBEAT_MS", "soon")], &[]);
    assert!(error.starts_with("PYGMY_HEARTBEAT_MS: "), "{error}");
    let error = wrong(&[("PYGMY_HEARTBEAT_MS", "1")], &[]);
    assert!(error.starts_with("PYGMY_HEARTBEAT_MS: heartbeat_ms is 1"), "{error}");
    let error = wrong(&[], &[("cluster.heartbeat", "1")]);
    assert!(error.starts_with("--set cluster.heartbeat=1: unknown key"), "{error}");
    let error = wrong(&[], &[("clusters.heartbeat_ms", "1")]);
    assert!(error.contains("there is no table [clusters]"), "{error}");
}

#[test]
fn a_variable_that_sets_nothing_is_named() {
    let check = |name| Settings::of(&[(name, "1")], &[]).check_variables();
    let names = ["PYGMY_BALANCER_PROBE_FAILURE", "PYGMY_CLUSTER_CURRENCY", "PYGMY_SECRET"];
    for name in names {
        assert!(check(name).unwrap_err().to_string().starts_with(&format!("{name}: no setting")));
    }
    for name in ["PYGMY_CURRENCY", "PYGMY_SECRET_FILE", "PYGMY_LOG", "PYGMY_SERVER", "PYGMY_CONFIG"]
    {
        assert_eq!(check(name), Ok(()), "{name}");
    }
    assert_eq!(check("PYGMY_BALANCER_SERVICE_HOST"), Ok(()), "Kubernetes sets it");
}

#[test]
fn no_setting_is_taken_for_a_variable_of_kubernetes() {
    for key in flatten(&Document::default()).into_keys() {
        assert!(!key.contains("service_") && !key.contains("_port"), "{key}");
    }
}

#[test]
fn paths_are_relative_to_the_file_unless_a_variable_names_them() {
    let config = load(SERVERS, &Settings::default()).unwrap();
    assert_eq!(config.secret_file(), Path::new("etc/secret"));
    assert_eq!(config.data_dir(&config.servers()[0]), Path::new("etc/one"));
    let settings = Settings::of(&[("PYGMY_SECRET_FILE", "my/secret")], &[]);
    assert_eq!(load(SERVERS, &settings).unwrap().secret_file(), Path::new("my/secret"));
}

#[test]
fn parts_of_a_server_are_known_by_name_and_url() {
    let text = SERVERS.replace("role", "url = \"http://db.internal:9000/\"\nrole");
    let text = text.replace("127.0.0.1:8081", "0.0.0.0:80");
    let config = load(&text, &Settings::default()).unwrap();
    let catalog = config.servers()[0].part(Role::Catalog).unwrap();
    assert_eq!(catalog.name, "one-catalog");
    assert_eq!(catalog.url, "http://db.internal:9000/catalog");
    assert_eq!(config.public_urls(), ["http://db.internal:80"]);
}
