//! Before anything is started: the configuration, the data, the model's shape and the devices, all checked.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use convoy_proto::{
    config::{Backend, Config, Length, RawConfig, Watch},
    ids::Role,
    layout::Layout,
    manifest::{Manifest, TensorRole},
    order::DataOrder,
    process,
    schedule::Horizon,
    transport::Security,
};
use convoy_worker::{
    data::{self, DataInfo, Dataset, Report, Source},
    device::DeviceName,
    step::{horizon, order_of},
    task::{self, TaskEntry},
};

use crate::{
    checkpoints::Checkpoints,
    children::ChildSpec,
    coordinator::handshake::Reference,
    eval, links, machine,
    outcome::Failure,
    plan::{self, Devices, WorkerPlan},
    probe,
    progress::Shown,
    remote::Remotes,
    run_dir::RunDir,
    settings,
};

/// A run that is ready to start.
pub struct Prepared {
    /// The configuration, complete.
    pub config: Config,
    /// The data.
    pub data: Arc<dyn Dataset>,
    /// The model's tensors.
    pub manifest: Manifest,
    /// What is noteworthy in the data.
    pub report: Report,
    /// What this run's processes show to others, and ask of them.
    pub security: Security,
    /// The run's length.
    pub horizon: Horizon,
    /// Where workers compute.
    pub devices: Devices,
    /// Machines that ssh reaches.
    pub remotes: Remotes,
    workers: Vec<WorkerPlan>,
    cores: usize,
    /// Whether a person chose the name; otherwise another is as good.
    is_named: bool,
}

/// Samples of each part that are looked at before training.
const INSPECTED: u32 = 10_000;

/// Resolves and checks everything that can be without starting a process of the cluster.
pub fn prepare(mut raw: RawConfig, tasks: &[TaskEntry]) -> Result<Prepared, Failure> {
    let cores = machine::cores();
    let wanted = raw.backend()?;
    let source = settings::suit_task(&mut raw)?;
    // Checked before drivers are started, which takes a while.
    let mut config = raw.clone().resolve(1)?;
    let security = load_security(&config)?;
    let entry = task::find(tasks, &config.task)?;
    let data = data::open(&config, entry.wanted)?;
    let report = data::inspect(&*data, INSPECTED)?;
    let reports = if wanted == Backend::Cpu { Vec::new() } else { probe::probe() };
    let devices =
        plan::choose(wanted, &reports, cores).map_err(Failure::Environment)?.shared(machine::share_of_devices());
    config = Config { name: config.name, backend: devices.backend, ..raw.clone().resolve(devices.auto_workers())? };
    if raw.steps.is_none() && raw.epochs.is_none() {
        config.length = usual_length(source, &config, data.info().train);
    }
    // Written out, so that the run can be looked at from anywhere.
    config.data = data::absolute(&config.data);
    config.input.tokenizer = config.input.tokenizer.map(|path| data::absolute_path(&path));
    config.network.certs = config.network.certs.map(|certs| data::absolute_path(&certs));
    config.watch.dashboard_token = config.watch.dashboard_token.map(|file| data::absolute_path(&file));
    config.watch.trace = config.watch.trace.map(|file| data::absolute_path(&file));
    config.checkpoint.to =
        config.checkpoint.to.map(|to| if to.contains("://") { to } else { data::absolute_path(&to) });
    let is_named = !config.name.is_empty();
    if !is_named {
        config.name = free_name(&config);
    }
    let replica = entry.open(&config, data.info(), DeviceName::Cpu)?;
    let manifest = replica.manifest().clone();
    if manifest.tensors().iter().all(|tensor| tensor.role != TensorRole::Trainable) {
        return Err(Failure::Usage("`optimizer.groups`: every tensor is frozen, so there is nothing to train".into()));
    }
    config.optimizer.check_patterns(manifest.tensors().iter().map(|tensor| tensor.name.as_str()))?;
    let horizon = horizon(&config, data.info().train);
    let workers = devices.deal(config.local_workers, cores);
    let remotes = Remotes::default();
    Ok(Prepared { config, data, report, security, manifest, horizon, devices, remotes, workers, cores, is_named })
}

/// What a run shows to others, and asks of them: whoever makes one needs the secret, for others' tokens are checked with it.
fn load_security(config: &Config) -> Result<Security, Failure> {
    let security = process::load_security(config.network.certs_dir())?;
    match (&security.key, security.guard()) {
        (Some(_), None) => {
            let problem = "the token is one role's, but a launcher checks others' tokens, which takes the secret";
            Err(Failure::Usage(format!("{problem}: `launcher certs DIR` makes one, as DIR/token")))
        }
        _ => Ok(security),
    }
}

/// Small data need many passes: as many as make the source's least number of steps, within reason.
fn usual_length(source: &Source, config: &Config, train: u32) -> Length {
    let steps_per_epoch = order_of(config, train).steps_per_epoch();
    Length::Epochs(source.least_steps.div_ceil(steps_per_epoch).clamp(4, 200))
}

