//! Every key of the configuration, with its kind and meaning: what is refused, suggested and documented.

/// What a key's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number, not negative.
    Count,
    /// `auto` or a whole number.
    CountOrAuto,
    /// A number.
    Number,
    /// A list of whole numbers.
    Counts,
}

impl Kind {
    /// The kind, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Count => "a whole number, not negative",
            Kind::CountOrAuto => "`auto` or a whole number, not negative",
            Kind::Number => "a number",
            Kind::Counts => "a list of whole numbers such as [512, 512]",
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
    key("servers", Kind::Count, "parameter server processes"),
    key("mode", Kind::Text, "when gradients are aggregated: sync"),
    key("task", Kind::Text, "what is trained: cnn or mlp"),
    key("data", Kind::Text, "what it is trained on: digits or mnist:DIR"),
    key("backend", Kind::Text, "auto, cuda, wgpu or cpu"),
    key("steps", Kind::Count, "steps to train; excludes epochs"),
    key("epochs", Kind::Count, "passes over the training data; excludes steps"),
    key("batch_size", Kind::Count, "samples per step, over all workers"),
    key("slices", Kind::Count, "parts of a step's batch; the number of workers by default"),
    key("seed", Kind::Count, "seed of everything random"),
    key("eval_every", Kind::Count, "steps between evaluations; 0 evaluates at the end only"),
    key("listen", Kind::Text, "address of the coordinator, loopback; port 0 takes a free one"),
    key("optimizer.name", Kind::Text, "sgd, momentum, nesterov or adamw"),
    key("optimizer.lr", Kind::Number, "learning rate"),
    key("optimizer.momentum", Kind::Number, "momentum and nesterov: share of the past that is kept"),
    key("optimizer.beta1", Kind::Number, "adamw: decay of the gradient's mean"),
    key("optimizer.beta2", Kind::Number, "adamw: decay of the gradient's square"),
    key("optimizer.epsilon", Kind::Number, "adamw: keeps the quotient finite"),
    key("optimizer.weight_decay", Kind::Number, "weight decay, decoupled for adamw"),
    key("optimizer.clip_norm", Kind::Number, "largest L2 norm of the mean gradient; 0 is no limit"),
    key("model.hidden", Kind::Counts, "widths of the hidden dense layers; [] is the task's own"),
    key("model.channels", Kind::Counts, "channels of the two convolutions; [] is the task's own"),
    key("timeouts.heartbeat_ms", Kind::Count, "milliseconds between heartbeats"),
    key("timeouts.lease_ms", Kind::Count, "milliseconds without a heartbeat until a member is lost"),
    key("timeouts.start_ms", Kind::Count, "milliseconds until all members must have joined"),
    key("timeouts.step_ms", Kind::Count, "milliseconds without a committed step until the run gives up"),
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
