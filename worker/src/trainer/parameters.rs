//! What is trained, as one flat buffer: parameters, gradients and both moments lie in tensors of one length, and the
//! model's variables are views of them. One all-reduce a bucket, one norm, one optimizer call per group.
//!
//! With a sharded optimizer each rank keeps the moments of its own stretches alone, gets the sum of their gradients, and
//! gives the others what it made of the parameters there.

use super::{
    buckets::Buckets,
    digest,
    ema::Ema,
    error::TrainerError,
    layout::{Group, Layout, Place, Variable, lay_out},
    reducer::Reducer,
    shards::Shards,
};
use crate::{
    collective::{Collective, CollectiveError},
    torch::shim::{self, AdamW, Updated},
};
use common::ids::Rank;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Variables, their gradients and the optimizer's moments.
pub struct FlatParameters {
    variables: Vec<Variable>,
    /// What is not trained, and is kept with the rest.
    frozen: Vec<(String, Tensor)>,
    groups: Vec<(Group, Range<i64>)>,
    values: Tensor,
    gradients: Tensor,
    /// As long as `values`, or this rank's stretches one after the other.
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Laid out like a moment; absent when no average is kept.
    ema: Option<Ema>,
    reducer: Reducer,
    /// Absent when every rank updates all.
    shards: Option<Shards>,
}

impl FlatParameters {
    /// Moves the variables (of one type, fp32 or fp64, requiring gradients) into a flat buffer; they stay usable under
    /// their names. The layout is the same on every rank.
    ///
    /// # Errors
    /// When libtorch refuses: variables of several types, say.
    pub fn new(
        variables: Vec<(String, Tensor)>,
        place_of: impl Fn(&str, &Tensor) -> Place,
        device: Device,
    ) -> Result<Self, TrainerError> {
        let kind = variables.first().map_or(Kind::Float, |(_, tensor)| tensor.kind());
        let layout = lay_out(variables, place_of);
        let buckets = Buckets::cut(&layout.stretches(), kind.elt_size_in_bytes() as i64);
        let Layout { variables, groups, end } = layout;
        let reducer = Reducer::new(buckets, variables.iter().map(|variable| variable.tensor.shallow_clone()), device)?;
        let flat = || Tensor::zeros([end], (kind, device));
        let mut flat = Self {
            reducer,
            variables,
            frozen: Vec::new(),
            groups,
            values: flat(),
            gradients: flat(),
            exp_avg: flat(),
            exp_avg_sq: flat(),
            ema: None,
            shards: None,
        };
        flat.adopt()?;
        Ok(flat)
    }

    /// With what is not trained: it gets no gradient and no moments, and is saved, loaded and broadcast with the rest.
    pub fn with_frozen(mut self, mut frozen: Vec<(String, Tensor)>) -> Self {
        frozen.sort_by(|a, b| a.0.cmp(&b.0));
        self.frozen = frozen;
        self
    }

    fn adopt(&mut self) -> Result<(), TrainerError> {
        for variable in &mut self.variables {
            let mut place = variable.view(&self.values);
            tch::no_grad(|| place.copy_(&variable.tensor));
            variable.tensor.f_set_data(&place)?;
            shim::set_grad(&variable.tensor, &variable.view(&self.gradients))?;
        }
        Ok(())
    }

    /// Keeps an average of what is trained from now on: all of it on every rank when `whole`, else what the rank has of the
    /// moments. Before `shard` and before `load`.
    pub fn average(&mut self, decay: f64, whole: bool) {
        self.ema = Some(Ema::new(decay, whole, &self.values));
    }

    /// The average of a variable, as it will be from now on; absent when none is kept, or not all of it.
    pub fn averaged(&self, name: &str) -> Option<Tensor> {
        let ema = self.ema.as_ref().filter(|ema| ema.whole)?;
        Some(self.variables.iter().find(|variable| variable.name == name)?.view(&ema.flat))
    }

