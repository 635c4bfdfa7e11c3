//! What is trained, as one flat buffer: parameters, gradients and both moments lie in tensors of one length, and the
//! model's variables are views of them. One all-reduce, one norm, one optimizer call per group.

use super::{
    buckets::{Buckets, Stretch},
    error::TrainerError,
    reducer::Reducer,
};
use crate::{
    collective::{Collective, CollectiveError},
    torch::shim::{self, AdamW},
};
use common::ids::Rank;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Every variable begins at a multiple of so many elements: a cache line.
const ALIGNMENT: i64 = 16;

/// How a variable is updated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The factor on the learning rate.
    pub lr_scale: f64,
}

/// What the trainer is told of a variable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// How it is updated.
    pub group: Group,
    /// How far it is from the input: deeper variables have their gradients earlier.
    pub depth: i64,
}

/// The groups of stage 2: no decay on vectors and scalars (biases, norms, class embedding, logit scale; as open_clip),
/// `layer_decay` to the power of the distance from the head on the learning rate (BEiT). `layer_id` gives 0 for the
/// embeddings, up to `layers` + 1 for the head.
pub fn clip_groups<F: Fn(&str) -> i64>(
    weight_decay: f64,
    layer_decay: f64,
    layers: i64,
    layer_id: F,
) -> impl Fn(&str, &Tensor) -> Place {
    move |name, variable| {
        let depth = layer_id(name);
        let group = Group {
            weight_decay: if variable.dim() < 2 { 0.0 } else { weight_decay },
            lr_scale: layer_decay.powi(i32::try_from(layers + 1 - depth).unwrap_or(0)),
        };
        Place { group, depth }
    }
}

#[derive(Debug)]
struct Variable {
    name: String,
    shape: Vec<i64>,
    start: i64,
    length: i64,
    depth: i64,
    tensor: Tensor,
}

/// How the flat buffer is laid out.
struct Layout {
    /// One after the other.
    variables: Vec<Variable>,
    /// Their stretches.
    groups: Vec<(Group, Range<i64>)>,
    /// The buffer's length.
    end: i64,
}

