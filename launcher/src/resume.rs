//! `launcher resume` and `--resume`: going on from the newest whole checkpoint.

use std::{fs, path::Path};

use convoy_proto::{
    config::{Config, RawConfig, layers::Layers, raw::CountOrAuto, watch::RawWatch},
    ids::Era,
    manifest::Manifest,
    process,
};
use convoy_server::checkpoint::{MANIFEST, place};
use convoy_worker::{data, task::TaskEntry};

use crate::{
    args::{Pairs, Places, ResumeArgs, TrainArgs, Which},
    checkpoints::{self, Bad, Checkpoints, Cut, Found},
    cli::say,
    coordinator::core::Origin,
    difference, finished, machine, model_file,
    outcome::Failure,
    remote::Remotes,
    run_dir::{self, RunDir},
    settings,
    train::{self, prepare::Prepared, review::Review},
};

/// A run that is taken up where another launcher left off.
#[derive(Debug)]
pub struct Resumed {
    /// Its directory.
    pub run_dir: RunDir,
    /// The era that begins.
    pub era: Era,
    /// Where it begins.
    pub origin: Origin,
    /// What was known there.
    pub cut: Cut,
    /// How large the checkpoint is.
    pub bytes: u64,
    /// Lines for people.
    pub lines: Vec<String>,
}

/// Goes on with a run, in its directory; one that is done stays as it is.
///
/// # Errors
/// There is no such run, it cannot be taken up, or whatever keeps it from its end.
pub fn resume(args: &ResumeArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    process::init_logs();
    let path = run_dir::find(places.root(), places.meant(&args.run)?)?;
    let mut args = args.clone();
    machine::settle(&mut args.network)?;
    let mut train = TrainArgs { hosts: args.hosts.clone(), network: args.network.clone(), ..TrainArgs::default() };
    (train.workers, train.local_workers) = (args.workers.clone(), args.local_workers.clone());
    let remotes = Remotes::gather(&mut train)?;
    (args.workers, args.local_workers, args.network) = (train.workers, train.local_workers, train.network);
    let mut flags = Pairs::from(&args);
    flags.extend(train.max_workers.map(|most| ("max_workers".to_string(), most)));
    go_on(&path, (flags, args.begin_anew), remotes, tasks)
}

/// What `--resume` says to do with a run that is about to be trained: gives the machines back if that is not this.
///
/// # Errors
/// As [`resume`].
pub fn instead(
    args: &TrainArgs,
    raw: &RawConfig,
    remotes: Remotes,
    tasks: &[TaskEntry],
) -> Result<Option<Remotes>, Failure> {
    if args.dry_run || args.resume.as_deref() != Some("auto") {
        return Ok(Some(remotes));
    }
    let Some(name) = raw.name.as_ref().filter(|name| !name.is_empty()) else {
        return Err(Failure::Usage("--resume auto needs --name, which says what run to go on with".into()));
    };
    let path = Path::new(raw.run_dir.as_deref().unwrap_or("runs")).join(name);
    let Some(theirs) = stored(&path)? else { return Ok(Some(remotes)) };
    if let Some(difference) = difference::between(&theirs, raw)? {
        return Err(Failure::Usage(format!("cannot go on with the run {}: {difference}", path.display())));
    }
    let count = |key: &str, value: Option<String>| value.map(|value| (key.to_string(), value));
    let workers = match raw.workers {
        Some(CountOrAuto::Count(workers)) => Some(workers.to_string()),
        _ => None,
    };
    let servers = raw.servers.map(|servers| servers.to_string());
    let replicas = raw.replicas.map(|replicas| replicas.to_string());
    let network = [
        count("listen", raw.listen.clone()),
        count("advertise_addr", raw.advertise_addr.clone()),
        count("certs", raw.certs.clone()),
        count("transport", raw.transport.clone()),
        count("insecure", raw.insecure.map(|insecure| insecure.to_string())),
    ];
    let local = raw.local_workers.map(|workers| workers.to_string());
    let local_servers = raw.local_servers.map(|servers| servers.to_string());
    let flags = [
        count("workers", workers),
        count("local_workers", local),
        count("local_servers", local_servers),
        count("servers", servers),
        count("replicas", replicas),
    ];
    let flags = flags.into_iter().chain(network).flatten().chain(watching(&raw.watch)).collect();
    go_on(&path, (flags, false), remotes, tasks).map(|()| None)
}