    /// Puts the average in the place of what is trained, and that in the place of the average; the second time both are what they
    /// were in every bit. Nothing happens where no average is kept, or not all of it is here.
    pub fn exchange_average(&mut self) {
        let all = self.shards.is_none();
        let Some(ema) = self.ema.as_mut().filter(|ema| ema.whole || all) else { return };
        tch::no_grad(|| {
            let values = self.values.copy();
            self.values.copy_(&ema.flat);
            ema.flat.copy_(&values);
        });
    }

    /// Keeps the moments of this rank's share alone from now on. Before the first update and before `load`.
    pub fn shard(&mut self, collective: &dyn Collective) {
        let shards = Shards::cut(self.reducer.ranges(), collective.rank(), collective.world());
        let moment = || Tensor::zeros([shards.elements()], (self.values.kind(), self.values.device()));
        (self.exp_avg, self.exp_avg_sq) = (moment(), moment());
        if let Some(ema) = self.ema.as_mut().filter(|ema| !ema.whole) {
            let own: Vec<Tensor> = shards.placed().map(|(own, _)| stretch(&ema.flat, &own)).collect();
            ema.flat = Tensor::cat(&own, 0);
        }
        self.shards = Some(shards);
    }

    /// How many numbers are trained.
    pub fn numel(&self) -> i64 {
        self.variables.iter().map(|variable| variable.length).sum()
    }

    /// Forgets the gradients.
    pub fn zero_grad(&mut self) {
        let _ = self.gradients.zero_();
    }