/// A name from task, data and time that no run has.
fn free_name(config: &Config) -> String {
    let data = config.data.split(':').next().unwrap_or_default();
    let stem = format!("{}-{data}-{}", config.task, jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"));
    let taken = |name: &String| PathBuf::from(&config.run_dir).join(name).exists();
    let numbered = (2..).map(|n| format!("{stem}-{n}"));
    std::iter::once(stem.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(stem)
}

impl Prepared {
    /// The run's directory; of one that begins with another's checkpoint, if that is given. A name that was not given is
    /// changed if another launcher took it in this second.
    pub fn create_run_dir(&mut self, begins_with: Option<&str>) -> Result<RunDir, Failure> {
        self.check_checkpoints()?;
        let config = &mut self.config;
        loop {
            match RunDir::create(&config.run_dir, &config.name, &config.to_toml(), begins_with) {
                Err(Failure::Usage(_)) if !self.is_named => config.name = free_name(config),
                made => return made,
            }
        }
    }

    /// Sees to it that a new run can keep its checkpoints where it is to, and that none of another are there.
    fn check_checkpoints(&self) -> Result<(), Failure> {
        let Some(to) = &self.config.checkpoint.to else { return Ok(()) };
        if !to.contains("://") {
            // Before training, and not at the first checkpoint.
            let there = std::fs::create_dir_all(to).and_then(|()| tempfile::tempfile_in(to));
            there
                .map_err(|problem| Failure::Environment(format!("--checkpoint-to: cannot write to {to}: {problem}")))?;
        }
        let checkpoints = Checkpoints::of_run(&self.config, &std::env::temp_dir())?;
        if checkpoints.are_none()? {
            return Ok(());
        }
        let name = &self.config.name;
        Err(Failure::Usage(format!(
            "`{to}` has checkpoints of a run {name} already; choose another --name, or begin with them: --resume {}",
            checkpoints.place().root()
        )))
    }

    /// What members are compared with.
    pub fn reference(&self) -> Reference {
        let DataInfo { fingerprint, form, .. } = self.data.info().clone();
        let (manifest, kind) = (self.manifest.clone(), eval::kind(&form));
        Reference { manifest, data_fingerprint: fingerprint, horizon: self.horizon, kind }
    }

    /// Plans for so many workers at least.
    pub fn make_room(&mut self, workers: u32) {
        if self.workers.len() < workers as usize {
            let planned = self.workers.len();
            self.workers.extend(self.devices.deal(workers, self.cores).drain(planned..));
        }
    }

    /// The order of the data.
    pub fn order(&self) -> DataOrder {
        order_of(&self.config, self.data.info().train)
    }

    /// What a person is shown of the run in a directory.
    pub fn shown(&self, run: &Path) -> Shown {
        let Watch { view, log_format, .. } = self.config.watch;
        let members = (self.config.workers as usize, Layout::of(&self.config).servers() as usize);
        Shown { run: run.into(), total: self.horizon.steps, members, view, format: log_format }
    }

    /// One line for people.
    pub fn headline(&self) -> String {
        let config = &self.config;
        let device = self.workers.first().map_or(&self.devices.devices[0], |worker| &worker.device);
        let plural = |n: u32, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let spares = if config.mode.is_dealt() { 0 } else { config.workers.saturating_sub(config.slices) };
        let servers = match Layout::of(config).servers() {
            servers if servers == config.servers => plural(servers, "server"),
            servers => format!("{} (each of {} twice)", plural(servers, "server"), plural(config.servers, "shard")),
        };
        let spares = if spares == 0 { String::new() } else { format!(" ({spares} of them spare)") };
        format!(
            "{}: {} parameters, {}{spares} on {} ({}), {}, {}, {} steps of {} samples",
            config.task,
            self.manifest.elements(),
            plural(config.workers, "worker"),
            config.backend,
            device.about,
            servers,
            config.mode,
            self.horizon.steps,
            config.batch_size,
        )
    }

    /// What `--dry-run` prints.
    pub fn describe(&self) -> String {
        let mut text = format!("# {}\n# {}\n", self.headline(), self.data.info().about);
        for warning in &self.report.warnings {
            text += &format!("# warning: {warning}\n");
        }
        for line in &self.devices.passed_over {
            text += &format!("# passed over {line}\n");
        }
        for (rank, worker) in self.workers.iter().enumerate() {
            let threads = worker.threads.map(|n| format!(", {n} threads")).unwrap_or_default();
            text += &format!("# worker {rank}: {} ({}){threads}\n", worker.device.name, worker.device.about);
        }
        for line in links::describe(&self.config, &links::links(&self.config, &self.manifest)).lines() {
            text += &format!("# {line}\n");
        }
        text + &format!("\n{}", self.config.to_toml())
    }

    /// The processes of the cluster.
    pub fn children(&self, run: &str, coordinator: &str, log: impl Fn(&str) -> PathBuf) -> Vec<ChildSpec> {
        let common = |rank: u32| {
            let rank = rank.to_string();
            ["--run", run, "--rank", &rank, "--coordinator", coordinator, "--supervised"].map(String::from).to_vec()
        };
        let network = &self.config.network;
        let listen = ["--listen".into(), SocketAddr::new(network.listen.ip(), 0).to_string()];
        let advertised = network.advertise_addr.iter().flat_map(|host| ["--advertise-addr".into(), host.clone()]);
        let listen: Vec<String> = listen.into_iter().chain(advertised).collect();
        let spec = |role: Role, rank: u32, more: Vec<String>| ChildSpec {
            role,
            rank,
            arguments: [common(rank), more].concat(),
            log: log(&format!("{role}-{rank}")),
        };
        let servers = (0..Layout::of(&self.config).servers()).map(|rank| {
            spec(Role::Server, rank, [listen.clone(), vec!["--threads".into(), self.cores.to_string()]].concat())
        });
        let workers = (0..).zip(&self.workers).map(|(rank, worker)| spec(Role::Worker, rank, worker.arguments()));
        servers.chain(workers).collect()
    }
}