/// What is said of what a person sees.
fn watching(watch: &RawWatch) -> Pairs {
    let flag = |is: Option<bool>| is.map(|is| is.to_string());
    let said = [
        ("view", watch.view.clone()),
        ("log_format", watch.log_format.clone()),
        ("dashboard", watch.dashboard.clone()),
        ("dashboard_token", watch.dashboard_token.clone()),
        ("tensorboard", flag(watch.tensorboard)),
        ("dvc", flag(watch.dvc)),
        ("trace", watch.trace.clone()),
        ("otlp", watch.otlp.clone()),
    ];
    said.into_iter().filter_map(|(key, value)| Some((format!("watch.{key}"), value?))).collect()
}

/// The configuration of a run that is there.
fn stored(run: &Path) -> Result<Option<RawConfig>, Failure> {
    let file = run.join("config.toml");
    if !file.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&file)
        .map_err(|problem| Failure::Usage(format!("cannot read {}: {problem}", file.display())))?;
    let raw = Layers::new().toml(&file.display().to_string(), &text)?.raw()?;
    if raw.name.is_none() || raw.task.is_none() {
        return Err(Failure::Usage(format!("{} is cut off: a run's has every key", file.display())));
    }
    Ok(Some(raw))
}

fn go_on(
    path: &Path,
    (flags, begins_anew): (Pairs, bool),
    remotes: Remotes,
    tasks: &[TaskEntry],
) -> Result<(), Failure> {
    if finished::field(path, "summary.json", "status").as_deref() == Some("done") {
        return say(format_args!("the run {} is done", path.display()));
    }
    let there = || Failure::Usage(format!("there is no run {}", path.display()));
    let mut raw = stored(path)?.ok_or_else(there)?;
    // A trace is of one launcher: another does not write over it.
    raw.watch.trace = None;
    let (most, says) = (raw.clone(), |key: &str| flags.iter().any(|(known, _)| known == key));
    let (says_local, says_servers) = (says("local_workers"), says("local_servers"));
    raw = settings::changed(&raw, flags)?;
    fit_workers(&mut raw, most.workers, says_local);
    if !says_servers {
        fit_servers(&mut raw, &most);
    }
    // Where it is now, which may not be where it was.
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let name = text(whole.file_name());
    let elsewhere = raw.checkpoint.to.as_ref().filter(|to| !to.is_empty());
    if let (Some(to), Some(before), Some(now)) = (elsewhere, &raw.name, &name)
        && before != now
    {
        return Err(Failure::Usage(format!(
            "{} keeps its checkpoints at {to} under its first name, {before}: give its directory that name again",
            whole.display()
        )));
    }
    (raw.name, raw.run_dir) = (name, text(whole.parent().map(Path::as_os_str)));
    if let Some(certs) = raw.certs.as_ref().filter(|certs| !certs.is_empty() && !Path::new(certs).exists()) {
        return Err(Failure::Usage(format!(
            "the run's certificates, in {certs}, are gone (what --hostfile makes is, with its launcher): say --hostfile \
             again, or --certs DIR"
        )));
    }
    let mut prepared = train::prepare::prepare(raw, tasks)?;
    prepared.remotes = remotes;
    finished::check_data(path, &*prepared.data)?;
    let checkpoints = Checkpoints::of_run(&prepared.config, &whole)?;
    let run_dir = RunDir::reopen(&whole, &prepared.config.to_toml())?;
    let adopted = adopt_after_all(&run_dir, &checkpoints, &prepared)?;
    let mut resumed =
        take_up(run_dir, (&checkpoints, prepared.config.checkpoint.to.is_some()), (&prepared.manifest, begins_anew))?;
    resumed.lines.extend(adopted);
    train::run(prepared, Some(resumed))
}

