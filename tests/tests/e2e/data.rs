//! Data as people bring them: tables, text, pictures.

use std::{fs, io::Write, process::Command};

use convoy_tests::{Bench, until};
use serde_json::Value;

use crate::bench;

/// A number between 0 and 1 from a number: the same in every run of the tests.
fn noise(seed: u64) -> f64 {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) as f64 / u64::MAX as f64
}

/// Rows of four numbers and a text, and a class that follows from them but for some noise.
fn rows(count: u64) -> Vec<[String; 6]> {
    let row = |i: u64| {
        let x: Vec<f64> = (0..4).map(|k| (noise(i * 7 + k) - 0.5) * [2.0, 200.0, 0.02, 20.0][k as usize]).collect();
        let colour = ["red", "green", "blue"][(noise(i * 7 + 5) * 3.0) as usize % 3];
        let bonus = if colour == "red" { 1.5 } else { 0.0 };
        let score = 3.0 * x[0] - 0.02 * x[1] + 100.0 * x[2] + bonus - 0.5 + 1.5 * (noise(i * 7 + 6) - 0.5);
        let class = if score > 0.0 { "yes" } else { "no" };
        let number = |x: f64| format!("{x:.5}");
        [number(x[0]), number(x[1]), number(x[2]), number(x[3]), colour.into(), class.into()]
    };
    (0..count).map(row).collect()
}

fn write_table(bench: &Bench, name: &str, delimiter: &str, header: bool, count: u64) {
    let mut text = if header { ["a", "b", "c", "d", "colour", "class"].join(delimiter) + "\n" } else { String::new() };
    for row in rows(count) {
        text += &(row.join(delimiter) + "\n");
    }
    fs::write(bench.path().join(name), text).unwrap();
}

#[test]
fn tables_train_with_nothing_said_but_where_they_are() {
    let bench = bench();
    write_table(&bench, "bare.csv", ",", false, 3000);
    write_table(&bench, "semicolons.csv", ";", true, 3000);
    for table in ["bare.csv", "semicolons.csv"] {
        let ended = bench.succeed(&format!("--backend cpu --name {table} --data csv:{table}"));
        let summary = bench.summary(table);
        assert_eq!(summary["task"], "mlp");
        assert!(summary["eval"]["accuracy"].as_f64().unwrap() > 0.8, "{}", ended.stdout);
    }
}

/// A plain logistic regression is what a table's user would try first: its accuracy over five folds is the measure.
#[test]
fn a_table_reaches_the_accuracy_of_a_logistic_regression() {
    const SCRIPT: &str = "
import csv, sys
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
rows = list(csv.reader(open(sys.argv[1])))[1:]
columns = make_column_transformer((StandardScaler(), [0, 1, 2, 3]), (OneHotEncoder(), [4]))
model = make_pipeline(columns, LogisticRegression(max_iter=1000))
print(cross_val_score(model, [row[:5] for row in rows], [row[5] for row in rows], cv=5).mean())
";
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_sklearn = Command::new(&python).args(["-c", "import sklearn"]).output().is_ok_and(|o| o.status.success());
    if !has_sklearn && std::env::var_os("CI").is_none() {
        println!("SKIPPED: {python} has no scikit-learn (TEST_PYTHON names another Python)");
        return;
    }
    let bench = bench();
    write_table(&bench, "t.csv", ",", true, 6000);
    let output = Command::new(&python).args(["-c", SCRIPT]).arg(bench.path().join("t.csv")).output().unwrap();
    let logistic: f64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let summary = bench.train("r", "--data csv:t.csv --test-size 0.3");
    let ours = summary["eval"]["accuracy"].as_f64().unwrap();
    println!("logistic regression {logistic:.4}, ours {ours:.4} on 1800 rows");
    // Two standard errors of a share near 0.9 of 1800.
    assert!(ours >= logistic - 0.014, "ours {ours}, logistic regression {logistic}");
}

#[test]
fn a_number_is_predicted_in_its_own_unit() {
    let bench = bench();
    let rows: String = (0..1500)
        .map(|i| {
            let (x, y) = (noise(i) * 10.0, noise(i + 9000) * 4.0);
            format!("{x:.4},{y:.4},{:.4}\n", 500.0 + 30.0 * x - 20.0 * y + noise(i + 20_000))
        })
        .collect();
    fs::write(bench.path().join("t.csv"), rows).unwrap();
    let summary = bench.train("r", "--data csv:t.csv --task regression");
    let eval = &summary["eval"];
    assert_eq!(eval["accuracy"], Value::Null);
    assert!(eval["rmse"].as_f64().unwrap() < 10.0, "{eval}: the targets deviate by about 90");
    bench.succeed("eval r --predictions p.csv");
    let table = fs::read_to_string(bench.path().join("p.csv")).unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("index,target,prediction"));
    let squares = lines.map(|line| {
        let cells: Vec<f64> = line.split(',').map(|cell| cell.parse().unwrap()).collect();
        (cells[1] - cells[2]).powi(2)
    });
    let squares: Vec<f64> = squares.collect();
    let rmse = (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
    assert_eq!(squares.len(), 150);
    assert!((rmse - eval["rmse"].as_f64().unwrap()).abs() < 1e-3 * rmse, "{rmse} {eval}");
}

