//! Every key of the configuration, with its kind and meaning: what is refused, suggested and documented.

/// What a key's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number, not negative.
    Count,
    /// A whole number of steps, or a time.
    StepsOrTime,
    /// `auto` or a whole number.
    CountOrAuto,
    /// A number.
    Number,
    /// A list of whole numbers.
    Counts,
    /// True or false.
    Flag,
    /// A list of texts.
    Texts,
    /// A list of tables.
    Tables,
}

impl Kind {
    /// The kind, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Count => "a whole number, not negative",
            Kind::StepsOrTime => "a number of steps, or a time such as \"30s\"",
            Kind::CountOrAuto => "`auto` or a whole number, not negative",
            Kind::Number => "a number",
            Kind::Counts => "a list of whole numbers such as [512, 512]",
            Kind::Flag => "true or false",
            Kind::Texts => "a list of texts such as [\"*.bias\", \"*norm*\"]",
            Kind::Tables => "a list of tables such as [{ pattern = \"head.*\", lr_factor = 0.1 }]",
        }
    }
}

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its path, dots between the parts.
    pub path: &'static str,
    /// What its value must be.
    pub kind: Kind,
    /// What it does.
    pub help: &'static str,
}

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("CONVOY_{}", self.path.replace('.', "_").to_uppercase())
    }
}

const fn key(path: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { path, kind, help }
}

