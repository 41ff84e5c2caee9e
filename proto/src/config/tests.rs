//! Layers, precedence, refusals, and that the keys and the fields are the same set.

use std::collections::BTreeSet;

use super::{keys::KEYS, layers::Layers, *};

fn resolve(text: &str) -> Result<Config, ConfigError> {
    Layers::new().toml("test.toml", text)?.raw()?.resolve(1)
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

#[test]
fn higher_layers_win_key_by_key() {
    let config = Layers::new()
        .toml("a.toml", "workers = 2\nsteps = 10\n[optimizer]\nname = \"momentum\"\nlr = 1")
        .and_then(|layers| layers.environment([("CONVOY_WORKERS".into(), "3".into()), ("HOME".into(), "/".into())]))
        .and_then(|layers| layers.texts("--set", &pairs(&[("optimizer.lr", "0.25"), ("name", "17")])))
        .and_then(|layers| layers.texts("flags", &pairs(&[("workers", "4"), ("epochs", "2")])))
        .and_then(|layers| layers.raw()?.resolve(1))
        .unwrap();
    assert_eq!((config.workers, config.slices, config.length), (4, 4, Length::Epochs(2)));
    assert_eq!((config.optimizer.lr, config.optimizer.rule), (0.25, Rule::Momentum { momentum: 0.9 }));
    assert_eq!(config.name, "17");
}

#[test]
fn a_resolved_configuration_reads_back_the_same() {
    for text in ["", "steps = 7\nworkers = 3\n[optimizer]\nname = \"nesterov\"\nclip_norm = 0.5\n[model]\nhidden = [8]"]
    {
        let config = resolve(text).unwrap();
        assert_eq!(Config::from_toml("written", &config.to_toml()), Ok(config));
    }
}

#[test]
fn keys_and_fields_are_one_set() {
    let mut written = BTreeSet::new();
    for text in ["steps = 1\n[optimizer]\nname = \"momentum\"", ""] {
        let table: toml::Table = resolve(text).unwrap().to_toml().parse().unwrap();
        for (key, value) in table {
            match value {
                toml::Value::Table(section) => written.extend(section.keys().map(|k| format!("{key}.{k}"))),
                _ => drop(written.insert(key)),
            }
        }
    }
    assert_eq!(written, KEYS.iter().map(|key| key.path.to_string()).collect());
}

#[test]
fn every_refusal_says_what_and_where() {
    let golden = [
        ("wrokers = 2", "test.toml: there is no key `wrokers`; did you mean `workers`?"),
        ("[optimizer]\nlearning = 2", "test.toml: there is no key `optimizer.learning`"),
        ("workers = 'two'", "test.toml: `workers` is \"two\", but must be `auto` or a whole number, not negative"),
        ("workers = 0", "`workers` = 0: must be between 1 and 4096"),
        ("servers = 0", "`servers` = 0: must be between 1 and 1024"),
        ("steps = 1\nepochs = 1", "test.toml: `steps` and `epochs` exclude each other; give one of them"),
        ("batch_size = 3\nworkers = 4", "`batch_size` = 3: is less than the 4 slices that a batch is cut into"),
        ("workers = 4\nslices = 3", "`slices` = 3: is less than the 4 workers, so some would have nothing to do"),
        ("mode = 'synk'", "`mode` = \"synk\": did you mean `sync`? there is sync"),
        ("seed = -1", "test.toml: `seed` is -1, but must be a whole number, not negative"),
        ("workers = ", "test.toml: line 1: string values must be quoted, expected literal string"),
        (
            "listen = '0.0.0.0:80'",
            "`listen` = \"0.0.0.0:80\": only loopback is served without TLS, and this version has no TLS",
        ),
        (
            "name = '../x'",
            "`name` = \"../x\": must be made of letters, digits, `-`, `_` and `.`, not begin with `.`, and not be `latest`",
        ),
        ("[optimizer]\nname = 'sgd'\nbeta1 = 0.5", "`optimizer.beta1` = 0.5: has no meaning for the optimizer `sgd`"),
        ("[optimizer]\nlr = 0", "`optimizer.lr` = 0: must be above 0"),
        (
            "[optimizer]\nbeta2 = 0.99999999",
            "`optimizer.beta2` = 0.99999999: is 1 as a 32-bit number, but must be at least 0 and below 1",
        ),
        (
            "[timeouts]\nlease_ms = 1500",
            "`timeouts.lease_ms` = 1500: must be at least twice timeouts.heartbeat_ms, which is 1000",
        ),
    ];
    for (text, message) in golden {
        let error = resolve(text).unwrap_err().to_string();
        if text.ends_with("= ") {
            assert!(error.starts_with("test.toml: line 1: "), "{error}");
        } else {
            let at_least = message.strip_suffix("`optimizer.learning`").map_or(message, |_| message);
            assert!(error.starts_with(at_least), "{text}: {error}");
        }
    }
    let unknown = Layers::new().environment([("CONVOY_WORKER".into(), "1".into())]).unwrap_err();
    assert_eq!(unknown.to_string(), "environment: there is no key `CONVOY_WORKER`; did you mean `CONVOY_WORKERS`?");
}

#[test]
fn the_fingerprint_follows_the_configuration() {
    assert_ne!(resolve("seed = 1").unwrap().fingerprint(), resolve("seed = 2").unwrap().fingerprint());
}