#[test]
fn text_is_learnt_and_written() {
    let bench = bench();
    fs::write(bench.path().join("t.txt"), "the quick brown fox jumps over the lazy dog.\n".repeat(400)).unwrap();
    let model = "--set model.layers=1 --set model.width=48 --set model.heads=2 --set model.context=24";
    let how = format!("--workers 2 --steps 120 --batch-size 16 --lr 0.01 --eval-every 0 {model}");
    let summary = bench.train("r", &format!("--data text:t.txt {how} --set model.positions=rotary"));
    let eval = &summary["eval"];
    assert!(eval["loss"].as_f64().unwrap() < 0.5, "{eval}");
    assert_eq!(eval["perplexity"].as_f64().unwrap(), eval["loss"].as_f64().unwrap().exp());
    let text = bench.succeed("generate r --prompt the --tokens 60 --temperature 0").stdout;
    assert!(text.starts_with("the") && text.contains("fox jumps over"), "{text}");
    let again = bench.succeed("generate r --prompt the --tokens 60 --temperature 1 --seed 5").stdout;
    assert_eq!(again, bench.succeed("generate r --prompt the --tokens 60 --temperature 1 --seed 5").stdout);
    bench.train("digits", &format!("--steps 1 {}", crate::SMALL));
    let refusal = bench.run("generate digits");
    assert_eq!(refusal.code, Some(2));
    assert!(refusal.stderr.contains("is no text model: its task is `mlp`"), "{}", refusal.stderr);
}

/// Four gigabytes of text, nearly all of it a hole in a sparse file: a worker holds a small part of it.
#[test]
fn a_huge_text_is_not_held_in_memory() {
    let bench = bench();
    let mut file = fs::File::create(bench.path().join("huge.txt")).unwrap();
    file.write_all(&b"something to read ".repeat(1000)).unwrap();
    file.set_len(4 << 30).unwrap();
    drop(file);
    let model = "--set model.layers=1 --set model.width=16 --set model.heads=2 --set model.context=32";
    let how = "--workers 2 --steps 100000 --batch-size 16 --eval-every 20 --eval-samples 64";
    let child = bench.command(&format!("--backend cpu --name r --data text:huge.txt {how} {model}")).spawn().unwrap();
    until("an evaluation is made", || bench.metrics("r").iter().any(|event| event["event"] == "eval"));
    let workers: Vec<_> = bench.processes().into_iter().filter(|(_, line)| line.contains(" worker --run")).collect();
    assert_eq!(workers.len(), 2);
    for (worker, _) in workers {
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        println!("worker {worker}: peak resident set {} MiB", kib / 1024);
        assert!(kib < 500 * 1024, "{peak}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(convoy_tests::finish(child).code, Some(75));
}

#[test]
fn data_are_looked_at_before_they_are_trained_on() {
    let bench = bench();
    write_table(&bench, "t.csv", ",", true, 500);
    let text = fs::read_to_string(bench.path().join("t.csv")).unwrap();
    let doubled: String =
        text.lines().map(|line| format!("{line}\n")).chain(text.lines().skip(1).map(|l| format!("{l}\n"))).collect();
    fs::write(bench.path().join("twice.csv"), doubled.replace("\n", ",7\n").replacen("class,7", "class,same", 1))
        .unwrap();
    let report = bench.succeed("data inspect csv:twice.csv --label class --json").stdout;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["train"]["rows"], &report["test"]["rows"]), (&900.into(), &100.into()));
    assert_eq!(report["constant"], serde_json::json!(["same"]));
    assert!(report["duplicates"].as_u64().unwrap() > 70, "{report}");
    let people = bench.succeed("data inspect csv:twice.csv --label class").stdout;
    assert!(people.contains("warning: the same in every row, so of no use: same"), "{people}");
    let ended = bench.succeed("--backend cpu --name r --data csv:twice.csv --label class --steps 3");
    assert!(ended.stderr.contains("are in the training part, too"), "{}", ended.stderr);
    assert_eq!(bench.json("r", "data.json")["duplicates"], report["duplicates"]);
    assert!(bench.succeed("data inspect digits").stdout.starts_with("digits: 20000 generated pictures"));
}

#[test]
fn changed_data_and_missing_models_are_not_passed_over() {
    let bench = bench();
    write_table(&bench, "t.csv", ",", true, 300);
    bench.train("r", "--data csv:t.csv --steps 5 --eval-every 0");
    fs::create_dir(bench.path().join("elsewhere")).unwrap();
    let mut elsewhere = bench.command("eval r --run-dir ../runs");
    let ended = convoy_tests::finish(elsewhere.current_dir(bench.path().join("elsewhere")).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "a run is found from anywhere: {}", ended.stderr);
    write_table(&bench, "t.csv", ",", true, 299);
    let ended = bench.run("eval r");
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("the data have changed since the run"), "{}", ended.stderr);
    let ended = bench.run("--backend cpu --name bad --steps 3 --optimizer sgd --lr 1e30 --task mlp --eval-every 0");
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    let ended = bench.run("eval bad");
    assert!(ended.stderr.contains("the run left none, its status is `diverged`"), "{}", ended.stderr);
    let ended = bench.run("eval r --weights best");
    assert!(ended.stderr.contains("was not trained with --keep-best"), "{}", ended.stderr);
}