    /// Runs the backward pass that completes the gradients, and sums them over all ranks behind it: with a sharded
    /// optimizer those of each rank's own stretches only. `complete` is called when the pass is over: the rest is
    /// communication that nothing hides.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn reduce_behind(
        &mut self,
        collective: &dyn Collective,
        backward: impl FnOnce(),
        complete: impl FnOnce(),
    ) -> Result<(), TrainerError> {
        if collective.world().0 == 1 {
            backward();
            complete();
            return Ok(());
        }
        let gradients = self.gradients.shallow_clone();
        let ranges = self.reducer.ranges().to_vec();
        let shards = self.shards.clone();
        let reduce = move |bucket: usize| {
            let part = |range: &Range<i64>| gradients.narrow(0, range.start, range.end - range.start);
            match &shards {
                None => collective.all_reduce_sum(&mut part(&ranges[bucket])),
                Some(shards) => {
                    let sum = collective.reduce_scatter_rows(&part(&ranges[bucket]), shards.rows(bucket))?;
                    part(&shards.own(bucket)).copy_(&sum);
                    Ok(())
                }
            }
        };
        self.reducer.reduce_behind(reduce, backward, complete)
    }

    /// The gradients' L2 norm over all ranks as a scalar tensor on the device; they are scaled down to `clip_norm` if that
    /// is less.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn clip(&mut self, collective: &dyn Collective, clip_norm: Option<f64>) -> Result<Tensor, CollectiveError> {
        let mut own: Vec<Tensor> = match &self.shards {
            None => vec![self.gradients.shallow_clone()],
            Some(shards) => shards.placed().map(|(range, _)| stretch(&self.gradients, &range)).collect(),
        };
        let norms: Vec<Tensor> = own.iter().map(Tensor::norm).collect();
        let norm = match &self.shards {
            None => norms[0].shallow_clone(),
            Some(_) => {
                let mut squares = Tensor::stack(&norms, 0).square().sum(self.gradients.kind()).view([1]);
                collective.all_reduce_sum(&mut squares)?;
                squares.sqrt().squeeze()
            }
        };
        if let Some(limit) = clip_norm {
            let factor = (limit / (&norm + 1e-6)).clamp_max(1.0);
            own.iter_mut().for_each(|part| {
                let _ = part.g_mul_(&factor);
            });
        }
        Ok(norm)
    }

    /// One AdamW update of every variable, unless `skip`, a float scalar on the device, is 1. `constants.weight_decay` is
    /// replaced by each group's.
    ///
    /// # Errors
    /// When libtorch refuses, or a peer fails.
    pub fn update(
        &mut self,
        collective: &dyn Collective,
        skip: Option<&Tensor>,
        constants: &AdamW,
    ) -> Result<(), TrainerError> {
        for (group, range) in &self.groups {
            let constants = AdamW {
                weight_decay: group.weight_decay,
                learning_rate: constants.learning_rate * group.lr_scale,
                ..*constants
            };
            shim::fused_adamw(&mut self.updated(range), skip, &constants)?;
        }
        let Some(shards) = &self.shards else { return Ok(()) };
        for (bucket, range) in self.reducer.ranges().iter().enumerate() {
            let own = stretch(&self.values, &shards.own(bucket));
            let all = collective.all_gather_rows(&own, shards.rows(bucket))?;
            tch::no_grad(|| stretch(&self.values, range).copy_(&all));
        }
        Ok(())
    }

    /// Takes the newest values into the average, where one is kept, unless `skip`, a float scalar on the device, is 1.
    pub fn update_average(&mut self, skip: Option<&Tensor>) {
        let Some(ema) = &self.ema else { return };
        let all = || vec![(0..self.values.size()[0], 0)];
        for (own, place) in if ema.whole { all() } else { self.placed() } {
            ema.update(ema.flat.narrow(0, place, own.end - own.start), &stretch(&self.values, &own), skip);
        }
    }

    /// What this rank updates of the buffer, and where the moments of each stretch begin.
    fn placed(&self) -> Vec<(Range<i64>, i64)> {
        match &self.shards {
            None => vec![(0..self.values.size()[0], 0)],
            Some(shards) => shards.placed().collect(),
        }
    }

    /// What is kept of every trained number beside itself: its name in a checkpoint, the flat buffer, and this rank's stretches
    /// where the buffer has these alone.
    fn moments(&self) -> impl Iterator<Item = (&'static str, &Tensor, Option<&Shards>)> {
        let shards = self.shards.as_ref();
        let ema = self.ema.as_ref().map(|ema| ("ema", &ema.flat, shards.filter(|_| !ema.whole)));
        [("exp_avg", &self.exp_avg, shards), ("exp_avg_sq", &self.exp_avg_sq, shards)].into_iter().chain(ema)
    }

    /// What this rank updates of a stretch of the buffer.
    fn updated(&self, group: &Range<i64>) -> Vec<Updated> {
        let common = self.placed().into_iter().filter_map(|(own, place)| {
            let common = own.start.max(group.start)..own.end.min(group.end);
            (common.start < common.end).then(|| (place + common.start - own.start, common))
        });
        let updated = |(place, range): (i64, Range<i64>)| {
            let moment = |flat: &Tensor| flat.narrow(0, place, range.end - range.start);
            Updated {
                parameter: stretch(&self.values, &range),
                gradient: stretch(&self.gradients, &range),
                exp_avg: moment(&self.exp_avg),
                exp_avg_sq: moment(&self.exp_avg_sq),
            }
        };
        common.map(updated).collect()
    }

    /// Everything that a checkpoint holds, by name: `param.X`, and of what is trained `exp_avg.X`, `exp_avg_sq.X`, and `ema.X`
    /// where an average is kept. All ranks call it together:
    /// sharded moments are gathered, which takes the memory of both for as long as the list lives.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn named(&self, collective: &dyn Collective) -> Result<Vec<(String, Tensor)>, CollectiveError> {
        let mut named = Vec::with_capacity(3 * self.variables.len());
        let mut flats = vec![("param", self.values.shallow_clone())];
        for (kind, moment, shards) in self.moments() {
            flats.push((kind, self.whole(collective, (moment, shards))?));
        }
        for (kind, flat) in &flats {
            named.extend(
                self.variables.iter().map(|variable| (format!("{kind}.{}", variable.name), variable.view(flat))),
            );
        }
        named.extend(self.frozen.iter().map(|(name, tensor)| (format!("param.{name}"), tensor.shallow_clone())));
        Ok(named)
    }

    /// A moment of the whole buffer.
    fn whole(
        &self,
        collective: &dyn Collective,
        (moment, shards): (&Tensor, Option<&Shards>),
    ) -> Result<Tensor, CollectiveError> {
        let Some(shards) = shards else { return Ok(moment.shallow_clone()) };
        let all = self.values.zeros_like();
        for (bucket, (range, (own, place))) in self.reducer.ranges().iter().zip(shards.placed()).enumerate() {
            let own = moment.narrow(0, place, own.end - own.start);
            stretch(&all, range).copy_(&collective.all_gather_rows(&own, shards.rows(bucket))?);
        }
        Ok(all)
    }

    /// Overwrites everything with what `tensor` gives for each name of [`FlatParameters::named`].
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load<E>(&mut self, tensor: impl Fn(&str) -> Result<Tensor, E>) -> Result<(), TrainerError>
    where
        TrainerError: From<E>,
    {
        self.fill("param", &self.values, &tensor)?;
        for (name, frozen) in &self.frozen {
            overwrite("param", name, frozen, &tensor)?;
        }
        for (kind, moment, shards) in self.moments() {
            let Some(shards) = shards else {
                self.fill(kind, moment, &tensor)?;
                continue;
            };
            let all = self.values.zeros_like();
            self.fill(kind, &all, &tensor)?;
            for (own, place) in shards.placed() {
                moment.narrow(0, place, own.end - own.start).copy_(&stretch(&all, &own));
            }
        }
        Ok(())
    }

    fn fill<E>(
        &self,
        kind: &str,
        flat: &Tensor,
        tensor: &impl Fn(&str) -> Result<Tensor, E>,
    ) -> Result<(), TrainerError>
    where
        TrainerError: From<E>,
    {
        self.variables.iter().try_for_each(|variable| overwrite(kind, &variable.name, &variable.view(flat), tensor))
    }

    /// Gives every rank its share of the sharded moments that `root` has whole, by what `tensor` gives for each name of
    /// [`FlatParameters::named`]; only root's is asked. All ranks call it, after `load` on root and `broadcast`.
    ///
    /// # Errors
    /// When a peer fails, or a tensor is missing.
    pub fn hand_over<E>(
        &mut self,
        collective: &dyn Collective,
        root: Rank,
        tensor: Option<impl Fn(&str) -> Result<Tensor, E>>,
    ) -> Result<(), TrainerError>
    where
        TrainerError: From<E>,
    {
        for (kind, moment, shards) in self.moments() {
            let Some(shards) = shards else { continue };
            let mut all = self.values.zeros_like();
            if let Some(tensor) = &tensor {
                self.fill(kind, &all, tensor)?;
            }
            collective.broadcast(&mut all, root)?;
            for (own, place) in shards.placed() {
                moment.narrow(0, place, own.end - own.start).copy_(&stretch(&all, &own));
            }
        }
        Ok(())
    }

    /// A digest of what all ranks have the same of: what is trained, and its moments and average unless they are sharded.
    ///
    /// # Errors
    /// When libtorch refuses, or the device fails.
    pub fn digest(&self) -> Result<[i64; 2], TrainerError> {
        let mut same = vec![&self.values];
        same.extend(self.moments().filter(|(_, _, shards)| shards.is_none()).map(|(_, moment, _)| moment));
        Ok(digest::of(&same)?)
    }

    /// Changes one bit of what is trained: a fault on purpose.
    pub fn flip_bit(&mut self) {
        let middle = self.values.narrow(0, self.values.size()[0] / 2, 1);
        let (kind, bit) = match middle.kind() {
            Kind::Double => (Kind::Int64, Tensor::from(1i64 << 40)),
            _ => (Kind::Int, Tensor::from(1i32 << 16)),
        };
        let _ = middle.view_dtype(kind).bitwise_xor_tensor_(&bit.to_device(self.values.device()));
    }

    /// Whether each rank keeps the moments of its share alone.
    pub fn is_sharded(&self) -> bool {
        self.shards.is_some()
    }

    /// Gives every rank what `root` has; sharded moments are each rank's own.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn broadcast(&mut self, collective: &dyn Collective, root: Rank) -> Result<(), CollectiveError> {
        collective.broadcast(&mut self.values, root)?;
        for (_, frozen) in &mut self.frozen {
            collective.broadcast(frozen, root)?;
        }
        if self.shards.is_none() {
            collective.broadcast(&mut self.exp_avg, root)?;
            collective.broadcast(&mut self.exp_avg_sq, root)?;
        }
        let sharded = self.shards.is_some();
        if let Some(ema) = self.ema.as_mut().filter(|ema| ema.whole || !sharded) {
            collective.broadcast(&mut ema.flat, root)?;
        }
        Ok(())
    }

    /// The gradient of a variable, for tests and reports. Complete on every rank when the optimizer is not sharded.
    pub fn gradient(&self, name: &str) -> Option<Tensor> {
        Some(self.variables.iter().find(|variable| variable.name == name)?.view(&self.gradients))
    }
}