fn lay_out(variables: Vec<(String, Tensor)>, place_of: impl Fn(&str, &Tensor) -> Place) -> Layout {
    let place = |(name, tensor): (String, Tensor)| (place_of(&name, &tensor), name, tensor);
    let mut placed: Vec<(Place, String, Tensor)> = variables.into_iter().map(place).collect();
    // Both sorts are stable: by name within a depth, by depth within a group.
    placed.sort_by_key(|(place, ..)| std::cmp::Reverse(place.depth));
    let mut known: Vec<Group> = Vec::new();
    for (place, ..) in &placed {
        if !known.contains(&place.group) {
            known.push(place.group);
        }
    }
    placed.sort_by_key(|(place, ..)| known.iter().position(|group| *group == place.group));

    let mut laid_out = Vec::new();
    let mut groups: Vec<(Group, Range<i64>)> = Vec::new();
    let mut end = 0;
    for (Place { group, depth }, name, tensor) in placed {
        let (start, length) = (end, tensor.numel() as i64);
        laid_out.push(Variable { name, shape: tensor.size(), start, length, depth, tensor });
        end += (length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        match groups.last_mut() {
            Some((last, range)) if *last == group => range.end = end,
            _ => groups.push((group, start..end)),
        }
    }
    Layout { variables: laid_out, groups, end }
}

/// Variables, their gradients and the optimizer's moments.
pub struct FlatParameters {
    variables: Vec<Variable>,
    groups: Vec<(Group, Range<i64>)>,
    values: Tensor,
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    reducer: Reducer,
}

impl FlatParameters {
    /// Moves the variables (of one type, fp32 or fp64, requiring gradients) into a flat buffer; they stay usable under
    /// their names. Their order is by group, then from the output to the input, then by name: the same on every rank.
    ///
    /// # Errors
    /// When libtorch refuses: variables of several types, say.
    pub fn new(
        mut variables: Vec<(String, Tensor)>,
        place_of: impl Fn(&str, &Tensor) -> Place,
        device: Device,
    ) -> Result<Self, TrainerError> {
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        let kind = variables.first().map_or(Kind::Float, |(_, tensor)| tensor.kind());
        let Layout { variables: laid_out, groups, end } = lay_out(variables, place_of);
        let flat = || Tensor::zeros([end], (kind, device));
        let ends = laid_out.iter().skip(1).map(|variable| variable.start).chain([end]);
        let stretch = |(variable, end): (&Variable, i64)| Stretch { range: variable.start..end, depth: variable.depth };
        let stretches: Vec<Stretch> = laid_out.iter().zip(ends).map(stretch).collect();
        let buckets = Buckets::cut(&stretches, kind.elt_size_in_bytes() as i64);
        let reducer = Reducer::new(buckets, laid_out.iter().map(|variable| variable.tensor.shallow_clone()))?;
        let mut flat = Self {
            reducer,
            variables: laid_out,
            groups,
            values: flat(),
            gradients: flat(),
            exp_avg: flat(),
            exp_avg_sq: flat(),
        };
        flat.adopt()?;
        Ok(flat)
    }

    fn adopt(&mut self) -> Result<(), TrainerError> {
        for variable in &mut self.variables {
            let view = |flat: &Tensor| flat.narrow(0, variable.start, variable.length).view(variable.shape.as_slice());
            let mut place = view(&self.values);
            tch::no_grad(|| place.copy_(&variable.tensor));
            variable.tensor.f_set_data(&place)?;
            shim::set_grad(&variable.tensor, &view(&self.gradients))?;
        }
        Ok(())
    }

    /// How many numbers are trained.
    pub fn numel(&self) -> i64 {
        self.variables.iter().map(|variable| variable.length).sum()
    }

    /// Forgets the gradients.
    pub fn zero_grad(&mut self) {
        let _ = self.gradients.zero_();
    }

    /// Runs the backward pass that completes the gradients, and sums them over all ranks behind it. `complete` is called
    /// when the pass is over: the rest is communication that nothing hides.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn reduce_behind(
        &mut self,
        collective: &dyn Collective,
        backward: impl FnOnce(),
        complete: impl FnOnce(),
    ) -> Result<(), CollectiveError> {
        if collective.world().0 == 1 {
            backward();
            complete();
            return Ok(());
        }
        self.reducer.reduce_behind(&self.gradients, collective, backward, complete)
    }

    /// The gradients' L2 norm as a scalar tensor on the device; they are scaled down to `clip_norm` if that is less.
    pub fn clip(&mut self, clip_norm: Option<f64>) -> Tensor {
        let norm = self.gradients.norm();
        if let Some(limit) = clip_norm {
            let factor = (limit / (&norm + 1e-6)).clamp_max(1.0);
            let _ = self.gradients.g_mul_(&factor);
        }
        norm
    }

    /// One AdamW update of every variable. `constants.weight_decay` is replaced by each group's.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn update(&mut self, constants: &AdamW) -> Result<(), TrainerError> {
        for (group, range) in &self.groups {
            let part = |flat: &Tensor| flat.narrow(0, range.start, range.end - range.start);
            let constants = AdamW {
                weight_decay: group.weight_decay,
                learning_rate: constants.learning_rate * group.lr_scale,
                ..*constants
            };
            let moments = (&mut part(&self.exp_avg), &mut part(&self.exp_avg_sq));
            shim::fused_adamw(&mut part(&self.values), &part(&self.gradients), moments, &constants)?;
        }
        Ok(())
    }

    /// Everything that a checkpoint holds, by name: `param.X`, `exp_avg.X`, `exp_avg_sq.X`.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let mut named = Vec::with_capacity(3 * self.variables.len());
        for (kind, flat) in [("param", &self.values), ("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)] {
            for variable in &self.variables {
                let view = flat.narrow(0, variable.start, variable.length).view(variable.shape.as_slice());
                named.push((format!("{kind}.{}", variable.name), view));
            }
        }
        named
    }

    /// Overwrites everything with what `tensor` gives for each name of [`FlatParameters::named`].
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load<E>(&mut self, tensor: impl Fn(&str) -> Result<Tensor, E>) -> Result<(), TrainerError>
    where
        TrainerError: From<E>,
    {
        for (name, mut place) in self.named() {
            let loaded = tensor(&name)?;
            if loaded.size() != place.size() {
                return Err(TrainerError::Plan(format!(
                    "the checkpoint's `{name}` has shape {:?}, this recipe's model has {:?}: its config.json was changed \
                     since the checkpoint was written",
                    loaded.size(),
                    place.size()
                )));
            }
            tch::no_grad(|| place.copy_(&loaded));
        }
        Ok(())
    }

    /// Gives every rank what rank 0 has.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn broadcast(&mut self, collective: &dyn Collective) -> Result<(), CollectiveError> {
        for flat in [&mut self.values, &mut self.exp_avg, &mut self.exp_avg_sq] {
            collective.broadcast(flat, Rank(0))?;
        }
        Ok(())
    }

    /// The gradient of a variable, for tests and reports.
    pub fn gradient(&self, name: &str) -> Option<Tensor> {
        let variable = self.variables.iter().find(|variable| variable.name == name)?;
        Some(self.gradients.narrow(0, variable.start, variable.length).view(variable.shape.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn;

    fn store() -> nn::VarStore {
        let store = nn::VarStore::new(Device::Cpu);
        let _ = store.root().var("w", &[3, 5], nn::Init::Const(2.0));
        let _ = store.root().var("b", &[5], nn::Init::Const(1.0));
        store
    }

    #[test]
    fn variables_are_views_and_moments_come_back() {
        let store = store();
        let variables: Vec<_> = store.variables().into_iter().collect();
        let groups = clip_groups(0.1, 1.0, 0, |_| 1);
        let mut flat = FlatParameters::new(variables, groups, Device::Cpu).unwrap();
        assert_eq!((flat.numel(), flat.groups.len()), (20, 2));
        let loss = || (store.variables()["w"].sum(Kind::Float) * 3.0 + store.variables()["b"].sum(Kind::Float)) * 1.0;
        loss().backward();
        assert_eq!(Vec::<f32>::try_from(flat.gradient("w").unwrap().view([-1])).unwrap(), [3.0; 15]);
        let norm = flat.clip(Some(1.0)).double_value(&[]);
        assert!((norm - (15.0f64 * 9.0 + 5.0).sqrt()).abs() < 1e-5);
        let constants = AdamW { step: 1, learning_rate: 0.5, betas: (0.9, 0.98), weight_decay: 0.0, eps: 1e-8 };
        flat.update(&constants).unwrap();
        let w = store.variables()["w"].double_value(&[0, 0]);
        assert!((w - (2.0 * 0.95 - 0.5)).abs() < 1e-5, "decay, then the step: {w}");
        let b = store.variables()["b"].double_value(&[0]);
        assert!((b - 0.5).abs() < 1e-5, "no decay on vectors: {b}");

        let saved: Vec<(String, Tensor)> = flat.named().into_iter().map(|(name, t)| (name, t.copy())).collect();
        flat.update(&constants).unwrap();
        flat.load(|name| Ok::<_, TrainerError>(saved.iter().find(|(n, _)| n == name).unwrap().1.shallow_clone()))
            .unwrap();
        assert_eq!(store.variables()["w"].double_value(&[0, 0]), w);
        let short = flat.load(|_| Ok::<_, TrainerError>(Tensor::zeros([1], (Kind::Float, Device::Cpu)))).unwrap_err();
        assert!(short.to_string().contains("has shape [1]"), "{short}");
    }

    #[test]
    fn layers_far_from_the_head_learn_slower() {
        let group = clip_groups(0.1, 0.5, 2, |name| if name == "head" { 3 } else { 0 });
        let matrix = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(group("head", &matrix).group, Group { weight_decay: 0.1, lr_scale: 1.0 });
        assert_eq!(group("embeddings", &matrix).group, Group { weight_decay: 0.1, lr_scale: 0.125 });
    }
}