/// Fewer workers are enough if all were needed and there are fewer now. Where all were on this machine, all are.
fn fit_workers(raw: &mut RawConfig, before: Option<CountOrAuto>, says_local: bool) {
    let (Some(CountOrAuto::Count(before)), Some(CountOrAuto::Count(now))) = (before, raw.workers) else { return };
    let fit = |count: u64| if count == before { now } else { count.min(now) };
    raw.min_workers = raw.min_workers.map(fit);
    if !says_local {
        raw.local_workers = raw.local_workers.map(fit);
    }
    raw.max_workers = raw.max_workers.map(|most| most.max(now));
}

/// Where all servers were on this machine, all are; and no more than there are now.
fn fit_servers(raw: &mut RawConfig, before: &RawConfig) {
    let total = |raw: &RawConfig| raw.servers.unwrap_or(1) * (raw.replicas.unwrap_or(0) + 1);
    let (before, now) = (total(before), total(raw));
    raw.local_servers = raw.local_servers.map(|here| if here == before { now } else { here.min(now) });
}

/// A run's newest whole checkpoint, or its beginning.
fn take_up(
    run_dir: RunDir,
    (checkpoints, is_elsewhere): (&Checkpoints, bool),
    (model, begins_anew): (&Manifest, bool),
) -> Result<Resumed, Failure> {
    let (found, passed_over) = checkpoints.take(&checkpoints::model_hash(model), &Bad::new())?;
    if found.is_none() && passed_over.is_empty() && is_elsewhere && had_checkpoints(run_dir.path()) {
        let place = checkpoints.place().root();
        return Err(Failure::Environment(format!(
            "{place} is empty, but held checkpoints of this run: is it mounted?"
        )));
    }
    // What was trained is not thrown away unasked.
    if found.is_none() && !begins_anew && had_checkpoints(run_dir.path()) {
        let why =
            passed_over.first().cloned().unwrap_or_else(|| format!("there is none at {}", checkpoints.place().root()));
        return Err(Failure::Environment(format!(
            "the run had checkpoints, and none is whole: {why}\n--begin-anew goes back to its first step"
        )));
    }
    let mut lines: Vec<_> = passed_over.iter().map(|why| format!("passed over a checkpoint: {why}")).collect();
    lines.push(match &found {
        Some(found) => format!("goes on from step {}, {}", found.manifest.step, checkpoints.of(&found.name)),
        None => "there is no checkpoint: begins anew".into(),
    });
    let written = found.as_ref().map_or(0, |found| found.manifest.era);
    let era = Era(run_dir.last_era().max(written) + 1);
    let origin = found.as_ref().map_or_else(Origin::default, Origin::from);
    let bytes = found.as_ref().map_or(0, |found| found.manifest.bytes());
    let mut cut = found.map(|found| found.cut).unwrap_or_default();
    cut.notes.resumes += 1;
    forget_other_best(run_dir.path(), &mut cut);
    Ok(Resumed { run_dir, era, origin, cut, bytes, lines })
}

/// Whether a run has written checkpoints, by its own account.
fn had_checkpoints(run: &Path) -> bool {
    let summary = fs::read_to_string(run.join("summary.json")).unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap_or_default();
    summary["checkpoints"].as_u64() > Some(0)
}

/// The best parameters that a run kept may be newer than where it goes on: then it finds its best anew.
fn forget_other_best(run: &Path, cut: &mut Cut) {
    let there = model_file::hash_of(&run.join(Which::Best.file()), &run.join("manifest.json")).ok();
    if there.is_none() || cut.notes.best.as_ref().map(|best| &best.params_sha256) != there.as_ref() {
        cut.notes.best = None;
        cut.review.forget_kept();
    }
}

