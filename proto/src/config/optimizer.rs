//! The optimizer: its rule, what it does to which tensor, and clipping.
//!
//! What a rule's keys are and what they are by default is one table, [`RULES`]; a key that a rule does not have is
//! refused.

use glob::Pattern;
use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{choice, decimal, number, value_error},
};

/// The moments of Adam and its kin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Decay of the mean.
    pub beta1: f32,
    /// Decay of the square.
    pub beta2: f32,
    /// Keeps the quotient finite.
    pub epsilon: f32,
}

/// The rule that turns a mean gradient into an update; the server's optimizers define each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Plain stochastic gradient descent.
    Sgd,
    /// With a velocity.
    Momentum {
        /// μ.
        momentum: f32,
    },
    /// With a velocity and a look ahead.
    Nesterov {
        /// μ.
        momentum: f32,
    },
    /// Divided by the root of all squares so far.
    Adagrad {
        /// Keeps the quotient finite.
        epsilon: f32,
    },
    /// Divided by the root of the mean square.
    RmsProp {
        /// Decay of the square.
        alpha: f32,
        /// Keeps the quotient finite.
        epsilon: f32,
    },
    /// Mean over root of the mean square; decay joins the gradient.
    Adam(Moments),
    /// Adam with decoupled weight decay.
    AdamW(Moments),
    /// AdamW's direction, scaled per tensor to the size of its parameters.
    Lamb(Moments),
    /// The sign of an interpolated mean.
    Lion {
        /// The mean's share in the direction.
        beta1: f32,
        /// Decay of the mean.
        beta2: f32,
    },
}

/// A rule's keys and their defaults; `None` where the rule has no such key.
struct RuleKeys {
    name: &'static str,
    lr: f64,
    weight_decay: f64,
    momentum: Option<f64>,
    alpha: Option<f64>,
    beta1: Option<f64>,
    beta2: Option<f64>,
    epsilon: Option<f64>,
}

const PLAIN: RuleKeys = RuleKeys {
    name: "sgd",
    lr: 0.1,
    weight_decay: 0.0,
    momentum: None,
    alpha: None,
    beta1: None,
    beta2: None,
    epsilon: None,
};

const ADAM: RuleKeys =
    RuleKeys { name: "adam", lr: 1e-3, beta1: Some(0.9), beta2: Some(0.999), epsilon: Some(1e-8), ..PLAIN };

const RULES: [RuleKeys; 9] = [
    PLAIN,
    RuleKeys { name: "momentum", lr: 0.05, momentum: Some(0.9), ..PLAIN },
    RuleKeys { name: "nesterov", lr: 0.05, momentum: Some(0.9), ..PLAIN },
    RuleKeys { name: "adagrad", lr: 0.02, epsilon: Some(1e-10), ..PLAIN },
    RuleKeys { name: "rmsprop", lr: 1e-3, alpha: Some(0.99), epsilon: Some(1e-8), ..PLAIN },
    ADAM,
    RuleKeys { name: "adamw", weight_decay: 0.01, ..ADAM },
    RuleKeys { name: "lamb", lr: 0.01, weight_decay: 0.01, epsilon: Some(1e-6), ..ADAM },
    RuleKeys { name: "lion", lr: 5e-4, weight_decay: 0.01, beta1: Some(0.9), beta2: Some(0.99), ..PLAIN },
];

/// The names of all rules.
pub fn rule_names() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|rule| rule.name)
}

impl Rule {
    /// The name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::Sgd => "sgd",
            Rule::Momentum { .. } => "momentum",
            Rule::Nesterov { .. } => "nesterov",
            Rule::Adagrad { .. } => "adagrad",
            Rule::RmsProp { .. } => "rmsprop",
            Rule::Adam(_) => "adam",
            Rule::AdamW(_) => "adamw",
            Rule::Lamb(_) => "lamb",
            Rule::Lion { .. } => "lion",
        }
    }

    /// Whether a step needs norms over whole tensors, which only the coordinator can form.
    pub fn is_layerwise(&self) -> bool {
        matches!(self, Rule::Lamb(_))
    }
}

/// A largest size of gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Gradients are left as they are.
    Off,
    /// The mean gradient's L2 norm, over all tensors.
    Norm(f64),
    /// The magnitude of each element of the mean gradient.
    Value(f32),
}

/// What is different for the tensors whose name fits a pattern.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Fits tensors' names; `*` stands for anything, `?` for one character.
    pub pattern: String,
    /// The learning rate is multiplied by this.
    pub lr_factor: f32,
    /// In place of the optimizer's.
    pub weight_decay: Option<f32>,
    /// Not trained at all.
    pub frozen: bool,
}

/// What the optimizer does to one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorSettings {
    /// The learning rate is multiplied by this.
    pub lr_factor: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Not trained at all.
    pub frozen: bool,
}

