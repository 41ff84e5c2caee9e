//! The checkpoints of a run: which there are, which is the newest that is whole, and which are not needed any more.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use convoy_proto::{config::Config, hex, manifest::Manifest};
use convoy_server::checkpoint::{self, CheckpointError, CheckpointManifest, MANIFEST, Place, place};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    coordinator::{dealer::Cursor, records::Totals},
    outcome::Failure,
    summary::Notes,
    train::review::Review,
};

/// What a manifest is called that counts for nothing any more.
const ABANDONED: &str = "abandoned.json";

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
    /// Its name.
    pub name: String,
    /// Its manifest.
    pub manifest: CheckpointManifest,
    /// Where the run stood.
    pub cut: Cut,
}

/// Checkpoints that servers must not be sent to again, by name.
pub type Bad = BTreeSet<String>;

/// What identifies a model's tensors.
pub fn model_hash(manifest: &Manifest) -> String {
    hex(&Sha256::digest(serde_json::to_vec(manifest).unwrap_or_default()))
}

/// Where in the run a checkpoint is, by its name: steps, and commits beyond them.
pub fn position(name: &str) -> Option<(u64, u64)> {
    let name = name.strip_prefix("step-")?;
    let (step, more) = name.split_once('-').unwrap_or((name, "0"));
    Some((step.parse().ok()?, more.parse().ok()?))
}

impl From<CheckpointError> for Failure {
    fn from(problem: CheckpointError) -> Failure {
        let text = problem.to_string();
        match problem {
            CheckpointError::Place { .. } => Failure::Usage(text),
            _ => Failure::Environment(text),
        }
    }
}

/// The checkpoints at a place.
#[derive(Clone, Debug)]
pub struct Checkpoints(Arc<dyn Place>);

impl Checkpoints {
    /// Those at a place.
    pub fn at(place: Arc<dyn Place>) -> Checkpoints {
        Checkpoints(place)
    }

    /// Those of a run, wherever it keeps them.
    ///
    /// # Errors
    /// It is configured to keep them where it cannot.
    pub fn of_run(config: &Config, run: &Path) -> Result<Checkpoints, CheckpointError> {
        place::of_run(config, run).map(Checkpoints)
    }

    /// Where they are.
    pub fn place(&self) -> &dyn Place {
        &*self.0
    }

    /// What a person finds a checkpoint by.
    pub fn of(&self, name: &str) -> String {
        self.0.of(name)
    }

