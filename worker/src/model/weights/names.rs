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
    /// A CLIP vision tower as Hugging Face, OpenAI or eva_clip write it, alone or in a whole CLIP, whose other parts are
    /// ignored.
    ClipVision,
    /// A CLIP text tower as Hugging Face or open_clip write it, alone or in a whole CLIP, whose other parts are ignored.
    ClipText,
    /// An EVA02 vision tower as timm, open_clip or eva_clip write it, alone or in a whole CLIP.
    Eva02,
    /// A SigLIP vision tower as Hugging Face, timm or open_clip write it, alone or in a whole SigLIP.
    Siglip,
    /// A LoRA as PEFT writes it, put on the body or on the language model.
    Lora,
    /// LLM2CLIP's adapter and logit scale, as the released models and the research code name them; other parts are ignored.
    Adapter,
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
    // Whether the file has inputs before outputs.
    transposed: bool,
}

impl Use {
    fn whole(parameter: impl Into<String>) -> Vec<Use> {
        vec![Use { parameter: parameter.into(), from: ALL, to: ALL, transposed: false }]
    }

    fn transposed(parameter: impl Into<String>) -> Vec<Use> {
        vec![Use { parameter: parameter.into(), from: ALL, to: ALL, transposed: true }]
    }

    /// Rows of queries, keys and values, as three parameters of `layer`.
    fn packed(layer: &str, kind: &str) -> Vec<Use> {
        let part = |(i, name): (i64, &str)| Use {
            parameter: format!("{layer}.{name}_proj.{kind}"),
            from: i..i + 1,
            to: ALL,
            transposed: false,
        };
        [(0, "q"), (1, "k"), (2, "v")].map(part).into()
    }

    /// A parameter's own rows among those of queries, keys and values.
    fn rows(parameter: String, to: Range<i64>) -> Vec<Use> {
        vec![Use { parameter, from: ALL, to, transposed: false }]
    }

    /// The shape that the file's tensor must have for a parameter of this shape.
    pub(super) fn expected(&self, parameter: &[i64]) -> Vec<i64> {
        let mut shape = parameter.to_vec();
        if self.transposed {
            shape.reverse();
        }
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
            _ if self.transposed => tensor.tr(),
            _ => thirds(tensor, &self.from),
        };
        tch::no_grad(|| thirds(parameter, &self.to).f_copy_(&resized))?;
        Ok(())
    }
}

// The parts of a CLIP beside its vision tower, as OpenAI, open_clip, eva_clip and LLM2CLIP name them.
const BESIDE_VISION: [&str; 9] = [
    "text.",
    "positional_embedding",
    "text_model.",
    "text_adapter.",
    "text_projection",
    "transformer.",
    "token_embedding.",
    "ln_final.",
    "logit_",
];

// The parts of a CLIP beside its text tower.
const BESIDE_TEXT: [&str; 5] = ["vision_model.", "visual_projection.", "visual.", "logit_scale", "logit_bias"];

impl NameMap {
    /// What a tensor is used for; nothing when it is known to be of no use here. A name that is not known is passed on as it
    /// is, and will meet no parameter.
    pub(super) fn uses(self, name: &str) -> Vec<Use> {
        match self {
            NameMap::Llama => llama(name),
            NameMap::Lora => lora(name),
            NameMap::Adapter => adapter(name),
            NameMap::ClipText => clip_text(name),
            _ if BESIDE_VISION.iter().any(|begin| name.starts_with(begin)) => Vec::new(),
            NameMap::ClipVision => clip(name),
            NameMap::Eva02 => eva02(name),
            NameMap::Siglip => siglip(name),
        }
    }

    /// The parameters that a tensor of this name is, or is a part of.
    #[cfg(test)]
    pub(in crate::model) fn parameters(self, name: &str) -> Vec<String> {
        self.uses(name).into_iter().map(|one| one.parameter).collect()
    }

