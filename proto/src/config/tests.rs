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
    let mut texts = vec![
        String::new(),
        "steps = 7\nworkers = 3\n[optimizer]\nname = \"nesterov\"\nclip_norm = 0.5\n[model]\nhidden = [8]".into(),
        "grad_accum = 4\nprecision = \"f16\"\nkeep_best = true\npatience = 3\n[input]\ndelimiter = \"tab\"\ndrop = [\"a\"]".into(),
        "[optimizer]\nno_decay = [\"*.bias\"]\ngroups = [{ pattern = \"head*\", lr_factor = 0.1, frozen = true }]".into(),
    ];
    texts.extend(optimizer::rule_names().map(|name| format!("[optimizer]\nname = \"{name}\"")));
    texts.extend(schedule::NAMES.map(|name| format!("[schedule]\nname = \"{name}\"")));
    for text in &texts {
        let config = resolve(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(Config::from_toml("written", &config.to_toml()), Ok(config));
    }
}

#[test]
fn keys_and_fields_are_one_set() {
    let mut written = BTreeSet::new();
    let input = "[input]\nlabel = \"y\"\ndelimiter = \";\"\ntokenizer = \"t\"\nimage_size = 32";
    let model = "[model]\nstem = \"small\"\nlayers = 1\nwidth = 8\nheads = 2\ncontext = 4\ndropout = 0.1\npositions = \"rotary\"";
    let schedule = "[schedule]\nname = \"step\"\nwarmup = 2";
    let texts = [
        format!("steps = 1\n[optimizer]\nname = \"momentum\"\n{input}\n{model}\n{schedule}"),
        "[optimizer]\nname = \"rmsprop\"\nclip_value = 1\n[schedule]\nname = \"linear\"".into(),
        String::new(),
        "workers = 2\nslow_worker = \"1:5ms\"\ncerts = \"c\"\nadvertise_addr = \"a\"\n[consistency]\nquorum = 1".into(),
        "mode = \"ssp\"\ninsecure = true".into(),
        "mode = \"local\"".into(),
        "[watch]\ndashboard = \"on\"\ndashboard_token = \"t\"\ntrace = \"t\"\notlp = \"http://h:1\"".into(),
    ];
    // Written as the quorum that it makes.
    written.insert("consistency.backup_workers".to_string());
    for text in &texts {
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
        ("mode = 'synk'", "`mode` = \"synk\": did you mean `sync`? there is sync"),
        ("transport = 'tcp'", "`transport` = \"tcp\": there is auto, shm, grpc"),
        ("codec = 'topk:2'", "`codec` = \"topk:2\": must be f32, bf16, f16, int8 or topk:SHARE, such as topk:0.01"),
        ("codec = 'int8'\nreplicas = 1", "`replicas` = 1: excludes `codec` = \"int8\""),
        ("seed = -1", "test.toml: `seed` is -1, but must be a whole number, not negative"),
        ("workers = ", "test.toml: line 1: string values must be quoted, expected literal string"),
        (
            "listen = '0.0.0.0:80'",
            "`listen` = \"0.0.0.0:80\": is off loopback, where calls need certificates and a token: say --certs DIR \
             (`launcher certs DIR` makes them), or --insecure to let anybody call who reaches it",
        ),
        (
            "name = '../x'",
            "`name` = \"../x\": must be made of letters, digits, `-`, `_` and `.`, not begin with `.`, and not be `latest`",
        ),
        ("[optimizer]\nname = 'sgd'\nbeta1 = 0.5", "`optimizer.beta1` = 0.5: has no meaning for the optimizer `sgd`"),
        ("[optimizer]\nlr = 0", "`optimizer.lr` = 0: must be above 0"),
        ("[optimizer]\nname = 'lamp'", "`optimizer.name` = \"lamp\": did you mean `lamb`? there is sgd, momentum"),
        (
            "[optimizer]\nclip_norm = 1\nclip_value = 1",
            "test.toml: `optimizer.clip_norm` and `optimizer.clip_value` exclude each other",
        ),
        ("[optimizer]\nno_decay = ['a[']", "`optimizer.no_decay` = \"a[\": "),
        ("[optimizer]\ngroups = [{ pattern = 'a', lr = 1 }]", "configuration: unknown field `lr`"),
        ("[schedule]\nname = 'cosin'", "`schedule.name` = \"cosin\": did you mean `cosine`?"),
        ("[schedule]\nevery = 3", "`schedule.every` = 3: has no meaning for `constant`"),
        ("precision = 'f8'", "`precision` = \"f8\": "),
        ("precision = 'f16'\nloss_scale = 3", "`loss_scale` = 3: must be a power of two"),
        ("loss_scale = 4", "`loss_scale` = 4: has no meaning but with `precision` = \"f16\""),
        ("patience = 2\neval_every = 0", "`patience` = 2: needs evaluations on the way"),
        ("keep_best = 1", "test.toml: `keep_best` is 1, but must be true or false"),
        ("[input]\ntest_size = 1", "`input.test_size` = 1: must be above 0 and below 1"),
        ("[input]\ndelimiter = 'ab'", "`input.delimiter` = \"ab\": must be one character"),
        ("[model]\nblocks = [1, 1]\nchannels = [8]", "`model.blocks` = [1, 1]: must have as many entries"),
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
        // Where a value is from comes behind it.
        let error = resolve(text).unwrap_err().to_string().replace(" (test.toml)", "");
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

#[test]
fn a_tensor_has_the_settings_of_the_first_group_that_fits() {
    let text = "[optimizer]\nweight_decay = 0.1\nno_decay = ['*.bias']\ngroups = [{ pattern = 'head.*', lr_factor = 0.5 }, \
                { pattern = 'head.weight', frozen = true }, { pattern = 'first.*', weight_decay = 0.2 }]";
    let optimizer = resolve(text).unwrap().optimizer;
    let settings = |name: &str| {
        let settings = optimizer.for_tensor(name);
        (settings.lr_factor, settings.weight_decay, settings.frozen)
    };
    assert_eq!(settings("head.weight"), (0.5, 0.1, false));
    assert_eq!(settings("head.bias"), (0.5, 0.0, false));
    assert_eq!(settings("first.bias"), (1.0, 0.2, false));
    assert_eq!(settings("second.weight"), (1.0, 0.1, false));
    assert_eq!(optimizer.check_patterns(["head.bias", "first.x", "head.weight"].into_iter()), Ok(()));
    let error = optimizer.check_patterns(["head.bias"].into_iter()).unwrap_err().to_string();
    assert!(error.starts_with("`optimizer.groups` = \"head.weight\": fits no tensor; there are head.bias"), "{error}");
}

#[test]
fn accumulation_is_more_slices_of_more_samples() {
    let config = resolve("workers = 2\nbatch_size = 64\ngrad_accum = 4").unwrap();
    assert_eq!((config.slices, config.batch_size), (8, 256));
}

#[test]
fn lists_are_written_with_commas_on_a_command_line() {
    let layers = Layers::new().texts("flags", &pairs(&[("input.drop", "id, name"), ("model.hidden", "[4]")])).unwrap();
    let config = layers.raw().unwrap().resolve(1).unwrap();
    assert_eq!((config.input.drop, config.model.hidden), (vec!["id".to_string(), "name".into()], vec![4]));
}

#[test]
fn another_rule_starts_its_keys_anew_and_another_clip_takes_over() {
    let file =
        "[optimizer]\nname = 'momentum'\nmomentum = 0.5\nclip_norm = 2\n[schedule]\nname = 'cosine'\nmin_factor = 0.5";
    let flags = [("optimizer.name", "adam"), ("schedule.name", "constant"), ("optimizer.clip_value", "3")];
    let layers = Layers::new().toml("file", file).and_then(|layers| layers.texts("flags", &pairs(&flags)));
    let config = layers.unwrap().raw().unwrap().resolve(1).unwrap();
    assert_eq!((config.optimizer.rule.name(), config.schedule.name()), ("adam", "constant"));
    assert_eq!(config.optimizer.clip, Clip::Value(3.0));
    let same = Layers::new()
        .toml("file", file)
        .and_then(|layers| layers.texts("flags", &pairs(&[("optimizer.name", "momentum")])));
    assert_eq!(same.unwrap().raw().unwrap().resolve(1).unwrap().optimizer.rule, Rule::Momentum { momentum: 0.5 });
}

#[test]
fn a_refusal_says_where_a_value_is_from() {
    let refused = |layers: Layers| layers.raw().unwrap().resolve(1).unwrap_err().to_string();
    let zero = |key: &str| [(key.to_string(), "0".to_string())];
    assert_eq!(
        refused(Layers::new().environment(zero("CONVOY_BATCH_SIZE")).unwrap()),
        "`batch_size` = 0 (environment variable CONVOY_BATCH_SIZE): must be between 1 and 16777216"
    );
    let above = Layers::new().toml("a.toml", "batch_size = 0").unwrap().texts("command line", &zero("batch_size"));
    assert_eq!(refused(above.unwrap()), "`batch_size` = 0: must be between 1 and 16777216");
}