/// Overwrites one tensor with the loaded one.
fn overwrite<E>(
    kind: &str,
    name: &str,
    place: &Tensor,
    tensor: &impl Fn(&str) -> Result<Tensor, E>,
) -> Result<(), TrainerError>
where
    TrainerError: From<E>,
{
    let name = format!("{kind}.{name}");
    let loaded = tensor(&name)?;
    if loaded.size() != place.size() {
        return Err(TrainerError::Plan(format!(
            "the checkpoint's `{name}` has shape {:?}, this recipe's model has {:?}: its config.json was changed since the \
             checkpoint was written",
            loaded.size(),
            place.size()
        )));
    }
    tch::no_grad(|| place.shallow_clone().copy_(&loaded));
    Ok(())
}

fn stretch(flat: &Tensor, range: &Range<i64>) -> Tensor {
    flat.narrow(0, range.start, range.end - range.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collective::Solo, trainer::layout::clip_groups};
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
        let norm = flat.clip(&Solo, Some(1.0)).unwrap().double_value(&[]);
        assert!((norm - (15.0f64 * 9.0 + 5.0).sqrt()).abs() < 1e-5);
        let constants = AdamW { step: 1, learning_rate: 0.5, betas: (0.9, 0.98), weight_decay: 0.0, eps: 1e-8 };
        flat.update(&Solo, None, &constants).unwrap();
        let w = store.variables()["w"].double_value(&[0, 0]);
        assert!((w - (2.0 * 0.95 - 0.5)).abs() < 1e-5, "decay, then the step: {w}");
        let b = store.variables()["b"].double_value(&[0]);
        assert!((b - 0.5).abs() < 1e-5, "no decay on vectors: {b}");

        let saved: Vec<(String, Tensor)> =
            flat.named(&Solo).unwrap().into_iter().map(|(name, t)| (name, t.copy())).collect();
        flat.update(&Solo, None, &constants).unwrap();
        flat.load(|name| Ok::<_, TrainerError>(saved.iter().find(|(n, _)| n == name).unwrap().1.shallow_clone()))
            .unwrap();
        assert_eq!(store.variables()["w"].double_value(&[0, 0]), w);
        let short = flat.load(|_| Ok::<_, TrainerError>(Tensor::zeros([1], (Kind::Float, Device::Cpu)))).unwrap_err();
        assert!(short.to_string().contains("has shape [1]"), "{short}");
    }
}
