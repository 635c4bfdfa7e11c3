//! `README.md`: what the model is, what it was made of, what it can do, and how it is used.

use super::{Description, ExportError, Trained, files};
use serde_json::Value;
use std::{fmt::Write as _, path::Path};

/// Writes the card.
pub(super) fn write(
    folder: &Path,
    trained: &Trained,
    description: &Description,
    open_clip: bool,
) -> Result<(), ExportError> {
    files::write(&folder.join("README.md"), text(trained, description, open_clip).as_bytes())
}

fn text(trained: &Trained, description: &Description, open_clip: bool) -> String {
    let recipe = toml::to_string_pretty(&trained.recipe)
        .unwrap_or_else(|_| serde_json::to_string_pretty(&trained.recipe).expect("a recipe is JSON"));
    let name = &trained.recipe.name;
    format!(
        "---\ntags: [llm2clip, clip]\n# license: yours to choose; mind those of the vision tower, the LLM and the data\n---\n\n\
         # {name}\n\n{}\n## Use\n\n{}\n## Results\n\n{}\n## Data\n\n{}\n## Recipe\n\nAs validated, with every override; \
         `recipe.json` holds the same.\n\n```toml\n{recipe}```\n",
        about(description),
        usage(description, open_clip, trained),
        results(trained.results().as_ref(), description),
        data(description),
    )
}

fn about(description: &Description) -> String {
    let Description { checkpoint, image, text, shared_width, .. } = description;
    format!(
        "An LLM2CLIP model (arXiv 2411.04997): a vision tower ({}, {} pixels) and an adapter on an LLM's text vectors \
         ({} numbers), in one space of {shared_width}. Trained by llm2clip, job `{}`, step {}.\n\n\
         | | |\n|---|---|\n| LLM | `{}` |\n| its weights | `{}` |\n| template | `{}` |\n| fingerprint | `{}` |\n",
        image.architecture,
        image.size,
        text.width,
        checkpoint.job,
        checkpoint.step,
        text.model.display(),
        text.provenance.get("weights").map_or("unknown", String::as_str),
        text.template,
        description.fingerprint,
    )
}

fn usage(description: &Description, open_clip: bool, trained: &Trained) -> String {
    let mut text = String::from(
        "Features of images and texts, and a check that yours are right:\n\n```\n\
         llm2clip encode --model . --images 'photos/*.jpg' --texts captions.txt --out features.safetensors\n\
         llm2clip encode --model . --golden write golden.safetensors\n```\n\n",
    );
    if description.image.architecture == "clip" {
        text.push_str(
            "In Python, where `vectors` are the LLM's of the captions ([N, width], read as `llm2clip.json` says):\n\n\
             ```python\nfrom transformers import AutoModel, CLIPImageProcessor\n\
             model = AutoModel.from_pretrained(\".\", trust_remote_code=True).eval()\n\
             pixels = CLIPImageProcessor.from_pretrained(\".\")(images=image, return_tensors=\"pt\").pixel_values\n\
             images, texts = model.get_image_features(pixels), model.get_text_features(vectors)\n\
             cosines = images / images.norm(dim=-1, keepdim=True) @ (texts / texts.norm(dim=-1, keepdim=True)).T\n```\n\n",
        );
    }
    if description.image.architecture == "siglip" {
        text.push_str(
            "The vision tower in Python; `text_adapter.*` and `logit_scale` are of the text side, and transformers leaves them out:\n\n\
             ```python\nfrom transformers import CLIPImageProcessor, SiglipVisionModel\n\
             pixels = CLIPImageProcessor.from_pretrained(\".\")(images=image, return_tensors=\"pt\").pixel_values\n\
             images = SiglipVisionModel.from_pretrained(\".\").eval()(pixels).pooler_output\n```\n\n",
        );
    }
    if trained.recipe.clip().is_some_and(|clip| clip.lora.is_some()) {
        text.push_str(
            "The vision tower was trained by low-rank updates. `model.safetensors` has them merged; `vision_lora/` has them alone, for \
             `peft.PeftModel.from_pretrained` on the tower that they were trained beside.\n\n",
        );
    }
    if open_clip {
        text.push_str(
            "The vision tower alone in open_clip, `model.encode_image(pixels)`. Its text tower there is an empty stand-in, \
             since open_clip has none that takes an LLM's vectors; texts go through the adapter as above:\n\n\
             ```python\nmodel, _, transform = open_clip.create_model_and_transforms(\"local-dir:open_clip\")\n```\n",
        );
    }
    text
}

fn results(results: Option<&Value>, description: &Description) -> String {
    let figures = results.and_then(|results| results["retrieval"].as_array());
    let Some(figures) = figures else { return "The job evaluated nothing.\n".to_owned() };
    let step = results.map_or(&Value::Null, |results| &results["checkpoint_step"]);
    let mut text = String::new();
    if *step != serde_json::json!(description.checkpoint.step) {
        _ = writeln!(text, "Of step {step}, not of the exported one.\n");
    }
    text.push_str("| data set | captions | direction | pairs | R@1 | R@5 | R@10 |\n|---|---|---|---|---|---|---|\n");
    for figure in figures {
        let word = |key: &str| figure[key].as_str().unwrap_or("?").to_owned();
        let percent = |key: &str| format!("{:.1} %", 100.0 * figure[key].as_f64().unwrap_or(f64::NAN));
        _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            word("data"),
            word("captions"),
            word("direction"),
            figure["pairs"],
            percent("recall_at_1"),
            percent("recall_at_5"),
            percent("recall_at_10"),
        );
    }
    text
}

fn data(description: &Description) -> String {
    let mut text = String::from("| data set | samples | fingerprint of its index |\n|---|---|---|\n");
    for source in &description.checkpoint.data {
        _ = writeln!(text, "| {} | {} | `{}` |", source.name, source.samples, source.fingerprint);
    }
    text
}
