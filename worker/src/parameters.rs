//! Between a burn module and the parameter space: the manifest, values out, values in, gradients out.
//!
//! A tensor is known by its `ParamId` within a process and by its module path outside. Tied tensors share an id and are
//! one entry, at the path where they are met first.

use std::collections::{HashMap, HashSet};

use burn::{
    Dispatch,
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{Tensor, Transaction, backend::AutodiffBackend},
};
use convoy_proto::{
    manifest::{Manifest, TensorRole},
    sum,
};

use crate::task::samples::Place;

mod buffers;
mod values;

pub use values::Values;

/// The values of every tensor of a manifest, in its order; tensors that do not take part are empty.
pub type Tensors = Vec<Values>;

/// Whether no value is infinite or NaN.
pub fn are_finite(tensors: &[Values]) -> bool {
    tensors.iter().all(|values| sum::all_finite(values))
}

/// A model's manifest, and which of its parameters is which entry.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The manifest.
    pub manifest: Manifest,
    entries: HashMap<ParamId, usize>,
    /// By entry: how many parameters share it.
    uses: Vec<usize>,
}

impl Layout {
    /// Reads off a model on an autodiff device, which initialises it. Tensors whose name is `frozen` are not trained.
    ///
    /// # Errors
    /// A model without parameters, in words.
    pub fn of<M: Module<Dispatch>>(model: &M, frozen: impl Fn(&str) -> bool) -> Result<Layout, String> {
        let buffers = buffers::find(model);
        let mut scribe =
            Scribe { path: Vec::new(), tensors: Vec::new(), entries: HashMap::new(), uses: Vec::new(), buffers };
        model.visit(&mut scribe);
        for (name, _, role) in &mut scribe.tensors {
            if *role == TensorRole::Trainable && frozen(name) {
                *role = TensorRole::Frozen;
            }
        }
        let manifest = Manifest::new(scribe.tensors).map_err(|error| error.to_string())?;
        Ok(Layout { manifest, entries: scribe.entries, uses: scribe.uses })
    }

    /// The model's values.
    pub fn values<M: Module<Dispatch>>(&self, model: &M) -> Tensors {
        let mut reader = Reader { entries: &self.entries, order: Vec::new(), transaction: Transaction::default() };
        model.visit(&mut reader);
        reader.read(self.manifest.tensors().len()).0
    }

    /// What a pass left, read from the device at once with `extra`'s value: gradients of trainable tensors, zeros where
    /// there is none; of buffers, if a `settled` model and a weight are given, its values times the weight.
    pub fn gradients<M: Module<Dispatch>>(
        &self,
        model: &M,
        gradients: &mut <Dispatch as AutodiffBackend>::Gradients,
        settled: Option<(M, f64)>,
        extra: Tensor<Dispatch, 1>,
    ) -> (Tensors, f32) {
        let transaction = Transaction::default().register(extra);
        let reader = Reader { entries: &self.entries, order: Vec::new(), transaction };
        let mut collector = Collector { reader, gradients, manifest: &self.manifest };
        model.visit(&mut collector);
        let mut reader = collector.reader;
        if let Some((settled, _)) = &settled {
            settled.visit(&mut BufferReader { reader: &mut reader, manifest: &self.manifest });
        }
        let (mut tensors, extra) = reader.read(self.manifest.tensors().len());
        for (values, tensor) in tensors.iter_mut().zip(self.manifest.tensors()) {
            if let (TensorRole::Buffer, Some((_, weight))) = (tensor.role, &settled) {
                values.iter_mut().for_each(|value| *value *= *weight as f32);
            }
            if values.is_empty() && tensor.role == TensorRole::Trainable {
                *values = vec![0.0; tensor.elements() as usize].into();
            }
        }
        (tensors, extra)
    }

    /// The model with other values, in `place`. Tensors that are empty stay as they are.
    pub fn load<M: Module<Dispatch>>(&self, model: M, values: Tensors, place: &Place) -> M {
        model.map(&mut Loader { entries: &self.entries, uses: self.uses.clone(), values, place })
    }
}

/// Writes the manifest.
struct Scribe {
    path: Vec<String>,
    tensors: Vec<(String, Vec<u64>, TensorRole)>,
    entries: HashMap<ParamId, usize>,
    uses: Vec<usize>,
    buffers: HashSet<ParamId>,
}

