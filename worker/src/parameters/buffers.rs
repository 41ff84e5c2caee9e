//! Which tensors of a module are running statistics.
//!
//! burn shows a `RunningState` to visitors as a parameter without gradient, just like one that is frozen. They differ in
//! one thing: clones of a module share a running state, and mapping a clone changes it for all of them. So a clone is
//! mapped to other values, and what has changed in the original is a running state.

use std::collections::{HashMap, HashSet};

use burn::{
    Dispatch,
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{Tensor, TensorData},
};

/// The ids of a module's running statistics, which are left as they were.
pub fn find<M: Module<Dispatch>>(model: &M) -> HashSet<ParamId> {
    let before = Snapshot::of(model);
    if before.values.is_empty() {
        return HashSet::new();
    }
    let _ = model.clone().map(&mut Nudge);
    let after = Snapshot::of(model);
    let _ = model.clone().map(&mut Restore(&before));
    before.values.iter().filter(|(id, values)| after.values.get(id) != Some(values)).map(|(id, _)| *id).collect()
}

/// The values of tensors without gradient.
#[derive(Default)]
struct Snapshot {
    values: HashMap<ParamId, TensorData>,
}

impl Snapshot {
    fn of<M: Module<Dispatch>>(model: &M) -> Snapshot {
        let mut snapshot = Snapshot::default();
        model.visit(&mut snapshot);
        snapshot
    }
}

impl ModuleVisitor<Dispatch> for Snapshot {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Dispatch, D>>) {
        if !param.val().is_require_grad() {
            self.values.insert(param.id, param.val().into_data());
        }
    }
}

struct Nudge;

impl ModuleMapper<Dispatch> for Nudge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Dispatch, D>>) -> Param<Tensor<Dispatch, D>> {
        if param.val().is_require_grad() {
            return param;
        }
        Param::initialized(param.id, param.val() + 1.0)
    }
}

struct Restore<'a>(&'a Snapshot);

impl ModuleMapper<Dispatch> for Restore<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Dispatch, D>>) -> Param<Tensor<Dispatch, D>> {
        match self.0.values.get(&param.id) {
            None => param,
            Some(values) => {
                let device = param.val().device();
                Param::initialized(param.id, Tensor::from_data(values.clone(), &device))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::{
        DispatchDevice,
        nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig},
        tensor::backend::Backend,
    };

    use super::*;
    use crate::device::{DeviceName, open};

    #[derive(Module, Debug)]
    struct Both<B: Backend> {
        norm: BatchNorm<B>,
        frozen: Linear<B>,
        trained: Linear<B>,
    }

    #[test]
    fn a_running_state_is_told_from_a_frozen_parameter() {
        let device = DispatchDevice::autodiff(open(DeviceName::Cpu).unwrap());
        let linear = || LinearConfig::new(2, 3).with_bias(false).init(&device);
        let model: Both<Dispatch> =
            Both { norm: BatchNormConfig::new(4).init(&device), frozen: linear().no_grad(), trained: linear() };
        let before = Snapshot::of(&model).values;
        let found = find(&model);
        assert_eq!((before.len(), found.len()), (3, 2));
        assert!(!found.contains(&model.frozen.weight.id));
        assert_eq!(Snapshot::of(&model).values, before, "nothing has changed");
    }
}