/// The optimizer and its settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// The rule.
    pub rule: Rule,
    /// The highest learning rate; the schedule lowers it.
    pub lr: f64,
    /// Added to the gradient as `decay·p`; decoupled for AdamW, LAMB and Lion.
    pub weight_decay: f32,
    /// Names of tensors that weight decay leaves alone.
    pub no_decay: Vec<String>,
    /// How gradients are clipped.
    pub clip: Clip,
    /// Decay of the average of the weights; none is kept without.
    pub ema: Option<f32>,
    /// The first whose pattern fits a tensor's name is the tensor's.
    pub groups: Vec<Group>,
}

fn fits(pattern: &str, name: &str) -> bool {
    Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(name))
}

impl Optimizer {
    /// What it does to the tensor of this name.
    pub fn for_tensor(&self, name: &str) -> TensorSettings {
        let exempt = self.no_decay.iter().any(|pattern| fits(pattern, name));
        let decay = if exempt { 0.0 } else { self.weight_decay };
        match self.groups.iter().find(|group| fits(&group.pattern, name)) {
            None => TensorSettings { lr_factor: 1.0, weight_decay: decay, frozen: false },
            Some(group) => TensorSettings {
                lr_factor: group.lr_factor,
                weight_decay: group.weight_decay.unwrap_or(decay),
                frozen: group.frozen,
            },
        }
    }

    /// The norm that gradients are clipped to.
    pub fn clip_norm(&self) -> Option<f64> {
        match self.clip {
            Clip::Norm(norm) => Some(norm),
            _ => None,
        }
    }

    /// Checks that every pattern fits a tensor of the model.
    ///
    /// # Errors
    /// A pattern that fits none; says what there is.
    pub fn check_patterns<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Result<(), ConfigError> {
        let groups = self.groups.iter().map(|group| ("optimizer.groups", &group.pattern));
        let mut all = groups.chain(self.no_decay.iter().map(|pattern| ("optimizer.no_decay", pattern)));
        let idle = all.find(|(_, pattern)| !names.clone().any(|name| fits(pattern, name)));
        let Some((key, pattern)) = idle else { return Ok(()) };
        let some: Vec<_> = names.take(6).collect();
        Err(value_error(key, format!("\"{pattern}\""), format!("fits no tensor; there are {}, …", some.join(", "))))
    }
}

/// The `[optimizer]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawOptimizer {
    pub name: Option<String>,
    pub lr: Option<f64>,
    pub momentum: Option<f64>,
    pub alpha: Option<f64>,
    pub beta1: Option<f64>,
    pub beta2: Option<f64>,
    pub epsilon: Option<f64>,
    pub weight_decay: Option<f64>,
    pub no_decay: Option<Vec<String>>,
    pub clip_norm: Option<f64>,
    pub clip_value: Option<f64>,
    pub ema: Option<f64>,
    pub groups: Option<Vec<RawGroup>>,
}

/// An entry of `optimizer.groups`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "see Group")]
pub struct RawGroup {
    pub pattern: String,
    pub lr_factor: Option<f64>,
    pub weight_decay: Option<f64>,
    pub frozen: Option<bool>,
}

fn pattern(key: &'static str, text: String) -> Result<String, ConfigError> {
    match Pattern::new(&text) {
        Ok(_) if !text.is_empty() => Ok(text),
        Ok(_) => Err(value_error(key, "\"\"", "an empty pattern fits nothing")),
        Err(problem) => Err(value_error(key, format!("\"{text}\""), problem.msg)),
    }
}

fn at_least_zero(key: &'static str, value: f64) -> Result<f64, ConfigError> {
    number(key, value, "at least 0", |x| x >= 0.0)
}

impl RawGroup {
    fn resolve(self) -> Result<Group, ConfigError> {
        const KEY: &str = "optimizer.groups";
        Ok(Group {
            pattern: pattern(KEY, self.pattern)?,
            lr_factor: at_least_zero(KEY, self.lr_factor.unwrap_or(1.0))? as f32,
            weight_decay: self.weight_decay.map(|decay| at_least_zero(KEY, decay)).transpose()?.map(|x| x as f32),
            frozen: self.frozen.unwrap_or(false),
        })
    }
}

impl RawOptimizer {
    /// Checks everything and fills in the rule's defaults.
    ///
    /// # Errors
    /// A value that is out of range or has no meaning for the rule.
    pub(super) fn resolve(self) -> Result<Optimizer, ConfigError> {
        let names: Vec<_> = rule_names().collect();
        let name = choice("optimizer.name", self.name.as_deref().unwrap_or("adamw"), &names)?;
        let keys = RULES.iter().find(|rule| rule.name == name).unwrap_or(&PLAIN);
        for (key, given, default) in [
            ("optimizer.momentum", self.momentum, keys.momentum),
            ("optimizer.alpha", self.alpha, keys.alpha),
            ("optimizer.beta1", self.beta1, keys.beta1),
            ("optimizer.beta2", self.beta2, keys.beta2),
            ("optimizer.epsilon", self.epsilon, keys.epsilon),
        ] {
            if let (Some(value), None) = (given, default) {
                return Err(value_error(key, value, format!("has no meaning for the optimizer `{name}`")));
            }
        }
        let share = |key, given: Option<f64>, default: Option<f64>| {
            let value = given.or(default).unwrap_or(0.0);
            number(key, value, "at least 0 and below 1", |x| (0.0..1.0).contains(&x)).map(|x| x as f32)
        };
        let ema = share("optimizer.ema", self.ema, None)?;
        Ok(Optimizer {
            rule: self.rule(keys, share)?,
            lr: number("optimizer.lr", self.lr.unwrap_or(keys.lr), "above 0", |x| x > 0.0)?,
            weight_decay: at_least_zero("optimizer.weight_decay", self.weight_decay.unwrap_or(keys.weight_decay))?
                as f32,
            clip: self.clip()?,
            ema: (ema > 0.0).then_some(ema),
            no_decay: all(self.no_decay, |text| pattern("optimizer.no_decay", text))?,
            groups: all(self.groups, RawGroup::resolve)?,
        })
    }

