//! `--chaos`: faults that a run brings about in itself, to show that it outlives them.
//!
//! A plan says what happens and when: at steps, or at random with a mean time between faults. Whoever carries it out sends
//! real signals from outside the victim. Pure: time and seed are arguments.

use std::{fmt, str::FromStr, time::Duration};

use rand_chacha::ChaCha8Rng;

use crate::{
    config::Every,
    order::{Purpose, below, stream, unit},
};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A worker is killed.
    KillWorker,
    /// A server is killed.
    KillServer,
    /// A worker is stopped, and goes on when it has long been given up.
    StopWorker,
    /// The next checkpoint finds the disk full.
    DiskFull,
    /// The newest checkpoint is torn.
    TornCheckpoint,
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::KillWorker, "kill-worker"),
    (Kind::KillServer, "kill-server"),
    (Kind::StopWorker, "stop-worker"),
    (Kind::DiskFull, "disk-full"),
    (Kind::TornCheckpoint, "torn-checkpoint"),
];

/// Something that is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// To whom; to anybody if nobody is named.
    pub rank: Option<u32>,
    /// After so many steps; at random if none are named.
    pub step: Option<u64>,
}

/// What is to happen in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chaos {
    /// The faults: all at steps, or all at random.
    pub faults: Vec<Fault>,
    /// The mean time between two, where they come at random.
    pub mtbf: Option<Duration>,
    /// The seed of times and victims.
    pub seed: u64,
}

impl Chaos {
    /// Reads a plan.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn new(faults: &str, mtbf: &str, seed: u64) -> Result<Chaos, String> {
        let faults: Vec<Fault> = faults.split(',').map(|fault| fault.trim().parse()).collect::<Result<_, _>>()?;
        let mtbf = match mtbf {
            "" => None,
            text => match text.parse() {
                Ok(Every::Millis(ms)) => Some(Duration::from_millis(ms)),
                _ => return Err(format!("the mean time between faults is `{text}`, but must be a time such as 5s")),
            },
        };
        match (mtbf, faults.iter().find(|fault| fault.step.is_some() == mtbf.is_some())) {
            (_, None) => Ok(Chaos { faults, mtbf, seed }),
            (None, Some(fault)) => Err(format!("`{fault}` says no time; write {fault}@STEP, or give --mtbf")),
            (Some(_), Some(fault)) => Err(format!("`{fault}` comes at a step, and --mtbf is for faults that do not")),
        }
    }

    /// The faults in words, as they are read.
    pub fn faults_text(&self) -> String {
        self.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The `nth` fault that comes at random, and how long after the one before it.
    pub fn at_random(&self, nth: u64) -> Option<(Fault, Duration)> {
        let mtbf = self.mtbf?;
        let mut rng = self.rng(nth);
        let fault = self.faults.get(below(&mut rng, self.faults.len() as u64) as usize)?;
        // Exponential: faults do not know of each other.
        let wait = -(1.0 - unit(&mut rng)).ln();
        Some((*fault, mtbf.mul_f64(wait.min(100.0))))
    }

    /// Which of so many the `nth` fault strikes, if it names nobody.
    pub fn victim(&self, nth: u64, of: usize) -> usize {
        let mut rng = self.rng(nth);
        // Past what its time was taken from.
        let _ = (below(&mut rng, 2), unit(&mut rng));
        below(&mut rng, of.max(1) as u64) as usize
    }

    fn rng(&self, nth: u64) -> ChaCha8Rng {
        stream(self.seed, Purpose::Chaos, nth, 0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or("", |(_, name)| name);
        f.write_str(name)?;
        self.rank.map_or(Ok(()), |rank| write!(f, ":{rank}"))?;
        self.step.map_or(Ok(()), |step| write!(f, "@{step}"))
    }
}

impl FromStr for Fault {
    type Err = String;

    /// Reads `KIND[:RANK][@STEP]`, such as `kill-worker:1@20`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            let kinds: Vec<_> = KINDS.iter().map(|(_, name)| *name).collect();
            format!("`{text}` must be KIND[:RANK][@STEP] with a kind of {}", kinds.join(", "))
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| wanted());
        let (rest, step) = match text.split_once('@') {
            Some((rest, step)) => (rest, Some(number(step)?)),
            None => (text, None),
        };
        let (name, rank) = match rest.split_once(':') {
            Some((name, rank)) => (name, Some(u32::try_from(number(rank)?).map_err(|_| wanted())?)),
            None => (rest, None),
        };
        let kind = KINDS.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind).ok_or_else(wanted)?;
        if rank.is_some() && matches!(kind, Kind::DiskFull | Kind::TornCheckpoint) {
            return Err(format!("`{text}`: {name} strikes nobody in particular; leave the rank out"));
        }
        Ok(Fault { kind, rank, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_read_as_they_print() {
        for text in ["kill-worker:1@20", "kill-server@3,kill-server@3", "stop-worker:0@1,disk-full@2,torn-checkpoint@9"]
        {
            let chaos = Chaos::new(text, "", 7).unwrap();
            assert_eq!(chaos.faults_text(), text);
        }
        let chaos = Chaos::new("kill-worker, kill-server:1", "5s", 7).unwrap();
        assert_eq!(
            (chaos.faults_text().as_str(), chaos.mtbf),
            ("kill-worker,kill-server:1", Some(Duration::from_secs(5)))
        );
        for (faults, mtbf, why) in [
            ("kill-worker", "", "says no time"),
            ("kill-worker@3", "5s", "comes at a step"),
            ("kill-wrker@3", "", "with a kind of kill-worker,"),
            ("kill-worker:x@3", "", "must be KIND"),
            ("disk-full:1@3", "", "strikes nobody in particular"),
            ("kill-worker", "7", "must be a time"),
            ("", "", "must be KIND"),
        ] {
            let problem = Chaos::new(faults, mtbf, 0).unwrap_err();
            assert!(problem.contains(why), "{faults} {mtbf}: {problem}");
        }
    }

    #[test]
    fn random_faults_repeat_and_have_their_mean() {
        let chaos = Chaos::new("kill-worker,kill-server", "4s", 3).unwrap();
        assert_eq!(chaos.at_random(5), chaos.clone().at_random(5));
        let all: Vec<_> = (0..4000).filter_map(|nth| chaos.at_random(nth)).collect();
        let mean = all.iter().map(|(_, wait)| wait.as_secs_f64()).sum::<f64>() / 4000.0;
        let workers = all.iter().filter(|(fault, _)| fault.kind == Kind::KillWorker).count();
        assert!((3.7..4.3).contains(&mean) && (1850..2150).contains(&workers), "{mean} {workers}");
        let victims: std::collections::BTreeSet<_> = (0..100).map(|nth| chaos.victim(nth, 3)).collect();
        assert_eq!(victims.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
