//! What a run leaves behind, and that it is true.

use std::{collections::BTreeSet, fs, path::Path};

use convoy_tests::recomputed_sha256;
use serde_json::Value;

use crate::{SMALL, bench};

#[test]
fn a_run_leaves_what_it_promises() {
    let bench = bench();
    let ended = bench.succeed(&format!("--workers 4 --sync --backend cpu --steps 20 --name r {SMALL} --eval-every 8"));
    let summary = bench.summary("r");
    assert_eq!((summary["status"].as_str(), summary["exit_code"].as_u64()), (Some("done"), Some(0)));
    let parameters = summary["parameters"].as_u64().unwrap();
    let workers = summary["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 4);
    for (rank, worker) in workers.iter().enumerate() {
        assert_eq!(worker["rank"].as_u64(), Some(rank as u64));
        assert_eq!(worker["samples"].as_u64(), Some(20 * 32));
        assert!(worker["bytes_pushed"].as_u64() >= Some(4 * parameters * 20));
    }
    let run = bench.run_dir("r");
    assert_eq!(summary["params_sha256"], recomputed_sha256(&run));
    assert_eq!(fs::read_link(bench.path().join("runs/latest")).unwrap(), Path::new("r"));
    for file in ["config.toml", "data.json", "manifest.json", "metrics.jsonl", "logs/server-0.log", "logs/worker-3.log"]
    {
        assert!(fs::metadata(run.join(file)).unwrap().len() > 0, "{file}");
    }
    let metrics = bench.metrics("r");
    let of = |kind: &str| {
        metrics.iter().filter(|event| event["event"] == kind).map(|e| e["step"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of("step"), (1..=20).collect::<Vec<_>>());
    assert_eq!(of("eval"), [8, 16, 20]);
    assert!(ended.stdout.starts_with("done: 20 steps  loss "), "{}", ended.stdout);
    bench.await_no_process();
}

#[test]
fn eval_scores_the_model_again_and_writes_predictions() {
    let bench = bench();
    let summary = bench.train("r", &format!("--workers 2 --slices 4 --steps 15 {SMALL}"));
    let ended = bench.succeed("eval latest --json --predictions p.csv");
    let score: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(score["accuracy"], summary["eval"]["accuracy"]);
    assert_eq!(score["loss"], summary["eval"]["loss"]);
    assert_eq!(score["params_sha256"], summary["params_sha256"]);
    let table = fs::read_to_string(bench.path().join("p.csv")).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("index,label,prediction,probability,correct"));
    let correct = lines.clone().filter(|line| line.ends_with(",true")).count() as f64;
    assert_eq!(lines.count(), 4000);
    assert_eq!(score["accuracy"].as_f64(), Some(correct / 4000.0));
}

#[test]
fn the_configuration_of_a_run_repeats_it() {
    let bench = bench();
    let first = bench.train("a", &format!("--workers 2 --steps 3 --lr 0.003 {SMALL}"));
    fs::copy(bench.run_dir("a").join("config.toml"), bench.path().join("again.toml")).unwrap();
    let second = bench.train("b", "--config again.toml");
    assert_eq!(first["params_sha256"], second["params_sha256"]);
}

/// The fields of a JSON object and of the schema that describes it are the same, and so are their types.
fn conforms(value: &Value, schema: &Value, at: &str) {
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = |choice: &&Value| type_of(value) == choice["type"];
        let choice = choices.iter().find(fits).unwrap_or_else(|| panic!("{at}: {value} fits no choice"));
        return conforms(value, choice, at);
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let mut kind = type_of(value);
    if kind == "integer" && !types.contains(&kind.into()) {
        kind = "number";
    }
    assert!(types.contains(&kind.into()), "{at}: {value} is {kind}, not {types:?}");
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at}: {value} is none of {words:?}");
    }
    match value {
        Value::Object(fields) if schema["additionalProperties"].is_object() => {
            let each = |(name, value): (&String, &Value)| {
                conforms(value, &schema["additionalProperties"], &format!("{at}.{name}"));
            };
            fields.iter().for_each(each);
        }
        Value::Object(fields) => {
            let described = schema["properties"].as_object().unwrap_or_else(|| panic!("{at}: no properties"));
            let names = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(names(fields), names(described), "{at}");
            fields.iter().for_each(|(name, value)| conforms(value, &described[name], &format!("{at}.{name}")));
        }
        Value::Array(items) => items.iter().for_each(|item| conforms(item, &schema["items"], &format!("{at}[]"))),
        _ => {}
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[test]
fn summaries_are_as_the_schema_says() {
    let schema = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/summary.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&schema).unwrap();
    let bench = bench();
    conforms(&bench.train("good", &format!("--steps 2 {SMALL} --ema 0.9 --keep-best")), &schema, "summary");
    let faults = "--workers 2 --min-workers 1 --chaos kill-worker@2,kill-server@4 --steps 12 --slow-worker any:5ms";
    let struck = bench.train("struck", &format!("{faults} {SMALL} --set timeouts.restart_ms=10"));
    assert_eq!(struck["recoveries"].as_object().unwrap().len(), 2);
    conforms(&struck, &schema, "summary");
    let ended = bench.run(&format!("--backend cpu --name bad --steps 40 --optimizer sgd --lr 1e30 {SMALL}"));
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    let summary = bench.summary("bad");
    assert_eq!(summary["status"], "diverged");
    conforms(&summary, &schema, "summary");
}

#[test]
fn runs_are_listed_shown_compared_and_heard() {
    let bench = bench();
    bench.train("a", &format!("--workers 2 --steps 6 --lr 0.25 {SMALL}"));
    bench.train("b", &format!("--workers 2 --steps 8 --lr 0.5 {SMALL}"));
    let listed: Value = serde_json::from_str(&bench.succeed("list --json").stdout).unwrap();
    let row = |at: usize| (listed[at]["name"].as_str(), listed[at]["status"].as_str(), listed[at]["steps"].as_u64());
    assert_eq!([row(0), row(1)], [(Some("a"), Some("done"), Some(6)), (Some("b"), Some("done"), Some(8))]);
    assert_eq!(bench.succeed("list").stdout.lines().count(), 3);
    let shown = bench.succeed("show a").stdout;
    assert!(shown.contains("runs/a: done, exit code 0") && shown.contains("joined  member worker 1"), "{shown}");
    let compared = bench.succeed("compare a b --plot c.svg").stdout;
    let line =
        |key: &str| compared.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!((line("key"), line("optimizer.lr")), (vec!["key", "a", "b"], vec!["optimizer.lr", "0.25", "0.5"]));
    assert!(!compared.contains("seed") && fs::read_to_string(bench.path().join("c.svg")).unwrap().contains("</svg>"));
    let heard = bench.succeed("logs a --rank 1").stdout;
    assert!(heard.lines().all(|line| line.starts_with("worker-1 | ")) && heard.contains("computes on cpu"), "{heard}");
    let refused = bench.run("logs a --rank 7");
    assert!(refused.code == Some(2) && refused.stderr.contains("no process of rank 7"), "{}", refused.stderr);
}

#[test]
fn a_run_whose_launcher_was_killed_tells_what_happened() {
    let bench = bench();
    let arguments = format!("--backend cpu --workers 2 --steps 1000000 --name k {SMALL}");
    let mut child = bench.command(&arguments).spawn().unwrap();
    bench.await_steps("k", 5);
    assert!(bench.succeed("show k").stdout.contains("runs/k: running, step "));
    child.kill().unwrap();
    child.wait().unwrap();
    // Its children end by themselves.
    bench.await_no_process();
    let shown = bench.succeed("show").stdout;
    assert!(shown.contains("lost after step ") && shown.contains("`launcher resume k`"), "{shown}");
    let ended = bench.succeed("logs k --follow");
    assert!(ended.stdout.contains("server-0 | "), "{}", ended.stdout);
}
