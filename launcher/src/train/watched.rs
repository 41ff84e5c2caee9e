//! Those who look at a run: they begin with it, end with it, and hold up nothing of it.

use std::{path::Path, time::Instant};

use convoy_proto::{config::Config, trace};

use super::{Session, pulse::Pulse};
use crate::{
    coordinator::service::CoordinatorService,
    outcome::Failure,
    run_dir::RunDir,
    watch::{
        exports::Exports,
        trace::{Takers, Trace},
        web::{Dashboard, Page},
    },
};

/// What is taken before there is a run, so that whatever cannot be had is told first.
pub struct Ready {
    page: Option<Page>,
    takers: Takers,
}

/// Those who look.
#[derive(Debug)]
pub struct Watched {
    /// What the run tells of itself.
    pub pulse: Pulse,
    /// The page in the browser, if there is one.
    dashboard: Option<Dashboard>,
    /// What is left for other programs.
    exports: Option<Exports>,
    /// Where processes spend their time, if that is asked for.
    trace: Option<Trace>,
    /// When the last step was made.
    stepped: Instant,
}

impl Ready {
    /// Takes what a configuration asks for.
    ///
    /// # Errors
    /// An address or a file that cannot be had.
    pub fn new(config: &Config) -> Result<Ready, Failure> {
        Ok(Ready { page: Page::of_run(&config.watch)?, takers: Takers::of_run(config)? })
    }

    /// A run begins.
    ///
    /// # Errors
    /// There are no threads.
    pub fn begin(self, config: &Config, run_dir: &RunDir, service: &CoordinatorService) -> Result<Watched, Failure> {
        let trace = self.takers.begin(config.run_id())?;
        trace.iter().for_each(|trace| service.trace(trace.sink()));
        let run: &Path = run_dir.path();
        Ok(Watched {
            pulse: Pulse::new(run_dir.replacer()),
            dashboard: self.page.map(|page| page.show(run)).transpose()?,
            exports: Some(Exports::begin(&config.watch, run)),
            trace,
            stepped: Instant::now(),
        })
    }
}

impl Watched {
    /// Where the page is, if there is one.
    pub fn dashboard(&self) -> Option<String> {
        self.dashboard.as_ref().map(Dashboard::told)
    }

    /// The next step begins now.
    pub fn begins(&mut self) {
        self.stepped = Instant::now();
    }

    /// A step is made.
    pub fn stepped(&mut self, step: u64) {
        let (start, now) = (self.stepped, Instant::now());
        self.stepped = now;
        trace::past(("step", 0, step), start, now - start);
    }
}

impl Session {
    /// What is left for other programs is whole now.
    pub(super) fn end_watching(&mut self) {
        self.watched.exports.take();
        self.watched.trace.take();
    }
}
