//! The folders of models that a recipe names: one that is not there is told in the recipe's words, before anything is looked for in it.

use super::error::TrainerError;
use common::recipe::{Recipe, Stage};
use std::path::{Path, PathBuf};

/// A folder that a stage reads a model from.
struct Wanted {
    /// The recipe's key.
    key: &'static str,
    folder: PathBuf,
    /// What is to be in it.
    what: &'static str,
}

/// Whether the folders are there that stage number `stage` needs. `trained`: both towers come from elsewhere.
///
/// # Errors
/// When one is not: which key names it, what it is for, what to do.
pub fn check(recipe: &Recipe, stage: usize, trained: bool) -> Result<(), TrainerError> {
    let wanted = wanted(recipe, stage, trained);
    wanted
        .iter()
        .find(|wanted| !wanted.folder.is_dir())
        .map_or(Ok(()), |wanted| Err(TrainerError::Plan(message(wanted, &recipe.output))))
}

fn wanted(recipe: &Recipe, number: usize, trained: bool) -> Vec<Wanted> {
    let Some(stage) = recipe.stages.get(number) else { return Vec::new() };
    let model = &recipe.model;
    let towers = match stage {
        Stage::Mntp(_) | Stage::Contrast(_) | Stage::Embed(_) => false,
        Stage::Distill(_) | Stage::Clip(_) | Stage::Export => true,
        Stage::Eval(eval) => !trained && eval.needs_towers(recipe),
    };
    let reads = match stage {
        Stage::Mntp(_) | Stage::Contrast(_) => true,
        Stage::Export => false,
        _ => recipe.needs_text_model(stage.data()),
    };
    let teaches = match stage {
        Stage::Embed(embed) => recipe.taught(&embed.data).next().is_some(),
        Stage::Distill(_) => true,
        _ => false,
    };
    let llm =
        if matches!(stage, Stage::Mntp(_) | Stage::Contrast(_)) { recipe.llm_before(number) } else { recipe.encoder() };
    let text = llm.filter(|_| reads).map(|llm| Wanted {
        key: "model.text.folder",
        folder: llm.folder,
        what: "the LLM: config.json, tokenizer.json and, unless `init` is \"random\", weights",
    });
    let vision = model.vision.as_ref().filter(|_| towers).map(|vision| Wanted {
        key: "model.vision.folder",
        folder: vision.folder.clone(),
        what: "the vision tower: config.json and, unless `init` is \"random\", weights",
    });
    let teacher = model.teacher.as_ref().filter(|_| teaches).map(|teacher| Wanted {
        key: "model.teacher.folder",
        folder: teacher.folder.clone(),
        what: "CLIP's text tower: config.json, tokenizer.json and, unless `init` is \"random\", weights",
    });
    [text, vision, teacher].into_iter().flatten().collect()
}

fn message(Wanted { key, folder, what }: &Wanted, output: &Path) -> String {
    let folder = folder.display();
    if Path::new(&folder.to_string()).starts_with(output) {
        return format!(
            "the model that an earlier stage of this job left in {folder} is not there any more: bring it back, or choose another \
             `output` to run that stage again"
        );
    }
    format!(
        "`{key}` is {folder}, and there is no such folder on this machine. It is to hold {what}. Correct the path (it is relative to \
         the recipe's folder), or put the model there; if it is what another job leaves (`mntp/model` below its output), run that job \
         first"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::recipe::{Source, parse};

    fn recipe(name: &str) -> Recipe {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let text = std::fs::read_to_string(configs.join(name)).unwrap();
        parse(Source { text: &text, file: name, folder: &configs, working_directory: Path::new("/nowhere") }, &[])
            .unwrap()
    }

    #[test]
    fn each_stage_asks_for_the_folders_that_it_reads_and_no_others() {
        let recipe = recipe("llm2clip-proclip-15m-clip-l-14-224.toml");
        let keys = |stage: usize| wanted(&recipe, stage, false).iter().map(|wanted| wanted.key).collect::<Vec<_>>();
        let (text, vision, teacher) = ("model.text.folder", "model.vision.folder", "model.teacher.folder");
        let kinds: Vec<&str> = recipe.stages.iter().map(Stage::kind).collect();
        assert_eq!(kinds, ["embed", "distill", "clip", "eval", "export"]);
        let expected =
            [vec![text, teacher], vec![text, vision, teacher], vec![text, vision], vec![text, vision], vec![vision]];
        assert_eq!((0..5).map(keys).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_by_its_key_what_it_is_for_and_what_to_do() {
        let mut recipe = recipe("demo-quick.toml");
        check(&recipe, 0, false).unwrap();
        recipe.model.text.as_mut().unwrap().folder = "/nowhere/llm".into();
        let error = check(&recipe, 0, false).unwrap_err().to_string();
        for part in ["`model.text.folder` is /nowhere/llm", "hold the LLM: config.json", "run that job first"] {
            assert!(error.contains(part), "{error}");
        }
        recipe.model.text.as_mut().unwrap().folder = recipe.output.join("mntp/model");
        let error = check(&recipe, 0, false).unwrap_err().to_string();
        assert!(error.contains("an earlier stage of this job left"), "{error}");
    }
}
