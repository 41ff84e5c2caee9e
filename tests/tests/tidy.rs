//! The house rules that a machine can check. Numbers go down, never up.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why it skips")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file, its unit tests left out.
const FILE_LINES: usize = 412;
/// Lines of a function.
const FUNCTION_LINES: usize = 70;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every Rust file of the workspace: its path below the root, and its text.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    for folder in ["proto", "server", "worker", "launcher", "tests"] {
        walk(&root.join(folder), &mut found);
    }
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        (name, fs::read_to_string(&path).unwrap())
    };
    found.into_iter().map(read).collect()
}

/// The part of a file before its unit tests.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

#[test]
fn every_module_says_what_it_is() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} does not open with //!");
    }
}

#[test]
fn files_and_functions_are_short() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let lines: Vec<&str> = product(&text).lines().collect();
        if lines.len() > FILE_LINES {
            faults.push(format!("{name} has {} lines", lines.len()));
        }
        // A formatted function ends at the first closing brace with the indentation of its head.
        for (start, line) in lines.iter().enumerate() {
            let head = line.trim_start();
            let is_head = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "pub(super) fn "];
            if !is_head.iter().any(|word| head.starts_with(word)) || line.ends_with(['}', ';']) {
                continue;
            }
            let indent = &line[..line.len() - head.len()];
            let end = lines[start..].iter().position(|line| *line == format!("{indent}}}"));
            if end.is_some_and(|length| length > FUNCTION_LINES) {
                faults.push(format!("{name}:{} has {} lines: {head}", start + 1, end.unwrap_or_default()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn cores_are_pure() {
    let cores = [
        "server/src/core/",
        "launcher/src/coordinator/commits.rs",
        "launcher/src/coordinator/core/",
        "launcher/src/coordinator/dealer.rs",
        "launcher/src/coordinator/decision.rs",
        "launcher/src/coordinator/engine.rs",
        "launcher/src/coordinator/evaluation.rs",
        "launcher/src/coordinator/history.rs",
        "launcher/src/coordinator/handshake.rs",
        "launcher/src/coordinator/saves.rs",
        "launcher/src/coordinator/deadlines.rs",
        "launcher/src/coordinator/stragglers.rs",
        "launcher/src/coordinator/durations.rs",
        "launcher/src/watch/curve.rs",
        "launcher/src/watch/exposition.rs",
        "launcher/src/watch/live.rs",
        "launcher/src/watch/rates.rs",
        "launcher/src/watch/story.rs",
        "launcher/src/watch/terminal/screen.rs",
        "launcher/src/train/restarts.rs",
        "launcher/src/coordinator/nodes.rs",
        "launcher/src/train/review.rs",
        "launcher/src/plan.rs",
        "launcher/src/links.rs",
        "launcher/src/rendezvous/asked.rs",
        "launcher/src/rendezvous/claims.rs",
        "launcher/src/rendezvous/slurm.rs",
        "launcher/src/remote/hostfile.rs",
        "launcher/src/emit/slurm.rs",
        "launcher/src/emit/kubernetes.rs",
        "launcher/src/emit/compose.rs",
        "worker/src/local.rs",
        "worker/src/step.rs",
    ];
    let pure_proto = |name: &str| {
        let shells = ["transport/", "shared/", "process.rs", "vitals.rs", "trace.rs", "convert", "lib.rs", "build.rs"];
        name.starts_with("proto/src/") && !shells.iter().any(|shell| name["proto/src/".len()..].starts_with(shell))
    };
    let banned = [
        "tokio",
        "tonic",
        "std::env::",
        "std::fs",
        "TcpStream",
        "TcpListener",
        "SystemTime",
        "rand::rng",
        "println!",
        "std::thread::sleep",
    ];
    for core in cores {
        assert!(root().join(core).exists(), "{core} is not there any more");
    }
    for (name, text) in sources() {
        if !cores.iter().any(|core| name.starts_with(core)) && !pure_proto(&name) {
            continue;
        }
        for (number, line) in product(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let word = banned.iter().find(|word| code.contains(**word));
            assert!(word.is_none(), "{name}:{}: a core does not use {}", number + 1, word.unwrap_or(&""));
        }
    }
}

#[test]
fn only_the_worker_knows_burn_and_only_one_place_reads_variables() {
    for (name, text) in sources() {
        let product = product(&text);
        if !name.starts_with("worker/") && !name.starts_with("tests/") {
            assert!(!product.contains("use burn") && !product.contains("burn::"), "{name} knows burn");
        }
        // Configuration is read in one place; a token, which no configuration may hold, in another.
        let readers = ["launcher/src/settings.rs", "proto/src/process.rs", "proto/build.rs"];
        if !name.starts_with("tests/") && !readers.contains(&name.as_str()) {
            assert!(!product.contains("env::var"), "{name} reads the environment");
        }
    }
}

#[test]
fn nothing_is_left_open() {
    for (name, text) in sources() {
        for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimple", "mented!"), concat!("#[ig", "nore")]
        {
            assert!(!text.contains(word), "{name} has {word}");
        }
    }
}

#[test]
fn every_decision_is_in_the_index() {
    let adr = root().join("docs/adr");
    let index = fs::read_to_string(adr.join("README.md")).unwrap();
    for entry in fs::read_dir(adr).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(name == "README.md" || index.contains(&name), "docs/adr/README.md does not list {name}");
    }
}

#[test]
fn every_configuration_that_ships_is_valid() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("configs")).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            continue;
        }
        let name = path.display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let raw = convoy_proto::config::layers::Layers::new().toml(&name, &text).and_then(|layers| layers.raw());
        let config = raw.and_then(|raw| raw.resolve(1)).unwrap_or_else(|error| panic!("{error}"));
        let tasks = convoy_worker::task::TASKS;
        convoy_worker::task::find(tasks, &config.task).unwrap_or_else(|error| panic!("{name}: {error}"));
        seen += 1;
    }
    assert!(seen > 0, "configs/ is empty");
}