    /// How a parameter is resized when the file's is of another image or patch size.
    pub(super) fn resize(self, parameter: &str) -> Option<Resize> {
        match self {
            // eva_clip's `resize_clip_pos_embed` and `resize_evaclip_pos_embed`.
            NameMap::ClipVision => parameter
                .ends_with("position_embedding.weight")
                .then_some(Resize::Positions { class: 1, align_corners: true }),
            // As Hugging Face's `interpolate_pos_encoding`.
            NameMap::Siglip => parameter
                .ends_with("position_embedding.weight")
                .then_some(Resize::Positions { class: 0, align_corners: false }),
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

/// From Hugging Face, or from OpenAI and eva_clip (`visual.`).
fn clip(name: &str) -> Vec<Use> {
    let Some(inside) = name.strip_prefix("visual.") else {
        let ignored = name.ends_with("position_ids") || OPENAI_SIZES.contains(&name);
        return if ignored { Vec::new() } else { Use::whole(name) };
    };
    if let Some(block) = inside.strip_prefix("transformer.resblocks.") {
        return openai_block("vision_model", block);
    }
    match inside {
        "proj" => Use::transposed("visual_projection.weight"),
        "class_embedding" => Use::whole("vision_model.embeddings.class_embedding"),
        "positional_embedding" => Use::whole("vision_model.embeddings.position_embedding.weight"),
        "conv1.weight" => Use::whole("vision_model.embeddings.patch_embedding.weight"),
        "ln_pre.weight" | "ln_pre.bias" => Use::whole(inside.replace("ln_pre", "vision_model.pre_layrnorm")),
        "ln_post.weight" | "ln_post.bias" => Use::whole(inside.replace("ln_post", "vision_model.post_layernorm")),
        _ => Use::whole(name),
    }
}

// Numbers that OpenAI's own files hold beside the weights.
const OPENAI_SIZES: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

fn openai_block(tower: &str, name: &str) -> Vec<Use> {
    let (number, inside) = name.split_once('.').unwrap_or((name, ""));
    let block = format!("{tower}.encoder.layers.{number}");
    match inside {
        "attn.in_proj_weight" => return Use::packed(&format!("{block}.self_attn"), "weight"),
        "attn.in_proj_bias" => return Use::packed(&format!("{block}.self_attn"), "bias"),
        _ => {}
    }
    let mut inside = inside.to_owned();
    for (theirs, ours) in [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.out_proj.", "self_attn.out_proj."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ] {
        inside = inside.replace(theirs, ours);
    }
    Use::whole(format!("{block}.{inside}"))
}

/// From Hugging Face, or from OpenAI and open_clip (no prefix, or `text.`).
fn clip_text(name: &str) -> Vec<Use> {
    let ignored = BESIDE_TEXT.iter().any(|begin| name.starts_with(begin))
        || name.ends_with("position_ids")
        || OPENAI_SIZES.contains(&name);
    if ignored {
        return Vec::new();
    }
    let inside = name.strip_prefix("text.").unwrap_or(name);
    if let Some(block) = inside.strip_prefix("transformer.resblocks.") {
        return openai_block("text_model", block);
    }
    match inside {
        "text_projection" => Use::transposed("text_projection.weight"),
        "token_embedding.weight" => Use::whole("text_model.embeddings.token_embedding.weight"),
        "positional_embedding" => Use::whole("text_model.embeddings.position_embedding.weight"),
        "ln_final.weight" | "ln_final.bias" => Use::whole(inside.replace("ln_final", "text_model.final_layer_norm")),
        "attn_mask" => Vec::new(),
        _ => Use::whole(name),
    }
}

/// From Hugging Face, open_clip (`visual.trunk.`) or timm alone (no prefix).
fn siglip(name: &str) -> Vec<Use> {
    if name.starts_with("vision_model.") {
        return if name.ends_with("position_ids") { Vec::new() } else { Use::whole(name) };
    }
    let inside = name.strip_prefix("visual.trunk.").unwrap_or(name);
    if let Some(block) = inside.strip_prefix("blocks.") {
        let (number, inside) = block.split_once('.').unwrap_or((block, ""));
        let block = format!("vision_model.encoder.layers.{number}");
        if let Some(kind) = inside.strip_prefix("attn.qkv.") {
            return Use::packed(&format!("{block}.self_attn"), kind);
        }
        let inside = inside.replace("norm1.", "layer_norm1.").replace("norm2.", "layer_norm2.");
        return Use::whole(format!("{block}.{}", inside.replace("attn.proj.", "self_attn.out_proj.")));
    }
    if let Some(pool) = inside.strip_prefix("attn_pool.") {
        let attention = |kind: &str| format!("vision_model.head.attention.in_proj_{kind}");
        return match pool.split_once('.').unwrap_or((pool, "")) {
            ("latent", "") => Use::whole("vision_model.head.probe"),
            ("q", kind) => Use::rows(attention(kind), 0..1),
            ("kv", kind) => Use::rows(attention(kind), 1..3),
            ("proj", kind) => Use::whole(format!("vision_model.head.attention.out_proj.{kind}")),
            ("norm", kind) => Use::whole(format!("vision_model.head.layernorm.{kind}")),
            _ => Use::whole(format!("vision_model.head.{pool}")),
        };
    }
    match inside.split_once('.').unwrap_or((inside, "")) {
        ("pos_embed", "") => Use::whole("vision_model.embeddings.position_embedding.weight"),
        ("patch_embed", rest) => {
            Use::whole(format!("vision_model.embeddings.{}", rest.replace("proj", "patch_embedding")))
        }
        ("norm", kind) => Use::whole(format!("vision_model.post_layernorm.{kind}")),
        _ => Use::whole(name),
    }
}

/// From PEFT on the body, or on the language model, whose body is `model`. A name without PEFT's prefix will meet no parameter.
fn lora(name: &str) -> Vec<Use> {
    let module = name.strip_prefix("base_model.model.").map(|module| module.strip_prefix("model.").unwrap_or(module));
    Use::whole(module.unwrap_or(name))
}

/// From the released models, or from the research code (`text.`).
fn adapter(name: &str) -> Vec<Use> {
    let inside = ["text_adapter.adaptor.", "text.text_adaptor."].iter().find_map(|begin| name.strip_prefix(begin));
    match inside {
        Some(inside) => Use::whole(format!("adapter.{inside}")),
        None if name == "logit_scale" => Use::whole(name),
        None => Vec::new(),
    }
}
