//! Bad input: one clear line, the right exit code, nothing left running.

use std::{fs, net::TcpListener};

use convoy_tests::Bench;

use crate::{SMALL, bench};

/// A command ends with a code and one line that says certain words.
fn refused(bench: &Bench, arguments: &str, code: i32, words: &str) {
    let ended = bench.run(arguments);
    assert_eq!(ended.code, Some(code), "{arguments}: {}", ended.stderr);
    assert!(ended.stderr.contains(words), "{arguments}: {}", ended.stderr);
    let is_one_line = ended.stderr.starts_with("error: ") && ended.stderr.lines().count() == 1;
    assert!(is_one_line, "{arguments}: {}", ended.stderr);
}

#[test]
fn bad_data_are_one_clear_line() {
    let bench = bench();
    fs::create_dir(bench.path().join("empty")).unwrap();
    fs::write(bench.path().join("short.csv"), "a,b,y\n1,2,0\n3,1\n").unwrap();
    fs::write(bench.path().join("gap.csv"), "a,b,y\n1,,0\n3,4,1\n").unwrap();
    fs::write(bench.path().join("numbers.csv"), "a,y\n1,0.5\n3,1.25\n2,0.75\n").unwrap();
    fs::write(bench.path().join("broken.parquet"), "PAR1 and nothing else").unwrap();
    fs::write(bench.path().join("short.txt"), "too short").unwrap();
    for class in ["pictures/cats", "pictures/dogs"] {
        fs::create_dir_all(bench.path().join(class)).unwrap();
        fs::write(bench.path().join(class).join("1.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
    }
    let cases = [
        ("--data csv:absent.csv", 2, "cannot read absent.csv"),
        ("--data csv:short.csv", 2, "short.csv: line 3: 2 cells, but the first row has 3"),
        ("--data csv:gap.csv", 2, "gap.csv: line 2: `b` is empty; fill it, or say --missing mean"),
        (
            "--data csv:numbers.csv",
            2,
            "column `y`: the label holds fractions, which are no classes; say --task regression",
        ),
        ("--data csv:gap.csv --label z", 2, "the columns are a, b, y"),
        ("--data parquet:broken.parquet", 2, "cannot read broken.parquet"),
        ("--data images:pictures", 2, "pictures/cats/1.png"),
        ("--data images:empty", 2, "holds 0 folders"),
        ("--data cifar10:empty", 2, "holds no data_batch_1.bin"),
        ("--data text:short.txt", 2, "its 9 tokens give 0 windows of 128"),
        ("--data text:short.txt --task cnn", 2, "its 9 tokens give 0 windows of 128"),
    ];
    cases.into_iter().for_each(|(arguments, code, words)| refused(&bench, arguments, code, words));
    bench.await_no_process();
}

#[test]
fn bad_input_is_one_clear_line() {
    let bench = bench();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    fs::create_dir(bench.path().join("empty")).unwrap();
    fs::create_dir(bench.path().join("short")).unwrap();
    fs::write(bench.path().join("short/t10k-images-idx3-ubyte"), [0, 0, 8, 3, 0, 0]).unwrap();
    fs::write(bench.path().join("short/t10k-labels-idx1-ubyte"), []).unwrap();
    fs::write(bench.path().join("typo.toml"), "seed = 1\nbatchsize = 3\n").unwrap();
    fs::write(bench.path().join("broken.toml"), "seed = 1\nworkers = [\n").unwrap();
    bench.train("there", &format!("--steps 1 {SMALL}"));
    let cases = [
        ("--wrokers 4", 2, "--workers"),
        ("--task cmn", 2, "did you mean `cnn`?"),
        ("--set optimizer.rl=1", 2, "did you mean `optimizer.lr`?"),
        ("--sync --mode async", 2, "--sync and --mode exclude each other: --sync waits for the slices of each step"),
        (
            "--async --ssp 3",
            2,
            "--async and --ssp exclude each other: --async never waits, --ssp waits when it is too far",
        ),
        ("--async --quorum 1", 2, "goes with mode sync, not with async: only a synchronous step waits for others"),
        ("--slow-worker 3", 2, "must be RANK|any:DELAY[@P], such as 3:50ms"),
        ("--workers 0", 2, "must be between 1 and 4096"),
        ("--servers 0", 2, "must be between 1 and 1024"),
        ("--workers 4 --batch-size 3", 2, "less than the 4 slices"),
        ("--workers many", 2, "must be `auto` or a whole number"),
        ("--data mnist:absent", 2, "cannot read absent"),
        ("--data mnist:empty", 2, "holds neither train-images-idx3-ubyte"),
        ("--data mnist:short", 2, "short/t10k-images-idx3-ubyte: at offset 6: the file ends"),
        ("--data minst:x", 2, "did you mean `mnist`?"),
        ("--task gpt", 2, "the task `gpt` needs text"),
        ("--task regression", 2, "the task `regression` needs a number to predict"),
        ("--task mlp --set model.layers=2", 2, "`model.layers` has no meaning for the task `mlp`"),
        ("--optimizer adamm", 2, "did you mean `adam`?"),
        ("--schedule cosin", 2, "did you mean `cosine`?"),
        ("--precision f8", 2, "there is f32, bf16, f16"),
        ("--clip-norm 1 --clip-value 1", 2, "`optimizer.clip_norm` and `optimizer.clip_value` exclude each other"),
        ("--config typo.toml", 2, "did you mean `batch_size`?"),
        ("--config broken.toml", 2, "broken.toml: line "),
        ("--config absent.toml", 2, "cannot read --config absent.toml"),
        ("--backend cpu --name there", 2, "exists; choose another --name"),
        ("--backend cpu --run-dir /proc/none", 3, "cannot write /proc/none"),
        ("--listen 10.0.0.1:1", 2, "is off loopback, where calls need certificates and a token"),
        ("eval absent", 2, "there is no run absent"),
    ];
    let busy = format!("--backend cpu --listen 127.0.0.1:{port}");
    let all = cases.into_iter().chain([(busy.as_str(), 3, "choose another --listen")]);
    all.for_each(|(arguments, code, words)| refused(&bench, arguments, code, words));
    bench.await_no_process();
}

#[test]
fn variables_of_the_environment_count_below_flags() {
    let bench = bench();
    let mut command = bench.command("--backend cpu --dry-run --workers 3");
    command.env("CONVOY_WORKERS", "2").env("CONVOY_OPTIMIZER_LR", "0.125");
    let plan = convoy_tests::finish(command.spawn().unwrap());
    assert!(plan.stdout.contains("workers = 3\n") && plan.stdout.contains("lr = 0.125\n"), "{}", plan.stdout);
    let mut command = bench.command("--backend cpu --dry-run");
    let refusal = convoy_tests::finish(command.env("CONVOY_WROKERS", "2").spawn().unwrap());
    assert_eq!(refusal.code, Some(2));
    assert!(refusal.stderr.contains("did you mean `CONVOY_WORKERS`?"), "{}", refusal.stderr);
    assert!(!bench.path().join("runs").exists(), "a dry run leaves nothing");
}

#[test]
fn broken_drivers_are_an_answer_and_not_a_crash() {
    let bench = bench();
    let libraries = bench.path().join("lib");
    fs::create_dir(&libraries).unwrap();
    for library in ["libcuda.so", "libcuda.so.1", "libvulkan.so.1"] {
        fs::write(libraries.join(library), "this is no library").unwrap();
    }
    let auto = |command: &mut std::process::Command| convoy_tests::finish(command.spawn().unwrap());
    let broken = auto(bench.command("--dry-run").env("LD_LIBRARY_PATH", &libraries));
    assert_eq!(broken.code, Some(0), "{}", broken.stderr);
    assert!(broken.stdout.contains("# passed over cuda: ") && broken.stdout.contains("# passed over wgpu: "));
    assert!(broken.stdout.contains("# worker 0: cpu ("), "{}", broken.stdout);
    let none =
        auto(bench.command("--dry-run").env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null"));
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    let refusal =
        auto(bench.command("--backend wgpu").env("VK_DRIVER_FILES", "/dev/null").env("VK_ICD_FILENAMES", "/dev/null"));
    assert_eq!(refusal.code, Some(3), "{}", refusal.stderr);
    assert!(refusal.stderr.starts_with("error: --backend wgpu: "), "{}", refusal.stderr);
}