/// All keys.
pub const KEYS: &[Key] = &[
    key("name", Kind::Text, "name of the run: its folder below run_dir"),
    key("run_dir", Kind::Text, "root of runs"),
    key("workers", Kind::CountOrAuto, "worker processes; auto is one a GPU, or one on the CPU"),
    key(
        "min_workers",
        Kind::Count,
        "worker processes that must be alive, or about to be started again, for the run to go on; all by default",
    ),
    key(
        "local_workers",
        Kind::Count,
        "worker processes that the coordinator's machine runs; the rest wait for `launcher join`; all by default",
    ),
    key(
        "local_servers",
        Kind::Count,
        "server processes that the coordinator's machine runs; the rest wait for `launcher join`; all by default",
    ),
    key("max_workers", Kind::Count, "worker processes that `launcher scale` may ask for; 4096 by default"),
    key("max_restarts", Kind::Count, "how often each worker or server that dies is started again"),
    key("servers", Kind::Count, "shards of the parameters, each on a server process of its own"),
    key("replicas", Kind::Count, "further servers that hold each shard, too, so that one may die: 0 or 1"),
    key("mode", Kind::Text, "when gradients are aggregated: sync, async, ssp or local"),
    key(
        "task",
        Kind::Text,
        "what is trained: cnn, mlp, regression, resnet, gpt or synthetic; what suits the data by default",
    ),
    key(
        "data",
        Kind::Text,
        "what it is trained on: digits, mnist:DIR, cifar10:DIR, images:DIR, csv:FILE, parquet:FILE, text:PATH",
    ),
    key("backend", Kind::Text, "auto, cuda, wgpu or cpu"),
    key("steps", Kind::Count, "steps to train; excludes epochs"),
    key("epochs", Kind::Count, "passes over the training data; excludes steps"),
    key("batch_size", Kind::Count, "samples per step, over all workers"),
    key("slices", Kind::Count, "parts of a step's batch; the number of workers by default"),
    key(
        "grad_accum",
        Kind::Count,
        "multiplies batch_size and slices: each worker computes so many parts a step, one after the other",
    ),
    key(
        "last_batch",
        Kind::Text,
        "what becomes of an epoch's samples that fill no batch: ragged (a smaller one), drop or wrap (filled up)",
    ),
    key("seed", Kind::Count, "seed of everything random"),
    key("eval_every", Kind::Count, "steps between evaluations; 0 evaluates at the end only"),
    key(
        "eval_samples",
        Kind::Count,
        "held-out samples that an evaluation scores at most, evenly spaced; 0 is no limit",
    ),
    key("patience", Kind::Count, "evaluations in a row without a lower loss after which training ends; 0 is no limit"),
    key("keep_best", Kind::Flag, "keep the parameters with the lowest held-out loss, too"),
    key("precision", Kind::Text, "what workers compute with: f32, bf16 or f16; servers keep f32"),
    key("loss_scale", Kind::Number, "f16: what the loss is multiplied by at first; a power of two"),
    key(
        "max_skipped",
        Kind::Count,
        "steps in a row that may be skipped as not finite before the run counts as diverged",
    ),
    key(
        "checkpoint.every",
        Kind::StepsOrTime,
        "steps between checkpoints, or time such as 30s or 10m; 0 writes them only when the run is told to stop",
    ),
    key(
        "checkpoint.to",
        Kind::Text,
        "directory, or URL of an object store (s3://, gs://, az://), below which checkpoints are kept under the run's name",
    ),
    key("checkpoint.keep_last", Kind::Count, "checkpoints that are kept, the newest"),
    key("chaos.faults", Kind::Text, "testing aid: faults on purpose, KIND[:RANK]@STEP, commas between them"),
    key("chaos.mtbf", Kind::Text, "testing aid: mean time between faults that come at random, such as 5s"),
    key("chaos.seed", Kind::Count, "testing aid: seed of the times and victims of faults"),
    key("slow_worker", Kind::Text, "testing aid: RANK|any:DELAY[@P] adds DELAY to a step, with probability P"),
    key(
        "listen",
        Kind::Text,
        "address of the coordinator, port 0 takes a free one; servers listen there, too; off loopback with certs only",
    ),
    key("advertise_addr", Kind::Text, "name or address that others reach this machine at, if it is not that of listen"),
    key("certs", Kind::Text, "directory with ca.crt, tls.crt, tls.key and token; see `launcher certs`"),
    key(
        "transport",
        Kind::Text,
        "how tensors get from process to process: auto (shared memory on one machine, else connections), shm or grpc",
    ),
    key(
        "codec",
        Kind::Text,
        "how gradients are pushed: f32 as they are, bf16, f16, int8, or topk:SHARE, the largest elements only, such as topk:0.01",
    ),
    key("insecure", Kind::Flag, "let anybody call who reaches a process off loopback"),
    key("consistency.quorum", Kind::Count, "sync: slices that make a commit; all by default"),
    key("consistency.backup_workers", Kind::Count, "sync: workers that a step need not wait for"),
    key("consistency.max_staleness", Kind::Count, "ssp: steps that a worker may be ahead of the slowest"),
    key(
        "consistency.staleness_lr",
        Kind::Flag,
        "async, ssp: divide the learning rate by the commits since the gradient's parameters",
    ),
    key(
        "consistency.compensation",
        Kind::Number,
        "async, ssp: how strongly stale gradients are corrected for the change since; 0 is off",
    ),
    key(
        "consistency.overlap",
        Kind::Flag,
        "async, ssp: compute a slice while the last one is on its way; true unless there is compensation",
    ),
    key("consistency.local_steps", Kind::Count, "local: steps that each slice makes by itself between two commits"),
    key("consistency.outer_lr", Kind::Number, "local: learning rate of the outer optimizer"),
    key("consistency.outer_momentum", Kind::Number, "local: Nesterov momentum of the outer optimizer"),
    key("consistency.inner_state", Kind::Text, "local: whether inner optimizers start each round fresh, or keep"),
    key("input.test_size", Kind::Number, "share that is held out where the source has no test part"),
    key("input.label", Kind::Text, "tables: the column to predict, by name or index from 0; the last one by default"),
    key("input.drop", Kind::Texts, "tables: columns to leave out, by name or index from 0"),
    key("input.missing", Kind::Text, "tables: what to do about an empty cell: refuse or mean"),
    key("input.delimiter", Kind::Text, "csv: what separates cells, one character or tab; auto by default"),
    key("input.header", Kind::Text, "csv: whether the first line names the columns: auto, yes or no"),
    key("input.tokenizer", Kind::Text, "text: a tokenizer.json; bytes are the tokens by default"),
    key("input.image_size", Kind::Count, "images: height and width that pictures are brought to"),
    key("optimizer.name", Kind::Text, "sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, lamb or lion"),
    key("optimizer.lr", Kind::Number, "highest learning rate"),
    key("optimizer.momentum", Kind::Number, "momentum and nesterov: share of the past that is kept"),
    key("optimizer.alpha", Kind::Number, "rmsprop: decay of the gradient's square"),
    key("optimizer.beta1", Kind::Number, "adam, adamw, lamb, lion: decay of the gradient's mean"),
    key("optimizer.beta2", Kind::Number, "adam, adamw, lamb: decay of the gradient's square; lion: of its mean"),
    key("optimizer.epsilon", Kind::Number, "adagrad, rmsprop, adam, adamw, lamb: keeps the quotient finite"),
    key("optimizer.weight_decay", Kind::Number, "weight decay; decoupled for adamw, lamb and lion"),
    key("optimizer.no_decay", Kind::Texts, "patterns of the names of tensors without weight decay"),
    key("optimizer.clip_norm", Kind::Number, "largest L2 norm of the mean gradient; 0 is no limit"),
    key("optimizer.clip_value", Kind::Number, "largest magnitude of an element of the mean gradient; 0 is no limit"),
    key(
        "optimizer.ema",
        Kind::Number,
        "decay of an average of the weights, which is scored and saved, too; 0 keeps none",
    ),
    key("optimizer.groups", Kind::Tables, "for tensors by name pattern: lr_factor, weight_decay, frozen"),
    key("schedule.name", Kind::Text, "constant, warmup, cosine, linear, step, inverse_sqrt or one_cycle"),
    key("schedule.unit", Kind::Text, "what the schedule counts: step or epoch"),
    key("schedule.warmup", Kind::Count, "units over which the rate rises from near 0"),
    key("schedule.min_factor", Kind::Number, "cosine, linear, one_cycle: share of the rate that it falls to"),
    key("schedule.every", Kind::Count, "step: units between two changes; a third of the run by default"),
    key("schedule.factor", Kind::Number, "step: what the rate is multiplied by"),
    key("model.hidden", Kind::Counts, "cnn, mlp, regression: widths of the hidden dense layers; [] is the task's own"),
    key(
        "model.channels",
        Kind::Counts,
        "cnn: channels of the two convolutions; resnet: of the stages; [] is the task's own",
    ),
    key("model.blocks", Kind::Counts, "resnet: residual blocks in each stage; [] is the task's own"),
    key("model.stem", Kind::Text, "resnet: small for pictures like CIFAR's, large for ones like ImageNet's"),
    key("model.layers", Kind::Count, "gpt: transformer blocks"),
    key("model.width", Kind::Count, "gpt: width"),
    key("model.heads", Kind::Count, "gpt: attention heads; they divide the width"),
    key("model.context", Kind::Count, "gpt: tokens that are seen at once"),
    key("model.dropout", Kind::Number, "gpt, mlp, regression: share of activations dropped while training"),
    key("model.positions", Kind::Text, "gpt: learned or rotary"),
    key("timeouts.heartbeat_ms", Kind::Count, "milliseconds between heartbeats"),
    key("timeouts.lease_ms", Kind::Count, "milliseconds without a heartbeat until a member is lost"),
    key("timeouts.start_ms", Kind::Count, "milliseconds until all members must have joined"),
    key(
        "timeouts.restart_ms",
        Kind::Count,
        "milliseconds before a process is started again; each time twice as long, up to 30 s",
    ),
    key("timeouts.stop_ms", Kind::Count, "milliseconds that a run has to end in after the first request to stop"),
    key("timeouts.step_ms", Kind::Count, "milliseconds without a committed step until the run gives up"),
    key("watch.view", Kind::Text, "what a terminal shows: auto (a live view) or lines"),
    key("watch.log_format", Kind::Text, "what the launcher's lines look like: text or json"),
    key("watch.dashboard", Kind::Text, "a page in the browser: off, on (on loopback), or IP:PORT"),
    key("watch.dashboard_token", Kind::Text, "file with the token that lets somebody stop or scale runs there"),
    key("watch.tensorboard", Kind::Flag, "write event files for TensorBoard"),
    key("watch.dvc", Kind::Flag, "write metrics, parameters and plots for DVC"),
    key("watch.otlp", Kind::Text, "an OpenTelemetry collector to send the trace to, such as http://127.0.0.1:4317"),
    key("watch.trace", Kind::Text, "file to write a trace of all processes to, for Perfetto"),
];

/// The key with this path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The entry of `known` most like `given`, if one is like it at all.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(given, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
