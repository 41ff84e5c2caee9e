//! `launcher verify`: recomputes from a run's ledger which samples its commits used, and fails unless each was used just
//! as often as the order of the data says.

use std::{collections::BTreeMap, path::Path};

use convoy_proto::{
    clock::Clock,
    config::{Config, Mode, Quorum},
    ids::{SliceId, Step},
    order::DataOrder,
    process,
};
use convoy_server::accounts::{self, LEDGER, Line};
use convoy_worker::{
    data,
    step::{horizon, order_of},
    task::{self, TaskEntry},
};
use serde_json::json;

use crate::{
    args::{Places, VerifyArgs},
    cli::say,
    finished, model_file,
    outcome::Failure,
    run_dir,
};

/// Problems that are told of; the rest is counted.
const TOLD: usize = 5;

/// What a ledger says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Account {
    /// What the commits that count used: `(step, slice)`, and how often.
    uses: BTreeMap<(u64, u32), u32>,
    commits: u64,
    /// The first of them: that of another run, if it began with a checkpoint.
    from: u64,
    /// Commits that a roll-back undid.
    undone: u64,
    eras: u64,
    /// Lines that make no sense: torn when their writer died.
    torn: u64,
}

/// What is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    steps: u64,
    samples: u64,
    epochs: u64,
    dropped_slices: u64,
    problems: Vec<String>,
}

/// Verifies a run.
///
/// # Errors
/// There is no such run, its files cannot be read, or a sample was used too often or not at all.
pub fn verify(args: &VerifyArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    let path = run_dir::find(places.root(), places.meant(&args.run)?)?;
    let config = process::load_config(&path)?;
    let cannot = |file: &Path| {
        let file = file.display().to_string();
        move |problem: std::io::Error| Failure::Usage(format!("cannot read {file}: {problem}"))
    };
    let files = accounts::files(&path).map_err(cannot(&path))?;
    if files.is_empty() {
        let file = path.join(LEDGER);
        return Err(Failure::Usage(format!("there is no {}: nothing tells what was used", file.display())));
    }
    let texts: Result<Vec<_>, _> =
        files.iter().map(|file| std::fs::read_to_string(file).map_err(cannot(file))).collect();
    let entry = task::find(tasks, &config.task)?;
    let data = data::open(&config, entry.wanted)?;
    finished::check_data(&path, &*data)?;
    let train = data.info().train;
    let account =
        read(&texts?).map_err(|problem| Failure::Failed(format!("the ledger of {}: {problem}", path.display())))?;
    let clock = Clock::new(&config, horizon(&config, train).steps);
    let mut verdict = check(&config, (order_of(&config, train), clock), &account);
    verdict.problems.extend(check_model(&path));
    verdict.problems.extend(check_summary(&path, &verdict, account.from));
    tell(args, &verdict, &account)
}

/// A ledger that tells of fewer steps than were made says nothing of the rest.
fn check_summary(run: &Path, verdict: &Verdict, from: u64) -> Option<String> {
    let text = std::fs::read_to_string(run.join("summary.json")).ok()?;
    let summary: serde_json::Value = serde_json::from_str(&text).ok()?;
    // What began with another run's checkpoint has steps that the ledger does not tell of.
    let made = summary["steps"].as_u64().filter(|_| from == 0)?;
    let is_short = summary["exit_code"].is_u64() && verdict.steps < made;
    is_short.then(|| format!("the ledger tells of {} steps, but {made} were made: it is cut off", verdict.steps))
}

fn tell(args: &VerifyArgs, verdict: &Verdict, account: &Account) -> Result<(), Failure> {
    let Verdict { steps, samples, epochs, dropped_slices, problems } = verdict;
    if args.json {
        say(json!({
            "steps": steps, "samples": samples, "epochs": epochs, "commits": account.commits, "eras": account.eras,
            "undone": account.undone, "dropped_slices": dropped_slices, "problems": problems,
        }))?;
    }
    if let Some(first) = problems.first() {
        let more = problems[1..].iter().take(TOLD - 1).map(|problem| format!("\n  {problem}"));
        let rest = problems.len().saturating_sub(TOLD);
        let rest = if rest > 0 { format!("\n  and {rest} more") } else { String::new() };
        return Err(Failure::Failed(format!("{first}{}{rest}", more.collect::<String>())));
    }
    if args.json {
        return Ok(());
    }
    let dropped = match dropped_slices {
        0 => String::new(),
        dropped => format!(", but for those of {dropped} slices that quorums were made without"),
    };
    say(format_args!(
        "verified: {steps} steps, {samples} samples in {epochs} epochs, each used as often as it should be{dropped}; \
         {} commits, {} undone and made again, {} eras",
        account.commits, account.undone, account.eras,
    ))
}