    fn rule(
        &self,
        keys: &RuleKeys,
        share: impl Fn(&'static str, Option<f64>, Option<f64>) -> Result<f32, ConfigError>,
    ) -> Result<Rule, ConfigError> {
        let momentum = share("optimizer.momentum", self.momentum, keys.momentum)?;
        let alpha = share("optimizer.alpha", self.alpha, keys.alpha)?;
        let beta1 = share("optimizer.beta1", self.beta1, keys.beta1)?;
        let beta2 = share("optimizer.beta2", self.beta2, keys.beta2)?;
        let epsilon = self.epsilon.or(keys.epsilon).unwrap_or(1.0);
        let epsilon = number("optimizer.epsilon", epsilon, "above 0", |x| x > 0.0)? as f32;
        let moments = Moments { beta1, beta2, epsilon };
        Ok(match keys.name {
            "momentum" => Rule::Momentum { momentum },
            "nesterov" => Rule::Nesterov { momentum },
            "adagrad" => Rule::Adagrad { epsilon },
            "rmsprop" => Rule::RmsProp { alpha, epsilon },
            "adam" => Rule::Adam(moments),
            "adamw" => Rule::AdamW(moments),
            "lamb" => Rule::Lamb(moments),
            "lion" => Rule::Lion { beta1, beta2 },
            _ => Rule::Sgd,
        })
    }

    fn clip(&self) -> Result<Clip, ConfigError> {
        let norm = at_least_zero("optimizer.clip_norm", self.clip_norm.unwrap_or(0.0))?;
        let value = at_least_zero("optimizer.clip_value", self.clip_value.unwrap_or(0.0))?;
        match (norm > 0.0, value > 0.0) {
            (true, true) => Err(value_error("optimizer.clip_value", value, "excludes `optimizer.clip_norm`")),
            (true, false) => Ok(Clip::Norm(norm)),
            (false, true) => Ok(Clip::Value(value as f32)),
            (false, false) => Ok(Clip::Off),
        }
    }
}

fn all<T, U>(list: Option<Vec<T>>, check: impl Fn(T) -> Result<U, ConfigError>) -> Result<Vec<U>, ConfigError> {
    list.unwrap_or_default().into_iter().map(check).collect()
}

impl From<&Group> for RawGroup {
    fn from(group: &Group) -> Self {
        RawGroup {
            pattern: group.pattern.clone(),
            lr_factor: Some(decimal(group.lr_factor)),
            weight_decay: group.weight_decay.map(decimal),
            frozen: Some(group.frozen),
        }
    }
}

impl From<&Optimizer> for RawOptimizer {
    fn from(optimizer: &Optimizer) -> Self {
        let (clip_norm, clip_value) = match optimizer.clip {
            Clip::Off => (Some(0.0), None),
            Clip::Norm(norm) => (Some(norm), None),
            Clip::Value(value) => (None, Some(decimal(value))),
        };
        let mut raw = RawOptimizer {
            name: Some(optimizer.rule.name().into()),
            lr: Some(optimizer.lr),
            weight_decay: Some(decimal(optimizer.weight_decay)),
            no_decay: Some(optimizer.no_decay.clone()),
            clip_norm,
            clip_value,
            ema: Some(optimizer.ema.map_or(0.0, decimal)),
            groups: Some(optimizer.groups.iter().map(Into::into).collect()),
            ..Default::default()
        };
        match optimizer.rule {
            Rule::Sgd => {}
            Rule::Momentum { momentum } | Rule::Nesterov { momentum } => raw.momentum = Some(decimal(momentum)),
            Rule::Adagrad { epsilon } => raw.epsilon = Some(decimal(epsilon)),
            Rule::RmsProp { alpha, epsilon } => {
                (raw.alpha, raw.epsilon) = (Some(decimal(alpha)), Some(decimal(epsilon)));
            }
            Rule::Lion { beta1, beta2 } => (raw.beta1, raw.beta2) = (Some(decimal(beta1)), Some(decimal(beta2))),
            Rule::Adam(moments) | Rule::AdamW(moments) | Rule::Lamb(moments) => {
                raw.beta1 = Some(decimal(moments.beta1));
                raw.beta2 = Some(decimal(moments.beta2));
                raw.epsilon = Some(decimal(moments.epsilon));
            }
        }
        raw
    }
}
