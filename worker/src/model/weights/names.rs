//! How names in weights files become names of parameters, an architecture and its spellings at a time.

use super::resize::Resize;
use crate::model::ModelError;
use std::ops::Range;
use tch::Tensor;

/// How names in the files become names of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMap {
    /// A Llama, saved from the body or, with `model.` before each name, from the language model; the head is ignored.
    Llama,
    /// A CLIP vision tower, alone or in a whole CLIP, whose other parts are ignored.
    ClipVision,
    /// An EVA02 vision tower as timm, open_clip or eva_clip write it, alone or in a whole CLIP.
    Eva02,
}

/// All rows of a tensor: rows are counted in thirds, because packed projections hold three.
const ALL: Range<i64> = 0..3;

/// What a tensor of a file gives to a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) parameter: String,
    // Which rows of the file's tensor, and which of the parameter.
    from: Range<i64>,
    pub(super) to: Range<i64>,
}

impl Use {
    fn whole(parameter: impl Into<String>) -> Vec<Use> {
        vec![Use { parameter: parameter.into(), from: ALL, to: ALL }]
    }

    /// The shape that the file's tensor must have for a parameter of this shape.
    pub(super) fn expected(&self, parameter: &[i64]) -> Vec<i64> {
        let mut shape = parameter.to_vec();
        if (&self.from, &self.to) != (&ALL, &ALL) {
            shape[0] = shape[0] * (self.to.end - self.to.start) / (self.from.end - self.from.start);
        }
        shape
    }

    /// Copies the rows, resized when the parameter is of another size and can be.
    pub(super) fn copy(&self, tensor: &Tensor, parameter: &Tensor, resize: Option<Resize>) -> Result<(), ModelError> {
        let thirds = |tensor: &Tensor, part: &Range<i64>| {
            if *part == ALL {
                return tensor.shallow_clone();
            }
            let third = tensor.size()[0] / 3;
            tensor.narrow(0, part.start * third, (part.end - part.start) * third)
        };
        let resized = match resize {
            Some(resize) if tensor.size() != parameter.size() => resize.apply(tensor, &parameter.size()),
            _ => thirds(tensor, &self.from),
        };
        tch::no_grad(|| thirds(parameter, &self.to).f_copy_(&resized))?;
        Ok(())
    }
}

// The parts of a CLIP beside its vision tower, as OpenAI, open_clip, eva_clip and LLM2CLIP name them.
const BESIDE_VISION: [&str; 8] = [
    "text.",
    "text_model.",
    "text_adapter.",
    "text_projection",
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "logit_",
];

impl NameMap {
    /// What a tensor is used for; nothing when it is known to be of no use here. A name that is not known is passed on as it
    /// is, and will meet no parameter.
    pub(super) fn uses(self, name: &str) -> Vec<Use> {
        match self {
            NameMap::Llama => llama(name),
            _ if BESIDE_VISION.iter().any(|begin| name.starts_with(begin)) => Vec::new(),
            NameMap::ClipVision if name.ends_with("position_ids") => Vec::new(),
            NameMap::ClipVision => Use::whole(name),
            NameMap::Eva02 => eva02(name),
        }
    }

    /// How a parameter is resized when the file's is of another image or patch size.
    pub(super) fn resize(self, parameter: &str) -> Option<Resize> {
        match self {
            // eva_clip's `resize_clip_pos_embed` and `resize_evaclip_pos_embed`.
            NameMap::ClipVision => parameter
                .ends_with("position_embedding.weight")
                .then_some(Resize::Positions { class: 1, align_corners: true }),
            NameMap::Eva02 if parameter == "visual.pos_embed" => {
                Some(Resize::Positions { class: 1, align_corners: false })
            }
            NameMap::Eva02 if parameter == "visual.patch_embed.proj.weight" => Some(Resize::Kernel),
            _ => None,
        }
    }
}

fn llama(name: &str) -> Vec<Use> {
    match name {
        "lm_head.weight" => Vec::new(),
        _ if name.ends_with(".rotary_emb.inv_freq") => Vec::new(),
        _ => Use::whole(name.strip_prefix("model.").unwrap_or(name)),
    }
}

/// From eva_clip (`visual.`), open_clip (`visual.trunk.`) or timm alone (no prefix).
fn eva02(name: &str) -> Vec<Use> {
    let inside = name.strip_prefix("visual.").unwrap_or(name);
    let inside = inside.strip_prefix("trunk.").unwrap_or(inside);
    // The tables of rotations follow from the sizes.
    if inside.starts_with("rope.") || inside.contains(".rope.") {
        return Vec::new();
    }
    let mut parameter = format!("visual.{inside}");
    for (theirs, ours) in [
        (".attn.q_bias", ".attn.q_proj.bias"),
        (".attn.v_bias", ".attn.v_proj.bias"),
        (".attn.norm.", ".attn.inner_attn_ln."),
        (".mlp.norm.", ".mlp.ffn_ln."),
        (".mlp.fc1_g.", ".mlp.w1."),
        (".mlp.fc1_x.", ".mlp.w2."),
        (".mlp.fc2.", ".mlp.w3."),
    ] {
        parameter = parameter.replace(theirs, ours);
    }
    Use::whole(parameter)
}
