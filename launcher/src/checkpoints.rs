//! The checkpoints of a run: which there are, which is the newest that is whole, and which are not needed any more.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use convoy_proto::{hex, manifest::Manifest};
use convoy_server::checkpoint::{self, CheckpointManifest, part};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    coordinator::{dealer::Cursor, records::Totals},
    summary::Notes,
    train::review::Review,
};

/// Where a run stood when a checkpoint was made, beside its parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cut {
    /// Which slices were committed, where they are dealt out.
    pub cursor: Cursor,
    /// How many slices quorums were made without.
    pub dropped_slices: u64,
    /// What the launcher had noted.
    pub notes: Notes,
    /// The evaluations so far.
    pub review: Review,
    /// What workers had done, by rank.
    pub workers: std::collections::BTreeMap<u32, Totals>,
}

/// A checkpoint that is whole.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: CheckpointManifest,
    /// Where the run stood.
    pub cut: Cut,
}

/// What identifies a model's tensors.
pub fn model_hash(manifest: &Manifest) -> String {
    hex(&Sha256::digest(serde_json::to_vec(manifest).unwrap_or_default()))
}

/// The directories that may be checkpoints of a run, in no order.
fn directories(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(checkpoint::root(run)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The same with their manifests, by their commits: those without one first.
fn opened(run: &Path) -> Vec<(Option<CheckpointManifest>, PathBuf)> {
    let opened = directories(run).into_iter().map(|path| (checkpoint::open(&path).ok(), path));
    let mut opened: Vec<_> = opened.collect();
    opened.sort_by_key(|(manifest, path)| (manifest.as_ref().map(|manifest| manifest.commits), path.clone()));
    opened
}

/// The newest whole checkpoint of a run but for those of the names in `bad`, every byte of it checked; and why newer ones
/// were passed over.
pub fn newest(run: &Path, model: &str, bad: &BTreeSet<OsString>) -> (Option<Found>, Vec<String>) {
    let (mut passed_over, mut manifests) = (Vec::new(), Vec::new());
    let is_bad = |path: &PathBuf| path.file_name().is_some_and(|name| bad.contains(name));
    for path in directories(run).into_iter().filter(|path| !is_bad(path)) {
        match checkpoint::open(&path) {
            Ok(manifest) => manifests.push((path, manifest)),
            // Without a manifest, it never was one.
            Err(_) if !path.join(checkpoint::MANIFEST).exists() => {}
            Err(problem) => passed_over.push(problem.to_string()),
        }
    }
    manifests.sort_by_key(|(_, manifest)| (manifest.commits, manifest.era));
    for (path, manifest) in manifests.into_iter().rev() {
        match whole(&path, manifest, model) {
            Ok(found) => return (Some(found), passed_over),
            Err(problem) => passed_over.push(problem),
        }
    }
    (None, passed_over)
}

/// The same, to go on from: what is newer belongs to no timeline any more, and is set aside.
pub fn take(run: &Path, model: &str, bad: &BTreeSet<OsString>) -> (Option<Found>, Vec<String>) {
    let (found, passed_over) = newest(run, model, bad);
    let from = found.as_ref().map(|found| found.path.as_path());
    let is_later = |path: &PathBuf| from.is_none_or(|from| place(path) > place(from));
    directories(run).iter().filter(|path| is_later(path)).for_each(|path| set_aside(path));
    (found, passed_over)
}

/// Makes a checkpoint none, for good: its files stay until the run ends or their step is saved again.
fn set_aside(path: &Path) {
    let manifest = path.join(checkpoint::MANIFEST);
    if let Err(problem) = fs::rename(&manifest, path.join("abandoned.json"))
        && manifest.exists()
    {
        tracing::warn!("cannot set the checkpoint {} aside: {problem}", path.display());
    }
}

/// Where in the run a directory's checkpoint is, by its name: steps, and commits beyond them.
fn place(path: &Path) -> Option<(u64, u64)> {
    let name = path.file_name()?.to_str()?.strip_prefix("step-")?;
    let (step, more) = name.split_once('-').unwrap_or((name, "0"));
    Some((step.parse().ok()?, more.parse().ok()?))
}

/// Takes a checkpoint of another run over into this one.
///
/// # Errors
/// The disk's, in words.
pub fn adopt(found: Found, run: &Path, name: &str) -> Result<Found, String> {
    let path = checkpoint::root(run).join(found.path.file_name().unwrap_or("step".as_ref()));
    let cannot =
        |problem: std::io::Error| format!("cannot copy {} to {}: {problem}", found.path.display(), path.display());
    fs::create_dir_all(&path).map_err(cannot)?;
    let mut files = found.manifest.files.clone();
    for file in &mut files {
        let from = found.path.join(&file.file);
        // A name that no server writes to, for it may be one file in both runs.
        file.file = format!("adopted-{}", file.file);
        let to = path.join(&file.file);
        fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).map_err(cannot)?;
        fs::File::open(&to).and_then(|file| file.sync_all()).map_err(cannot)?;
    }
    let progress = serde_json::to_value(&found.cut).map_err(|problem| cannot(problem.into()))?;
    let manifest = CheckpointManifest { run: name.into(), era: 0, files, progress, ..found.manifest.clone() };
    checkpoint::complete(&path, &manifest).map_err(|problem| problem.to_string())?;
    Ok(Found { path, manifest, cut: found.cut })
}

/// Checks every byte of a checkpoint.
///
/// # Errors
/// What is wrong with it, in words.
pub fn whole(path: &Path, manifest: CheckpointManifest, model: &str) -> Result<Found, String> {
    if manifest.model != model {
        return Err(format!("{} is of another model", path.display()));
    }
    for file in &manifest.files {
        part::check(path, file).map_err(|problem| problem.to_string())?;
    }
    let cut = Cut::deserialize(&manifest.progress);
    let cut = cut.map_err(|problem| format!("{} does not say where the run stood: {problem}", path.display()))?;
    Ok(Found { path: path.into(), manifest, cut })
}

/// Removes what is older than the newest checkpoints of a run, so many, but for one of the step `best`.
pub fn retain(run: &Path, keep_last: u32, best: Option<u64>) {
    // What has no manifest comes first.
    let mut others = opened(run);
    let whole = others.split_off(others.partition_point(|(manifest, _)| manifest.is_none()));
    let oldest = whole.len().saturating_sub(keep_last as usize);
    let old = whole[..oldest].iter().filter(|(manifest, _)| manifest.as_ref().map(|m| m.step) != best);
    old.for_each(|(_, path)| remove(path));
    // What was begun before the newest will never be complete; what is later may be on its way.
    let newest = whole.last().and_then(|(_, path)| place(path));
    others.iter().filter(|(_, path)| newest > place(path)).for_each(|(_, path)| remove(path));
}

/// Removes what there is of a checkpoint that will not be complete, so that a full disk is less full.
pub fn discard(path: &Path) {
    if !path.join(checkpoint::MANIFEST).exists() && path.exists() {
        remove(path);
    }
}

/// Removes what was begun and will never be complete, once nobody writes any more.
pub fn tidy(run: &Path) {
    directories(run).iter().for_each(|path| discard(path));
}

/// Removes the oldest checkpoint of a run but for the newest, or what was begun; false if there is nothing to remove.
pub fn make_room(run: &Path) -> bool {
    let mut all = opened(run);
    // The newest stays.
    let _ = all.pop_if(|(manifest, _)| manifest.is_some());
    all.first().is_some_and(|(_, path)| {
        remove(path);
        !path.exists()
    })
}

/// Removes a checkpoint, its manifest first, so that nothing half is ever taken for whole.
fn remove(path: &Path) {
    let _ = fs::remove_file(path.join(checkpoint::MANIFEST));
    if let Err(problem) = fs::remove_dir_all(path) {
        tracing::warn!("cannot remove the checkpoint {}: {problem}", path.display());
    }
}

/// Removes files of an earlier try at a checkpoint, which is complete now.
pub fn remove_strangers(path: &Path, manifest: &CheckpointManifest) {
    let is_its = |name: &str| name == checkpoint::MANIFEST || manifest.files.iter().any(|file| file.file == name);
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let strangers = entries.filter(|entry| !entry.file_name().to_str().is_some_and(is_its));
    strangers.for_each(|entry| drop(fs::remove_file(entry.path())));
}

#[cfg(test)]
mod tests {
    use convoy_server::checkpoint::manifest::{BlockFile, FORMAT};

    use super::*;

    fn write(run: &Path, commits: u64) -> PathBuf {
        let path = checkpoint::root(run).join(format!("step-{commits}"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("blocks"), b"abc").unwrap();
        let sha256 = hex(&Sha256::digest(b"abc"));
        let file = BlockFile { file: "blocks".into(), first_block: 0, blocks: 1, bytes: 3, sha256 };
        let manifest = CheckpointManifest {
            format: FORMAT,
            run: "r".into(),
            model: "m".into(),
            step: commits,
            commits,
            era: 0,
            loss_scale: 1.0,
            clean_steps: 0,
            files: vec![file],
            progress: serde_json::to_value(Cut::default()).unwrap(),
        };
        checkpoint::complete(&path, &manifest).unwrap();
        path
    }

    fn steps(run: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            directories(run).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        let run = tempfile::tempdir().unwrap();
        let find = |model: &str, bad: &[&PathBuf]| {
            let bad = bad.iter().filter_map(|path| path.file_name().map(Into::into)).collect();
            let (found, passed_over) = newest(run.path(), model, &bad);
            (found.map(|found| found.manifest.commits), passed_over.len())
        };
        assert_eq!(find("m", &[]), (None, 0));
        let paths: Vec<_> = [2, 10, 9].map(|commits| write(run.path(), commits)).to_vec();
        assert_eq!(find("m", &[]), (Some(10), 0));
        assert_eq!(find("m", &[&paths[1]]), (Some(9), 0));
        assert_eq!(find("other", &[]), (None, 3));
        fs::write(paths[1].join("blocks"), b"abd").unwrap();
        assert_eq!(find("m", &[]), (Some(9), 1), "a changed file");
        fs::write(paths[2].join(checkpoint::MANIFEST), b"{").unwrap();
        assert_eq!(find("m", &[]), (Some(2), 2), "a torn manifest");
        fs::remove_file(paths[0].join("blocks")).unwrap();
        assert_eq!(find("m", &[]), (None, 3), "a lost file");
    }

    #[test]
    fn what_is_newer_than_where_a_run_goes_on_is_none_any_more() {
        let run = tempfile::tempdir().unwrap();
        let paths = [2, 10, 9].map(|commits| write(run.path(), commits));
        fs::write(paths[1].join("blocks"), b"abd").unwrap();
        let take = || take(run.path(), "m", &BTreeSet::new()).0.map(|found| found.manifest.commits);
        assert_eq!(take(), Some(9));
        fs::write(paths[1].join("blocks"), b"abc").unwrap();
        assert_eq!(take(), Some(9), "also if it can be read again");
        retain(run.path(), 1, None);
        assert_eq!(steps(run.path()), ["step-10", "step-9"], "and it takes nobody's place");
        tidy(run.path());
        assert_eq!(steps(run.path()), ["step-9"]);
    }

    #[test]
    fn one_is_taken_over_from_another_run() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(there.path(), 7);
        let found = newest(there.path(), "m", &BTreeSet::new()).0.unwrap();
        adopt(found, here.path(), "mine").unwrap();
        fs::remove_dir_all(checkpoint::root(there.path())).unwrap();
        let found = newest(here.path(), "m", &BTreeSet::new()).0.unwrap();
        assert_eq!((found.manifest.commits, found.manifest.run.as_str()), (7, "mine"));
    }

    #[test]
    fn old_ones_go_but_for_the_best() {
        let run = tempfile::tempdir().unwrap();
        let begun = checkpoint::root(run.path()).join("step-1");
        fs::create_dir_all(&begun).unwrap();
        for commits in [2, 4, 6, 8] {
            write(run.path(), commits);
        }
        fs::write(checkpoint::root(run.path()).join("step-8/blocks-of-an-older-era"), b"x").unwrap();
        let on_its_way = checkpoint::root(run.path()).join("step-10");
        fs::create_dir_all(&on_its_way).unwrap();
        retain(run.path(), 2, Some(4));
        assert!(on_its_way.is_dir(), "a server is ahead of another");
        fs::remove_dir(on_its_way).unwrap();
        let newest = checkpoint::root(run.path()).join("step-8");
        remove_strangers(&newest, &checkpoint::open(&newest).unwrap());
        assert_eq!(steps(run.path()), ["step-4", "step-6", "step-8"]);
        assert_eq!(fs::read_dir(checkpoint::root(run.path()).join("step-8")).unwrap().count(), 2);
        assert!(make_room(run.path()) && make_room(run.path()), "the oldest goes, then the next");
        assert_eq!(steps(run.path()), ["step-8"]);
        assert!(!make_room(run.path()), "the newest stays");
        retain(run.path(), 1, None);
        assert_eq!(steps(run.path()), ["step-8"]);
    }
}