/// What a commit used: the first step, how many, and the slices of each.
type Used = (u64, u64, Vec<u32>);

/// Reads the ledgers of a run. Where several servers wrote down the same commit, they must say the same.
fn read(texts: &[String]) -> Result<Account, String> {
    let mut account = Account::default();
    let mut commits: BTreeMap<(u64, u64), Used> = BTreeMap::new();
    let mut begins: BTreeMap<u64, u64> = BTreeMap::new();
    for text in texts {
        let mut own: BTreeMap<(u64, u64), Used> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(Line::Era { era, from }) => {
                    // A server that came within an era takes it up later, or where it began.
                    let first = begins.entry(era).or_insert(from);
                    *first = (*first).min(from);
                }
                Ok(Line::Commit { era, commit, step, steps, slices }) => {
                    if own.insert((era, commit), (step, steps, slices)).is_some() {
                        return Err(format!("commit {commit} of era {era} is there twice"));
                    }
                }
                Err(_) => account.torn += 1,
            }
        }
        for ((era, commit), used) in own {
            if commits.entry((era, commit)).or_insert_with(|| used.clone()) != &used {
                return Err(format!("two servers say different things of commit {commit} of era {era}"));
            }
        }
    }
    account.eras = begins.len() as u64;
    account.from = begins.first_key_value().map_or(0, |(_, from)| *from);
    let mut next = account.from;
    let is_void = |era: u64, commit: u64| begins.range(era + 1..).any(|(_, from)| *from <= commit);
    let mut counted: Vec<_> = commits.into_iter().map(|((era, commit), used)| (commit, era, used)).collect();
    counted.sort_by_key(|(commit, era, _)| (*commit, *era));
    for (commit, era, (step, steps, slices)) in counted {
        if is_void(era, commit) {
            account.undone += 1;
            continue;
        }
        if commit != next {
            return Err(format!("commit {next} is missing"));
        }
        next += 1;
        account.commits += 1;
        for (step, slice) in (step..step.saturating_add(steps)).flat_map(|step| slices.iter().map(move |s| (step, *s)))
        {
            *account.uses.entry((step, slice)).or_default() += 1;
        }
    }
    Ok(account)
}

/// Compares what was used with what should have been.
fn check(config: &Config, (order, clock): (DataOrder, Clock), account: &Account) -> Verdict {
    let begun = clock.steps_after(Step(account.from));
    let end = clock.steps_after(Step(account.from + account.commits));
    // What was dealt out of order before that is not known here.
    let is_known = account.from == 0 || !config.mode.is_dealt();
    let mut verdict = Verdict { steps: end - begun, samples: 0, epochs: 0, dropped_slices: 0, problems: Vec::new() };
    let has_quorum = matches!(config.mode, Mode::Sync(Quorum::Slices(_)));
    // Where slices are dealt out, some of later steps may be used before all of this one.
    let last = account.uses.keys().next_back().map_or(0, |(step, _)| step + 1);
    let per_epoch = order.steps_per_epoch();
    for epoch in 0..last.div_ceil(per_epoch) {
        let places = order.epoch_order(epoch);
        let (mut used, mut due) = (vec![0u32; order.samples as usize], vec![0u32; order.samples as usize]);
        for step in epoch * per_epoch..((epoch + 1) * per_epoch).min(last) {
            for slice in 0..order.slices {
                let count = account.uses.get(&(step, slice)).copied().unwrap_or(0);
                let samples = order.places(Step(step), SliceId(slice));
                let is_dropped = count == 0 && has_quorum && step >= begun && samples.len() > 0;
                verdict.dropped_slices += u64::from(is_dropped);
                let is_due = is_known && (begun..end).contains(&step) && !is_dropped;
                for sample in samples.map(|place| places.sample(place) as usize) {
                    used[sample] += count;
                    // Of the step in progress, what was dealt out is due, once.
                    due[sample] += if is_due { 1 } else { count.min(1) };
                    verdict.samples += u64::from(count);
                }
            }
        }
        let wrong = used.iter().zip(&due).enumerate().filter(|(_, (used, due))| used != due);
        verdict.problems.extend(wrong.map(|(sample, (used, due))| {
            format!("epoch {epoch}: training sample {sample} was used {used} times, not {due}")
        }));
        verdict.epochs += 1;
    }
    verdict
}

