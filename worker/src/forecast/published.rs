//! The shapes of the models that the paper trains, for a forecast before they were downloaded.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// Names that a folder of the same model may have as well.
const ALIASES: [(&str, &str); 6] = [
    ("meta-llama-3-8b-instruct", "llama-3-8b"),
    ("meta-llama-3-8b", "llama-3-8b"),
    ("llama-3.1-8b", "llama-3-8b"),
    ("llama-3.1-8b-instruct", "llama-3-8b"),
    ("llm2clip-llama-3-8b-instruct-cc-finetuned", "llama-3-8b"),
    ("llama-3.2-1b-instruct", "llama-3.2-1b"),
];

/// The configuration of the published model that a folder is named after.
pub(super) fn config<T: DeserializeOwned>(folder: &Path) -> Option<T> {
    let name = folder.file_name()?.to_str()?.to_lowercase();
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, name)| *name);
    serde_json::from_value(shapes().get(name)?.clone()).ok()
}

fn shapes() -> Map<String, Value> {
    serde_json::from_str(include_str!("published.json")).expect("the file in the repository is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{llama::LlamaConfig, vision::VisionConfig};

    #[test]
    fn every_shape_is_a_model_of_its_published_size() {
        let millions = |name: &str| {
            let folder = Path::new("/models").join(name);
            let llm = config::<LlamaConfig>(&folder).map(|config| config.size().parameters);
            let parameters = llm.or_else(|| Some(config::<VisionConfig>(&folder)?.size().parameters)).unwrap();
            (parameters as f64 / 1e6).round() as i64
        };
        // Without heads: 8.03 and 1.24 billion with the table, less the 8B's lm_head of 525 million.
        assert_eq!((millions("Llama-3.1-8B"), millions("Meta-Llama-3-8B-Instruct")), (7_505, 7_505));
        assert_eq!(millions("Llama-3.2-1B-Instruct"), 1_236);
        // Research code's towers with heads of 1280; SigLIP's as timm counts it.
        assert_eq!((millions("eva02-l-14-336"), millions("eva02-l-14-224"), millions("eva02-b-16")), (305, 305, 87));
        assert_eq!(
            (millions("clip-l-14-336"), millions("clip-b-16"), millions("siglip2-so400m-14-224")),
            (305, 87, 428)
        );
        // OpenAI's own: 427.6 million in both towers, less the scale.
        let (whole, folder) = ("clip-vit-large-patch14", Path::new("/models/clip-vit-large-patch14"));
        let text = config::<crate::model::clip_text::ClipTextConfig>(folder).unwrap().parameters();
        assert_eq!((millions(whole), text, shapes().len()), (304, 123_650_304, 10));
        assert!(config::<LlamaConfig>(Path::new("/models/llama-9")).is_none());
    }
}
