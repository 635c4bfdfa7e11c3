//! A trained model as other libraries take it: a folder with weights under their names, the processor's settings, what the
//! text side needs to be right (`llm2clip.json`), and a card.
//!
//! `export` makes such a folder of a checkpoint, `ExportedModel` reads one back. Knows checkpoints, recipes and model folders;
//! must not know ranks or collectives.

mod card;
mod clip_names;
mod command;
mod description;
mod error;
mod files;
mod hugging_face;
mod llm;
mod open_clip;
mod opened;
pub mod recipe_file;
mod timm_names;
mod trained;
mod vision_lora;

pub use command::{ExportArgs, main};
pub use description::{Description, FILE, read as describe};
pub use error::ExportError;
pub use files::write_safetensors;
pub use opened::{ExportedModel, load_weights};
pub use trained::Trained;

use files::NewFolder;
use std::path::Path;

/// What an export came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// What `llm2clip.json` says.
    pub description: Description,
    /// Whether the folder was there already, made of the same things.
    pub unchanged: bool,
    /// Whether open_clip loads the vision tower from `open_clip/`.
    pub open_clip: bool,
}

/// Writes the folder `to`, in one piece: it is whole, or as it was before. One that was made of the same things stays.
///
/// # Errors
/// When the checkpoint and the recipe do not fit each other, `to` is a folder of something else, or the disk refuses.
pub fn export(trained: &Trained, to: &Path) -> Result<Exported, ExportError> {
    let made_of = trained.digest()?;
    let llm = llm::Llm::of(trained)?;
    if let Some(description) = files::same(to, &made_of)? {
        let open_clip = to.join(open_clip::FOLDER).is_dir();
        return Ok(Exported { description, unchanged: true, open_clip });
    }
    let folder = NewFolder::beside(to)?;
    let path = folder.path();
    let config = trained.vision_config()?;
    let weights_blake3 = hugging_face::write(path, &config, trained)?;
    let open_clip = open_clip::write(path, &config, trained)?;
    vision_lora::write(path, &config, trained)?;
    llm.copy(path)?;
    let description = Description::new(trained, &config, &llm, (made_of, weights_blake3))?;
    description.write(path)?;
    files::write_json(&path.join(recipe_file::FILE), &recipe_file::document(&trained.recipe))?;
    card::write(path, trained, &description, open_clip)?;
    // What cannot be read back is not handed out.
    drop(ExportedModel::open(path, tch::Device::Cpu)?);
    folder.put(to)?;
    Ok(Exported { description, unchanged: false, open_clip })
}