    /// The names of what may be checkpoints of a run; whatever else is there is none of its business.
    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        Ok(self.0.names()?.into_iter().filter(|name| position(name).is_some()).collect())
    }

    /// All with their manifests, by their commits: those without one first.
    fn opened(&self) -> Result<Vec<(Option<CheckpointManifest>, String)>, CheckpointError> {
        let mut opened = Vec::new();
        for name in self.names()? {
            match checkpoint::open(&*self.0, &name) {
                Ok(manifest) => opened.push((Some(manifest), name)),
                // It may be any, so nothing is known of its age.
                Err(problem) if problem.is_unreachable() => return Err(problem),
                Err(_) => opened.push((None, name)),
            }
        }
        opened.sort_by_key(|(manifest, name)| (manifest.as_ref().map(|manifest| manifest.commits), name.clone()));
        Ok(opened)
    }

    fn has_manifest(&self, name: &str) -> Result<bool, CheckpointError> {
        Ok(self.0.files(name)?.iter().any(|(file, _)| file == MANIFEST))
    }

    /// Whether there is none, nor anything that could be taken for one.
    ///
    /// # Errors
    /// The place cannot be read.
    pub fn are_none(&self) -> Result<bool, CheckpointError> {
        for name in self.names()? {
            if self.has_manifest(&name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The newest whole one but for those in `bad`, every file of it checked; and why newer ones were passed over.
    ///
    /// # Errors
    /// The place does not answer: then nothing is known of what it holds.
    pub fn newest(&self, model: &str, bad: &Bad) -> Result<(Option<Found>, Vec<String>), CheckpointError> {
        let (mut passed_over, mut manifests) = (Vec::new(), Vec::new());
        for name in self.names()?.into_iter().filter(|name| !bad.contains(name)) {
            match checkpoint::open(&*self.0, &name) {
                Ok(manifest) => manifests.push((name, manifest)),
                Err(problem) if problem.is_unreachable() => return Err(problem),
                // Without a manifest, it never was one.
                Err(_) if !self.has_manifest(&name)? => {}
                Err(problem) => passed_over.push(problem.to_string()),
            }
        }
        manifests.sort_by_key(|(_, manifest)| (manifest.commits, manifest.era));
        for (name, manifest) in manifests.into_iter().rev() {
            match self.whole(&name, manifest, model)? {
                Ok(found) => return Ok((Some(found), passed_over)),
                Err(problem) => passed_over.push(problem),
            }
        }
        Ok((None, passed_over))
    }

    /// The same, to go on from: what is newer belongs to no timeline any more, and is set aside.
    ///
    /// # Errors
    /// As [`Checkpoints::newest`].
    pub fn take(&self, model: &str, bad: &Bad) -> Result<(Option<Found>, Vec<String>), CheckpointError> {
        let (found, passed_over) = self.newest(model, bad)?;
        let from = found.as_ref().map(|found| found.name.as_str());
        let is_later = |name: &String| from.is_none_or(|from| position(name) > position(from));
        self.names()?.iter().filter(|name| is_later(name)).try_for_each(|name| self.set_aside(name))?;
        Ok((found, passed_over))
    }

    /// Makes a checkpoint none, for good: its files stay until the run ends or their step is saved again.
    fn set_aside(&self, name: &str) -> Result<(), CheckpointError> {
        self.0.rename(name, MANIFEST, ABANDONED)
    }

    /// Takes a checkpoint of another run over into this one, whose name is given.
    ///
    /// # Errors
    /// Either place's.
    pub fn adopt(&self, found: Found, from: &Checkpoints, run: &str) -> Result<Found, CheckpointError> {
        // A person may have given it another name.
        let name = match position(&found.name) {
            Some(_) => found.name.clone(),
            None => format!("step-{}", found.manifest.step),
        };
        let mut files = found.manifest.files.clone();
        for file in &mut files {
            let theirs = file.file.clone();
            // A name that no server writes to, for it may be one file in both runs.
            file.file = format!("adopted-{theirs}");
            from.0.fetch(&found.name, &theirs, &self.0.staged(&name, &file.file)?)?;
            self.0.keep(&name, &file.file)?;
        }
        let progress = serde_json::to_value(&found.cut).unwrap_or_default();
        let manifest = CheckpointManifest { run: run.into(), era: 0, files, progress, ..found.manifest };
        checkpoint::complete(&*self.0, &name, &manifest)?;
        Ok(Found { name, manifest, cut: found.cut })
    }

    /// One by its name, with every file checked; or, in words, what is wrong with it.
    ///
    /// # Errors
    /// The place does not answer.
    pub fn named(&self, name: &str, model: &str) -> Result<Result<Found, String>, CheckpointError> {
        match checkpoint::open(&*self.0, name) {
            Ok(manifest) => self.whole(name, manifest, model),
            Err(problem) if problem.is_unreachable() => Err(problem),
            Err(problem) => Ok(Err(problem.to_string())),
        }
    }

    fn whole(
        &self,
        name: &str,
        manifest: CheckpointManifest,
        model: &str,
    ) -> Result<Result<Found, String>, CheckpointError> {
        if manifest.model != model {
            return Ok(Err(format!("{} is of another model", self.of(name))));
        }
        for file in &manifest.files {
            match self.0.check(name, file) {
                Ok(()) => {}
                Err(problem) if problem.is_unreachable() => return Err(problem),
                Err(problem) => return Ok(Err(problem.to_string())),
            }
        }
        let cut = Cut::deserialize(&manifest.progress);
        let cut = cut.map_err(|problem| format!("{} does not say where the run stood: {problem}", self.of(name)));
        Ok(cut.map(|cut| Found { name: name.into(), manifest, cut }))
    }

    /// Removes what is older than the newest, so many, but for one of the step `best`.
    ///
    /// # Errors
    /// The place's; then more is left than is needed.
    pub fn retain(&self, keep_last: u32, best: Option<u64>) -> Result<(), CheckpointError> {
        // What has no manifest comes first.
        let mut others = self.opened()?;
        let whole = others.split_off(others.partition_point(|(manifest, _)| manifest.is_none()));
        let oldest = whole.len().saturating_sub(keep_last as usize);
        let old = whole[..oldest].iter().filter(|(manifest, _)| manifest.as_ref().map(|m| m.step) != best);
        old.map(|(_, name)| name).try_for_each(|name| self.remove(name))?;
        // What was begun before the newest will never be complete; what is later may be on its way.
        let newest = whole.last().and_then(|(_, name)| position(name));
        let begun = others.iter().filter(|(_, name)| newest > position(name));
        begun.map(|(_, name)| name).try_for_each(|name| self.remove(name))
    }

    /// Removes what there is of a checkpoint that will not be complete, so that a full disk is less full.
    ///
    /// # Errors
    /// The place's.
    pub fn discard(&self, name: &str) -> Result<(), CheckpointError> {
        if self.has_manifest(name)? { Ok(()) } else { self.0.remove_all(name) }
    }

    /// Removes what was begun and will never be complete, once nobody writes any more.
    ///
    /// # Errors
    /// The place's.
    pub fn tidy(&self) -> Result<(), CheckpointError> {
        self.0.clear();
        self.names()?.iter().try_for_each(|name| self.discard(name))
    }

    /// Removes the oldest but for the newest, or what was begun; false if there is nothing to remove.
    pub fn make_room(&self) -> bool {
        let mut all = self.opened().unwrap_or_default();
        // The newest stays.
        let _ = all.pop_if(|(manifest, _)| manifest.is_some());
        all.first().is_some_and(|(_, name)| self.remove(name).is_ok())
    }

    /// Removes a checkpoint, its manifest first, so that nothing half is ever taken for whole.
    fn remove(&self, name: &str) -> Result<(), CheckpointError> {
        self.0.remove(name, &[MANIFEST.into()])?;
        self.0.remove_all(name)
    }

    /// Removes files of an earlier try at a checkpoint, which is complete now.
    ///
    /// # Errors
    /// The place's.
    pub fn remove_strangers(&self, name: &str, manifest: &CheckpointManifest) -> Result<(), CheckpointError> {
        let is_its = |name: &str| name == MANIFEST || manifest.files.iter().any(|file| file.file == name);
        let strangers = self.0.files(name)?.into_iter().map(|(file, _)| file).filter(|file| !is_its(file));
        self.0.remove(name, &strangers.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use convoy_server::checkpoint::{
        Bucket, Directory,
        manifest::{BlockFile, FORMAT},
    };

    use super::*;

    /// A place in a directory, so that a test can look at it; once as one and once as a bucket's stand-in in memory.
    struct Run {
        dir: tempfile::TempDir,
        checkpoints: Checkpoints,
    }

    fn runs() -> [Run; 2] {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directory: Arc<dyn Place> = Arc::new(Directory::new(dir.path().join("checkpoints")));
        let bucket: Arc<dyn Place> = Arc::new(Bucket::in_memory(other.path()));
        [Run { dir, checkpoints: Checkpoints(directory) }, Run { dir: other, checkpoints: Checkpoints(bucket) }]
    }

    impl Run {
        fn put(&self, name: &str, file: &str, text: &str) {
            fs::write(self.place().staged(name, file).unwrap(), text).unwrap();
            self.place().keep(name, file).unwrap();
        }

        fn place(&self) -> &dyn Place {
            self.checkpoints.place()
        }

        fn write(&self, commits: u64) -> String {
            let name = format!("step-{commits}");
            self.put(&name, "blocks", "abc");
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
            checkpoint::complete(self.place(), &name, &manifest).unwrap();
            name
        }

        fn find(&self, model: &str, bad: &[&String]) -> (Option<u64>, usize) {
            let bad = bad.iter().map(|name| (*name).clone()).collect();
            let (found, passed_over) = self.checkpoints.newest(model, &bad).unwrap();
            (found.map(|found| found.manifest.commits), passed_over.len())
        }

        fn steps(&self) -> Vec<String> {
            let mut names = self.place().names().unwrap();
            names.sort();
            names
        }
    }

    #[test]
    fn the_newest_whole_one_is_found() {
        for run in runs() {
            assert_eq!(run.find("m", &[]), (None, 0));
            assert!(run.checkpoints.are_none().unwrap());
            let names = [2, 10, 9].map(|commits| run.write(commits));
            assert!(!run.checkpoints.are_none().unwrap());
            assert_eq!(run.find("m", &[]), (Some(10), 0));
            assert_eq!(run.find("m", &[&names[1]]), (Some(9), 0));
            assert_eq!(run.find("other", &[]), (None, 3));
            run.put(&names[1], "blocks", "abcd");
            assert_eq!(run.find("m", &[]), (Some(9), 1), "a changed file");
            run.place().seal(&names[2], MANIFEST, "{").unwrap();
            assert_eq!(run.find("m", &[]), (Some(2), 2), "a torn manifest");
            run.place().remove(&names[0], &["blocks".into()]).unwrap();
            assert_eq!(run.find("m", &[]), (None, 3), "a lost file");
        }
    }

    #[test]
    fn a_flipped_bit_on_a_disk_is_found() {
        let [run, _] = runs();
        let name = run.write(3);
        fs::write(PathBuf::from(run.checkpoints.of(&name)).join("blocks"), "abd").unwrap();
        assert_eq!(run.find("m", &[]), (None, 1));
    }

    #[test]
    fn what_is_newer_than_where_a_run_goes_on_is_none_any_more() {
        for run in runs() {
            let names = [2, 10, 9].map(|commits| run.write(commits));
            run.put(&names[1], "blocks", "abcd");
            let take = || run.checkpoints.take("m", &Bad::new()).unwrap().0.map(|found| found.manifest.commits);
            assert_eq!(take(), Some(9));
            run.put(&names[1], "blocks", "abc");
            assert_eq!(take(), Some(9), "also if it can be read again");
            run.checkpoints.retain(1, None).unwrap();
            assert_eq!(run.steps(), ["step-10", "step-9"], "and it takes nobody's place");
            run.checkpoints.tidy().unwrap();
            assert_eq!(run.steps(), ["step-9"]);
        }
    }

    #[test]
    fn one_is_taken_over_from_another_run_wherever_it_is() {
        for from in 0..2 {
            for to in 0..2 {
                let (there, here) = (runs(), runs());
                let (there, here) = (&there[from], &here[to]);
                there.write(7);
                let found = there.checkpoints.newest("m", &Bad::new()).unwrap().0.unwrap();
                here.checkpoints.adopt(found, &there.checkpoints, "mine").unwrap();
                there.place().remove_all("step-7").unwrap();
                let found = here.checkpoints.newest("m", &Bad::new()).unwrap().0.unwrap();
                assert_eq!((found.manifest.commits, found.manifest.run.as_str()), (7, "mine"));
                assert_eq!(here.place().read("step-7", "adopted-blocks").unwrap(), b"abc");
            }
        }
    }

    #[test]
    fn old_ones_go_but_for_the_best() {
        for run in runs() {
            run.put("step-1", "blocks", "begun");
            for commits in [2, 4, 6, 8] {
                run.write(commits);
            }
            run.put("step-8", "blocks-of-an-older-era", "x");
            run.put("step-10", "blocks", "on its way");
            run.checkpoints.retain(2, Some(4)).unwrap();
            assert_eq!(run.steps(), ["step-10", "step-4", "step-6", "step-8"], "a server is ahead of another");
            run.place().remove_all("step-10").unwrap();
            run.checkpoints.remove_strangers("step-8", &checkpoint::open(run.place(), "step-8").unwrap()).unwrap();
            assert_eq!(run.place().files("step-8").unwrap().len(), 2);
            assert!(run.checkpoints.make_room() && run.checkpoints.make_room(), "the oldest goes, then the next");
            assert_eq!(run.steps(), ["step-8"]);
            assert!(!run.checkpoints.make_room(), "the newest stays");
            run.checkpoints.retain(1, None).unwrap();
            assert_eq!(run.steps(), ["step-8"]);
            assert!(run.dir.path().exists());
        }
    }
}