/// A new run that begins with a checkpoint of another: the newest of a run, or one that is named.
///
/// # Errors
/// There is none, or it is of another model.
pub fn from_checkpoint(place: &str, prepared: &mut Prepared) -> Result<Resumed, Failure> {
    let (theirs, found) = foreign(place, &prepared.manifest)?;
    let from = theirs.of(&found.name);
    let run_dir =
        prepared.create_run_dir(Some(&if from.contains("://") { from } else { data::absolute_path(&from) }))?;
    let lines = vec![begins_with(&theirs, &found)];
    let checkpoints = Checkpoints::of_run(&prepared.config, run_dir.path())?;
    let adopted = adopt(&checkpoints, (&theirs, found), &prepared.config);
    let found = adopted.inspect_err(|_| {
        // Nothing is lost with it, and the same command can be given again.
        let _ = fs::remove_dir_all(run_dir.path());
    })?;
    let (origin, bytes) = (Origin::from(&found), found.manifest.bytes());
    Ok(Resumed { run_dir, era: Era(0), origin, cut: found.cut, bytes, lines })
}

fn begins_with(theirs: &Checkpoints, found: &Found) -> String {
    format!("begins with step {}, {}", found.manifest.step, theirs.of(&found.name))
}

/// A checkpoint of another run, and where it is.
fn foreign(place: &str, manifest: &Manifest) -> Result<(Checkpoints, Found), Failure> {
    let model = checkpoints::model_hash(manifest);
    let (theirs, name) = source(place)?;
    let found = match &name {
        Some(name) => theirs.named(name, &model)?,
        None => {
            let (found, passed_over) = theirs.newest(&model, &Bad::new())?;
            let none = || format!("there is no checkpoint at {}", theirs.place().root());
            found.ok_or_else(|| passed_over.first().cloned().unwrap_or_else(none))
        }
    };
    let found = found.map_err(|problem| Failure::Usage(format!("--resume {place}: {problem}")))?;
    Ok((theirs, found))
}

/// Makes a checkpoint of another run this one's own, so that it can go back to it whatever becomes of the other.
fn adopt(ours: &Checkpoints, (theirs, mut found): (&Checkpoints, Found), config: &Config) -> Result<Found, Failure> {
    // What was best there, and for how long, says nothing of this run, which has no such file.
    found.cut.review = Review::new(config.patience);
    found.cut.notes.best = None;
    Ok(ours.adopt(found, theirs, &config.name)?)
}

/// A run that was to begin with a checkpoint of another, and was ended before it had it, gets it now; says so.
fn adopt_after_all(run_dir: &RunDir, ours: &Checkpoints, prepared: &Prepared) -> Result<Option<String>, Failure> {
    let Some(from) = run_dir.begins_with() else { return Ok(None) };
    if had_checkpoints(run_dir.path()) || !ours.are_none()? {
        return Ok(None);
    }
    let (theirs, found) = foreign(&from, &prepared.manifest)?;
    let line = begins_with(&theirs, &found);
    adopt(ours, (&theirs, found), &prepared.config)?;
    Ok(Some(line))
}

/// What `--resume` names: a checkpoint, or a place that has some: by URL, or by path, a run's directory included.
fn source(text: &str) -> Result<(Checkpoints, Option<String>), Failure> {
    let at = |text: &str| place::at(text, &std::env::temp_dir()).map(|root| Checkpoints::at(root.itself()));
    let is_checkpoint = |name: &str| checkpoints::position(name).is_some();
    let text = text.strip_prefix("file://").unwrap_or(text);
    if text.contains("://") {
        return Ok(match text.trim_end_matches('/').rsplit_once('/') {
            Some((root, name)) if is_checkpoint(name) => (at(root)?, Some(name.into())),
            _ => (at(text)?, None),
        });
    }
    let path = Path::new(text);
    if let (true, Some(root), Some(name)) = (path.join(MANIFEST).is_file(), path.parent(), path.file_name())
        && !path.join("config.toml").is_file()
    {
        return Ok((at(&root.display().to_string())?, Some(name.to_string_lossy().into_owned())));
    }
    // A run knows where it keeps them; what is left of one keeps them where runs usually do.
    if let Ok(config) = process::load_config(path) {
        return Ok((Checkpoints::of_run(&config, path)?, None));
    }
    let usual = path.join("checkpoints");
    Ok((at(&if usual.is_dir() { usual } else { path.into() }.display().to_string())?, None))
}
