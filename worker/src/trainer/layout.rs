//! Where the trained variables lie in the flat buffer, and which of them are updated alike.

use super::buckets::Stretch;
use std::ops::Range;
use tch::Tensor;

/// Every variable begins at a multiple of so many elements: a cache line.
pub(super) const ALIGNMENT: i64 = 16;

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

/// What eva_clip keeps from decaying although it is no vector (`no_weight_decay` of its tower): EVA02 alone has them.
const NOT_DECAYED: [&str; 2] = ["visual.pos_embed", "visual.cls_token"];

/// The groups of stage 2: no decay on vectors and scalars (biases, norms, class embedding, logit scale; as open_clip), nor on
/// EVA02's positions and class token; `layer_decay` to the power of the distance from the head on the learning rate (BEiT).
/// `layer_id` gives 0 for the embeddings, up to `layers` + 1 for the head.
pub fn clip_groups<F: Fn(&str) -> i64>(
    weight_decay: f64,
    layer_decay: f64,
    layers: i64,
    layer_id: F,
) -> impl Fn(&str, &Tensor) -> Place {
    move |name, variable| {
        let depth = layer_id(name);
        let group = Group {
            weight_decay: if variable.dim() < 2 || NOT_DECAYED.contains(&name) { 0.0 } else { weight_decay },
            lr_scale: layer_decay.powi(i32::try_from(layers + 1 - depth).unwrap_or(0)),
        };
        Place { group, depth }
    }
}

/// A variable and its place.
#[derive(Debug)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) start: i64,
    pub(super) length: i64,
    pub(super) tensor: Tensor,
    depth: i64,
}

impl Variable {
    /// Its part of a flat buffer, in its own shape.
    pub(super) fn view(&self, flat: &Tensor) -> Tensor {
        flat.narrow(0, self.start, self.length).view(self.shape.as_slice())
    }
}

/// How the flat buffer is laid out.
pub(super) struct Layout {
    /// One after the other.
    pub(super) variables: Vec<Variable>,
    /// Their stretches.
    pub(super) groups: Vec<(Group, Range<i64>)>,
    /// The buffer's length.
    pub(super) end: i64,
}

impl Layout {
    /// Where the variables lie, padding included, and how deep they are.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let ends = self.variables.iter().skip(1).map(|variable| variable.start).chain([self.end]);
        let stretch = |(variable, end): (&Variable, i64)| Stretch { range: variable.start..end, depth: variable.depth };
        self.variables.iter().zip(ends).map(stretch).collect()
    }
}

/// By group, then from the output to the input, then by name: the same on every rank.
pub(super) fn lay_out(mut variables: Vec<(String, Tensor)>, place_of: impl Fn(&str, &Tensor) -> Place) -> Layout {
    variables.sort_by(|a, b| a.0.cmp(&b.0));
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

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn layers_far_from_the_head_learn_slower() {
        let group = clip_groups(0.1, 0.5, 2, |name| if name == "head" { 3 } else { 0 });
        let matrix = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(group("head", &matrix).group, Group { weight_decay: 0.1, lr_scale: 1.0 });
        assert_eq!(group("embeddings", &matrix).group, Group { weight_decay: 0.1, lr_scale: 0.125 });
    }

    #[test]
    fn what_eva_clip_and_open_clip_keep_from_decaying_does_not_decay() {
        let group = clip_groups(0.1, 1.0, 2, |_| 0);
        let decay = |name: &str, shape: &[i64]| {
            group(name, &Tensor::zeros(shape, (Kind::Float, Device::Cpu))).group.weight_decay
        };
        for (name, shape) in [
            ("visual.pos_embed", &[1, 5, 4][..]),
            ("visual.cls_token", &[1, 1, 4]),
            ("visual.blocks.0.attn.q_proj.bias", &[4]),
            ("vision_model.embeddings.class_embedding", &[4]),
            ("logit_scale", &[]),
        ] {
            assert_eq!(decay(name, shape), 0.0, "{name}");
        }
        // OpenAI's positions decay in both libraries.
        assert_eq!(decay("vision_model.embeddings.position_embedding.weight", &[5, 4]), 0.1);
        assert_eq!(decay("visual.patch_embed.proj.weight", &[4, 3, 2, 2]), 0.1);
    }
}
