//! The adapter's warm start in a recipe.

use super::*;

#[test]
fn the_adapters_warm_start_needs_a_teacher_and_its_vectors_and_clip_begins_from_it() {
    let stage = "[[stage]]\nkind = \"distill\"\ndata = \"train\"\nglobal_batch = 64\nepochs = 4\nrows = 32\n\
                 optimizer = { learning_rate = 1e-3 }\n\n";
    let clip = "[[stage]]\nkind = \"clip\"";
    let text = RECIPE.replace(clip, &format!("{stage}{clip}"));
    let text = text.replace("[model.vision]", "[model.teacher]\nfolder = \"teacher\"\n\n[model.vision]");
    let recipe = read(&text, &[]).unwrap();
    let teacher = TeacherModel { folder: "/home/me/configs/teacher".into(), init: Init::Pretrained };
    assert_eq!(recipe.model.teacher, Some(teacher));
    let distill = recipe.distill().unwrap();
    assert_eq!(
        (distill.rows, distill.training.length, distill.training.optimizer.betas),
        (Some(32), Length::Epochs(4), (0.9, 0.98))
    );
    assert_eq!(recipe.taught(&["other".to_owned(), "train".to_owned()]).collect::<Vec<_>>(), ["train"]);
    let folder = Path::new("/home/me/runs/small/distill/adapter");
    assert_eq!([1, 2].map(|stage| recipe.adapter_before(stage)), [None, Some(folder.to_owned())]);
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    assert!(!serde_json::to_string(&read(RECIPE, &[]).unwrap()).unwrap().contains("teacher"));
    let embed = "[[stage]]\nkind = \"embed\"\ndata = \"train\"\n\n";
    for (from, to, expected) in [
        ("[model.teacher]\nfolder = \"teacher\"\n", "", "stage `distill` needs `[model.teacher]`"),
        (stage, "", "`[model.teacher]` is the teacher of a stage `distill`, and the recipe has none"),
        (embed, "", "no stage `embed` has `train` in its `data`: add it there"),
        ("kind = \"distill\"", "kind = \"distil\"", "did you mean `distill`?"),
        ("rows = 32", "rows = 0", "`stage.rows` is 0, it must be 1 or more"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = read(&text.replacen(from, to, 1), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let late = format!("{}\n{stage}", text.replacen(stage, "", 1));
    let error = read(&late, &[]).unwrap_err().to_string();
    assert!(error.contains("stage `distill` comes after `clip`"), "{error}");
}