impl ModuleVisitor<Dispatch> for Scribe {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Dispatch, D>>) {
        if let Some(entry) = self.entries.get(&param.id) {
            self.uses[*entry] += 1;
            return;
        }
        let shape = param.lazy_shape().iter().map(|dim| *dim as u64).collect();
        let role = match (param.val().is_require_grad(), self.buffers.contains(&param.id)) {
            (true, _) => TensorRole::Trainable,
            (false, true) => TensorRole::Buffer,
            (false, false) => TensorRole::Frozen,
        };
        self.entries.insert(param.id, self.tensors.len());
        self.uses.push(1);
        self.tensors.push((self.path.join("."), shape, role));
    }
}

/// Reads tensors off the device in one transaction.
struct Reader<'a> {
    entries: &'a HashMap<ParamId, usize>,
    order: Vec<usize>,
    transaction: Transaction<Dispatch>,
}

impl Reader<'_> {
    fn add<const D: usize>(&mut self, id: ParamId, tensor: Tensor<Dispatch, D>) {
        if let Some(entry) = self.entries.get(&id) {
            self.order.push(*entry);
            let transaction = std::mem::take(&mut self.transaction);
            self.transaction = transaction.register(tensor);
        }
    }

    /// The tensors by entry, those met twice added up, and the value that was registered ahead of them, if any.
    fn read(self, entries: usize) -> (Tensors, f32) {
        let mut data = self.transaction.execute().into_iter();
        let ahead = data.len() - self.order.len();
        let extra = data.by_ref().take(ahead).next().map_or(0.0, |data| Values::read(data)[0]);
        let mut tensors = vec![Values::default(); entries];
        for (entry, data) in self.order.into_iter().zip(data) {
            let values = Values::read(data);
            if tensors[entry].is_empty() {
                tensors[entry] = values;
            } else {
                sum::add(&mut tensors[entry], &values);
            }
        }
        (tensors, extra)
    }
}

impl ModuleVisitor<Dispatch> for Reader<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Dispatch, D>>) {
        let met = self.entries.get(&param.id).is_some_and(|entry| self.order.contains(entry));
        if !met {
            self.add(param.id, param.val());
        }
    }
}

struct Collector<'a> {
    reader: Reader<'a>,
    gradients: &'a mut <Dispatch as AutodiffBackend>::Gradients,
    manifest: &'a Manifest,
}

impl ModuleVisitor<Dispatch> for Collector<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Dispatch, D>>) {
        let entry = self.reader.entries.get(&param.id);
        if entry.is_none_or(|entry| self.manifest.tensors()[*entry].role != TensorRole::Trainable) {
            return;
        }
        // Taken out, so that nobody else holds it and reading it copies nothing.
        if let Some(gradient) = param.val().grad_remove(self.gradients) {
            self.reader.add(param.id, gradient);
        }
    }
}

/// Reads the buffers of a model that is off the autodiff device.
struct BufferReader<'a, 'b> {
    reader: &'a mut Reader<'b>,
    manifest: &'a Manifest,
}

impl ModuleVisitor<Dispatch> for BufferReader<'_, '_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Dispatch, D>>) {
        let entry = self.reader.entries.get(&param.id);
        if entry.is_some_and(|entry| self.manifest.tensors()[*entry].role == TensorRole::Buffer) {
            self.reader.add(param.id, param.val());
        }
    }
}

struct Loader<'a> {
    entries: &'a HashMap<ParamId, usize>,
    uses: Vec<usize>,
    values: Tensors,
    place: &'a Place,
}

impl ModuleMapper<Dispatch> for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Dispatch, D>>) -> Param<Tensor<Dispatch, D>> {
        let Some(entry) = self.entries.get(&param.id).copied() else { return param };
        if self.values[entry].is_empty() {
            return param;
        }
        self.uses[entry] -= 1;
        let is_last = self.uses[entry] == 0;
        let values = if is_last { std::mem::take(&mut self.values[entry]) } else { self.values[entry].clone() };
        let (shape, id) = (param.lazy_shape().dims(), param.id);
        param.transform_for_load(self.place.floats::<D>(values, shape), id)
    }
}