/// Whether the model is the one that the summary names.
fn check_model(run: &Path) -> Option<String> {
    let named = finished::field(run, "summary.json", "params_sha256")?;
    let file = run.join("model.safetensors");
    let hash = model_file::hash_of(&file, &run.join("manifest.json"));
    match hash {
        Ok(hash) if hash == named => None,
        Ok(hash) => Some(format!("{} holds {hash}, summary.json says {named}", file.display())),
        Err(problem) => Some(problem),
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::config::layers::Layers;

    use super::*;

    fn verified(config: &str, ledger: &str) -> Result<Verdict, String> {
        let text = format!("workers = 2\nslices = 2\nbatch_size = 4\nsteps = 6\n{config}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let order = order_of(&config, 12);
        Ok(check(&config, (order, Clock::new(&config, 6)), &read(&[ledger.to_string()])?))
    }

    fn commit(era: u64, commit: u64, step: u64, slices: &[u32]) -> String {
        let slices = slices.to_vec();
        serde_json::to_string(&Line::Commit { era, commit, step, steps: 1, slices }).unwrap() + "\n"
    }

    fn ledger(commits: std::ops::Range<u64>) -> String {
        "{\"era\":0,\"from\":0}\n".to_string() + &commits.map(|at| commit(0, at, at, &[0, 1])).collect::<String>()
    }

    #[test]
    fn each_sample_once_is_well() {
        let verdict = verified("", &ledger(0..6)).unwrap();
        assert_eq!((verdict.steps, verdict.samples, verdict.epochs, verdict.problems), (6, 24, 2, vec![]));
        let verdict = verified("", &ledger(0..4)).unwrap();
        assert_eq!((verdict.samples, verdict.problems.len()), (16, 0), "a run that is not done yet");
    }

    #[test]
    fn what_is_undone_does_not_count() {
        let mut text = ledger(0..4);
        text += "{\"era\":0,\"commit\":4,\"ste\n{\"era\":1,\"from\":2}\n";
        text += &(2..6).map(|at| commit(1, at, at, &[0, 1])).collect::<String>();
        let account = read(std::slice::from_ref(&text)).unwrap();
        assert_eq!((account.commits, account.undone, account.eras, account.torn), (6, 2, 2, 1));
        assert_eq!(verified("", &text).unwrap().problems, Vec::<String>::new());
    }

    #[test]
    fn what_one_server_lacks_another_has() {
        let first = ledger(0..2) + &ledger(4..6).replace("\"from\":0", "\"from\":4");
        let second = ledger(0..6);
        let account = read(&[first.clone(), second]).unwrap();
        assert_eq!((account.commits, account.from), (6, 0));
        let other = ledger(0..4) + &commit(0, 4, 4, &[0]);
        assert_eq!(read(&[first, other]), Err("two servers say different things of commit 4 of era 0".into()));
    }

    #[test]
    fn lost_and_repeated_samples_are_named() {
        assert_eq!(verified("", &ledger(1..4)), Err("commit 0 is missing".into()));
        let adopted = ledger(2..5).replace("\"from\":0", "\"from\":2");
        let verdict = verified("", &adopted).unwrap();
        assert_eq!(
            (verdict.steps, verdict.samples, verdict.problems),
            (3, 12, vec![]),
            "from another run's checkpoint"
        );
        let twice = ledger(0..2) + &commit(0, 1, 1, &[0]);
        assert_eq!(verified("", &twice), Err("commit 1 of era 0 is there twice".into()));
        let lost = verified("", &(ledger(0..2) + &commit(0, 2, 2, &[1]))).unwrap();
        assert_eq!(lost.problems.len(), 2);
        assert!(lost.problems[0].contains("was used 0 times, not 1"), "{:?}", lost.problems);
        let repeated = verified("", &(ledger(0..2) + &commit(0, 2, 1, &[0, 1]))).unwrap();
        assert!(repeated.problems.iter().any(|problem| problem.contains("was used 2 times, not 1")));
    }

    #[test]
    fn a_quorum_may_leave_slices_out_and_dealt_ones_come_in_any_order() {
        let quorum = ledger(0..1) + &commit(0, 1, 1, &[1]);
        let verdict = verified("[consistency]\nquorum = 1", &quorum).unwrap();
        assert_eq!((verdict.dropped_slices, verdict.samples, verdict.problems.len()), (1, 6, 0));
        let dealt = [(0, 1), (1, 0), (0, 0), (2, 0)].into_iter().zip(0..);
        let dealt: String = dealt.map(|((step, slice), at)| commit(0, at, step, &[slice])).collect();
        let verdict = verified("mode = 'async'", &dealt).unwrap();
        assert_eq!(verdict.problems.len(), 2, "slice 1 of step 1 is lost: {:?}", verdict.problems);
    }
}
