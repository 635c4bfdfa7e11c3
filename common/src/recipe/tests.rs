//! Recipes as people write them, and the mistakes they make.

use super::*;
use crate::sampler::{Policy, Tail};
use std::path::Path;

mod distill;

const RECIPE: &str = r#"name = "small"
seed = 3
output = "runs/small"

[data.train]
kind = "webdataset"
shards = "../data/*.tar"
captions = { table = "captions.parquet", columns = { ".txt" = 1, long = 2 } }

[model.text]
folder = "llama"

[model.vision]
folder = "/models/vit"
init = "random"

[model.adapter]

[[stage]]
kind = "embed"
data = "train"

[[stage]]
kind = "clip"
data = ["train"]
global_batch = 256
steps = 100
optimizer = { learning_rate = 1e-3 }
"#;

fn read(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let source = Source {
        text,
        file: "small.toml",
        folder: Path::new("/home/me/configs"),
        working_directory: Path::new("/home/me"),
    };
    parse(source, &overrides.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn clip(recipe: &Recipe) -> &ClipStage {
    recipe.stages.iter().find_map(|stage| if let Stage::Clip(clip) = stage { Some(clip) } else { None }).unwrap()
}

#[test]
fn a_recipe_is_complete_and_its_paths_absolute() {
    let recipe = read(RECIPE, &[]).unwrap();
    assert_eq!(recipe.output, Path::new("/home/me/runs/small"));
    assert_eq!(recipe.data["train"].shards, ["/home/me/data/*.tar".into()]);
    assert_eq!(recipe.data["train"].captions.table.as_ref().unwrap().file, "/home/me/configs/captions.parquet".into());
    let columns: Vec<_> = recipe.data["train"].captions.columns.iter().map(|c| (c.name.as_str(), c.weight)).collect();
    assert_eq!(columns, [(".txt", 1), ("long", 2)]);
    assert_eq!(recipe.model.vision.as_ref().unwrap().folder, Path::new("/models/vit"));
    assert_eq!(clip(&recipe).training.chunk, 256);
    assert_eq!(clip(&recipe).training.length, Length::Steps(100));
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
}

#[test]
fn mistakes_are_told_with_line_key_and_what_was_meant() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(RECIPE.contains(from), "{from}");
        let error = read(&RECIPE.replacen(from, to, 1), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    };
    check(
        "global_batch",
        "global_bach",
        "small.toml:26: `global_bach` is no key in `stage`; did you mean `global_batch`?",
    );
    check(
        "steps = 100",
        "steps = 100\nprecison = \"fp32\"",
        "small.toml:28: `precison` is no key in `stage`; did you mean `precision`?",
    );
    check("seed = 3", "seed = -3", "small.toml:2: `seed` is -3, it must be 0 or more");
    check("seed = 3", "sed = 3", "small.toml:2: `sed` is no key of a recipe; did you mean `seed`?");
    check("256", "\"256\"", "small.toml:26: `stage.global_batch` must be an integer, not a string");
    check("\"clip\"", "\"clipp\"", "did you mean `clip`?");
    check("[\"train\"]", "[\"trian\"]", "no `[data.trian]`, did you mean `train`?");
    check("[model.adapter]", "", "stage `clip` needs `[model.adapter]`");
    check("steps = 100", "steps = 100\nepochs = 2", "either `epochs` or `steps`, not both");
    check("steps = 100", "", "needs either `epochs` or `steps`");
    check("steps = 100", "epoch = 20", "small.toml:27: `epoch` is no key in `stage`; did you mean `epochs`?");
    check("steps = 100", "step = 20", "did you mean `steps`?");
    check("name = \"small\"", "name = \"a/b\"", "small.toml:1: `name` must be");
    check("seed = 3", "seed = = 3", "small.toml:2");
    check("long = 2", "long = -2", "the weight of caption column `long` is -2");
    check("learning_rate = 1e-3", "learning_rate = 0", "`stage.optimizer.learning_rate` is 0, it must be above 0");
}

#[test]
fn data_sets_are_mixed_and_shuffled_as_the_recipe_says() {
    let two = RECIPE.replace(
        "[model.text]",
        "[data.other]\nkind = \"webdataset\"\nshards = \"*.tar\"\nshuffle = { block = 64, window = 4096 }\n\n[model.text]",
    );
    let two = two.replace("data = [\"train\"]", "data = [\"train\", \"other\"]\nMIX");
    let with = |mix: &str| read(&two.replace("MIX", mix), &[]);
    let plain = with("").unwrap();
    assert_eq!((&clip(&plain).training.mix, clip(&plain).training.tail), (&Mix::default(), Tail::Drop));
    assert_eq!(plain.data["train"].shuffle, Shuffle::Full);
    assert_eq!(plain.data["other"].shuffle, Shuffle::Blocks { block: 64, window: 4096 });
    let mixed = with("mix = { policy = \"mixed\", weights = { other = 1, train = 2 } }\ntail = \"carry\"").unwrap();
    assert_eq!(clip(&mixed).training.mix, Mix { policy: Policy::Mixed, weights: Some(vec![2, 1]) });
    assert_eq!(clip(&mixed).training.tail, Tail::Carry);
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&mixed).unwrap()).unwrap(), mixed);
    let change = |recipe: &Recipe, new: &[(&str, u32)]| {
        let mut recipe = recipe.clone();
        let new = new.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
        recipe.set_weights(1, &new).map(|()| clip(&recipe).training.mix.weights.clone().unwrap())
    };
    assert_eq!(change(&mixed, &[("other", 5)]), Ok(vec![2, 5]));
    assert_eq!(change(&plain, &[("other", 5), ("train", 0)]), Ok(vec![0, 5]));
    for (recipe, new, expected) in [
        (&plain, &[("other", 5)][..], "data set `train` needs a weight, too"),
        (&mixed, &[("othr", 5)], "data set `othr` is not one of the stage's: train, other"),
        (&mixed, &[("other", 0), ("train", 0)], "no data set has a weight above 0"),
    ] {
        assert!(change(recipe, new).unwrap_err().contains(expected), "{new:?}");
    }

    let check = |from: &str, to: &str, expected: &str| {
        let text = two.replace("MIX", "mix = { weights = { train = 2, other = 1 } }");
        assert!(text.contains(from), "{from}");
        let error = read(&text.replacen(from, to, 1), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    };
    check(
        ", other = 1 }",
        " }",
        "small.toml:31: `stage.mix.weights` has no weight of data set `other`; 0 leaves it out",
    );
    check("other = 1 }", "other = 1, val = 1 }", "small.toml:31: `stage.mix.weights` names `val`");
    check("train = 2, other = 1", "train = 0, other = 0", "no data set of `stage.mix.weights` has a weight above 0");
    check("train = 2", "train = -2", "small.toml:31: the weight of data set `train` is -2, it must be 0 or more");
    check(
        "weights =",
        "policy = \"one\", weights =",
        "`stage.mix.policy` is `one`, it must be one of: one-source, mixed",
    );
    check("\"train\", \"other\"]", "\"train\", \"train\"]", "small.toml:30: `stage.data` names data set `train` twice");
    check(
        "window = 4096",
        "window = 32",
        "small.toml:13: `data.other.shuffle.window` is 32, less than one block of 64",
    );
    check(
        "window = 4096",
        "window = 2047",
        "`data.other.shuffle.window` is 2047, it must be at least 2048: 8 global batches",
    );
    check("{ block = 64, window = 4096 }", "\"blocks\"", "small.toml:13: `data.other.shuffle` must be \"full\" or {");
    check("block = 64", "blok = 64", "`blok` is no key in `data.other.shuffle`; did you mean `block`?");
    check("steps = 100", "steps = 100\ntail = \"cary\"", "`stage.tail` is `cary`, it must be one of: drop, carry");
}

#[test]
fn overrides_reach_every_place_and_their_mistakes_are_told_as_theirs() {
    let recipe =
        read(RECIPE, &["stage.clip.global_batch=512", "seed=9", "name=other", "stage.clip.optimizer.clip_norm=1"])
            .unwrap();
    assert_eq!((clip(&recipe).training.global_batch, recipe.seed, recipe.name.as_str()), (512, 9, "other"));
    assert_eq!(clip(&recipe).training.optimizer.clip_norm, Some(1.0));
    let check = |text: &str, expected: &str| {
        let error = read(RECIPE, &[text]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("stage.clp.steps=3", "--set stage.clp.steps=3: the recipe has no stage `clp`, did you mean `clip`?");
    check("stage.clip.stps=3", "--set stage.clip.stps=3: `stps` is no key in `stage`; did you mean `steps`?");
    check("seed", "the form KEY=VALUE");
    check("seed=many", "`seed` must be an integer, not a string");
}

#[test]
fn checkpoints_are_in_the_output_or_where_the_recipe_says_a_folder_or_a_bucket() {
    let root = |overrides: &[&str]| read(RECIPE, overrides).unwrap().checkpoint_root().to_owned();
    assert_eq!(root(&[]), Path::new("/home/me/runs/small"));
    assert_eq!(root(&["checkpoints=kept/small"]), Path::new("/home/me/kept/small"));
    assert_eq!(root(&["checkpoints=s3://bucket/small/"]), Path::new("s3://bucket/small/"));
    let stage = crate::manifest::paths::stage_folder(&root(&["checkpoints=s3://bucket/small/"]), "clip");
    assert_eq!(stage.to_str(), Some("s3://bucket/small/clip"));
    let error = read(RECIPE, &["checkpoints=s3://bucket"]).unwrap_err().to_string();
    assert!(error.contains("checkpoints") && error.contains("s3://BUCKET/KEY"), "{error}");
    let kept = read(RECIPE, &["checkpoints=s3://bucket/small"]).unwrap();
    assert_eq!(kept.fingerprint(), read(RECIPE, &[]).unwrap().fingerprint(), "no number depends on it");
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&kept).unwrap()).unwrap(), kept);
}

#[test]
fn the_fingerprint_sees_what_changes_numbers_and_nothing_else() {
    let base = read(RECIPE, &[]).unwrap().fingerprint();
    assert_eq!(
        base,
        read(RECIPE, &["output=elsewhere", "faults.max_failures=0", "faults.storage_wait_s=9"]).unwrap().fingerprint()
    );
    assert_ne!(base, read(RECIPE, &["seed=4"]).unwrap().fingerprint());
}

#[test]
fn data_sets_of_other_kinds_and_joins_by_other_fields() {
    let with = |to: &str| {
        let from = "kind = \"webdataset\"\nshards = \"../data/*.tar\"\n\
                    captions = { table = \"captions.parquet\", columns = { \".txt\" = 1, long = 2 } }";
        assert!(RECIPE.contains(from));
        read(&RECIPE.replacen(from, to, 1), &[])
    };
    let joined = with(
        "kind = \"webdataset\"\nshards = \"a.tar\"\nindex = \"beside\"\n\
         captions = { table = \"d.csv\", join = \"url\", key = \"Image Path\", unmatched = \"skip\", \
         columns = { long = 1, \".json:x\" = 1 } }",
    )
    .unwrap();
    let data = &joined.data["train"];
    let table = data.captions.table.as_ref().unwrap();
    assert_eq!((table.join.as_str(), table.key.as_str(), table.unmatched), ("url", "Image Path", Unmatched::Skip));
    assert_eq!(data.index, IndexPlace::Beside);
    let list = with(
        "kind = \"list\"\nshards = \"s.json\"\nimages = \"coco\"\nimage_column = \"image\"\nrows = { from = 1000 }\n\
         only = { split = \"test\" }\nindex = \"cache/here\"\ncaptions = { columns = { \".caption[0]\" = 1 } }",
    )
    .unwrap();
    let data = &list.data["train"];
    assert_eq!(data.images, Some("/home/me/configs/coco".into()));
    assert_eq!(data.rows, RowRange { from: 1000, to: None });
    assert_eq!(data.only["split"], "test");
    assert_eq!(data.index, IndexPlace::Folder("/home/me/configs/cache/here".into()));
    for (to, expected) in [
        ("kind = \"webdataset\"\nshards = \"a.tar\"\nimages = \"x\"", "`images` is the folder of a list's images"),
        ("kind = \"list\"\nshards = \"a\"\nrows = { from = 3, to = 3 }", "`rows` is empty"),
        ("kind = \"list\"\nshards = \"a\"\ncaptions = { join = \"url\" }", "`captions.join` is given without"),
    ] {
        let error = with(to).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn data_sets_whose_vectors_are_there_need_no_llm() {
    let llm = "[model.text]\nfolder = \"llama\"\n";
    let embed = "[[stage]]\nkind = \"embed\"\ndata = \"train\"\n";
    assert!(RECIPE.contains(llm) && RECIPE.contains(embed));
    let bare = RECIPE.replace(llm, "");
    let error = read(&bare, &[]).unwrap_err().to_string();
    assert!(error.contains("stage `embed` needs `[model.text]`"), "{error}");
    assert!(error.contains("`data.train.vectors`"), "{error}");
    for folder in ["../runs/a/embed/train", "s3://bucket/embed/train"] {
        let set = format!("data.train.vectors={folder}");
        let recipe = read(&bare.replace(embed, ""), &[&set]).unwrap();
        let expected = if folder.starts_with("s3") { folder } else { "/home/me/runs/a/embed/train" };
        assert_eq!(recipe.data["train"].vectors, Some(expected.into()));
        assert!(!recipe.needs_text_model(&["train".to_owned()]));
        // The stage may stay: it has nothing to do, or LLM2CLIP's tars to take over.
        assert!(read(&bare, &[&set]).is_ok());
    }
    let other = bare.replace("data = [\"train\"]", "data = [\"train\", \"more\"]").replace(embed, "");
    let other = format!("{other}\n[data.more]\nkind = \"webdataset\"\nshards = \"more.tar\"\n");
    let error = read(&other, &["data.train.vectors=a"]).unwrap_err().to_string();
    assert!(error.contains("data set `more`") && error.contains("`data.more.vectors`"), "{error}");
}

#[test]
fn captions_are_compared_without_a_vision_model_and_by_columns_that_there_are() {
    let (start, _) = RECIPE.split_once("[model.vision]").unwrap();
    let eval = |keys: &str| {
        read(&format!("{start}\n[[stage]]\nkind = \"eval\"\ndata = \"train\"\nimage_retrieval = false\n{keys}"), &[])
    };
    let recipe = eval("caption_retrieval = [[\".txt\", \"long\"]]").unwrap();
    let Stage::Eval(stage) = &recipe.stages[0] else { panic!("{recipe:?}") };
    assert!(!stage.image_retrieval);
    assert_eq!(stage.caption_retrieval, [CaptionPair { first: ".txt".to_owned(), second: "long".to_owned() }]);
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    for (keys, expected) in [
        ("", "the `eval` stage has nothing to do"),
        (
            "caption_retrieval = [[\".txt\", \"lnog\"]]",
            "above 0 are: .txt, long (of `x[*]`, name one caption: `x[0]`), did",
        ),
        ("caption_retrieval = [[\"long\", \"long\"]]", "compares `long` with itself"),
        ("caption_retrieval = [[\"long\"]]", "must be a list of pairs"),
    ] {
        let error = eval(keys).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn one_caption_of_several_is_named_by_its_place() {
    let columns = "columns = { \".txt\" = 1, long = 2 }";
    let text = RECIPE.replace(columns, "columns = { \".json:texts[*]\" = 1, long = 0 }");
    let data = &read(&text, &["data.train.benchmark=coco"]).unwrap().data["train"];
    assert_eq!(data.benchmark, Some(Benchmark::Coco));
    let is_of =
        |first: &str, second: &str| CaptionPair { first: first.to_owned(), second: second.to_owned() }.is_of(data);
    assert!(is_of(".json:texts[0]", ".json:texts[1]"));
    // All of them are no caption, and a column of weight 0 has no vectors.
    assert!(!is_of(".json:texts[*]", ".json:texts[1]"));
    assert!(!is_of(".json:texts[0]", "long"));
    let error = read(&text, &["data.train.benchmark=cocoa"]).unwrap_err().to_string();
    assert!(error.contains("data.train.benchmark") && error.contains("flickr30k"), "{error}");
}

#[test]
fn urls_of_data_are_kept_as_typed_wherever_they_are_given() {
    let text =
        RECIPE.replace("../data/*.tar", "s3://bucket/train/*.tar").replace("captions.parquet", "gs://b/c.parquet");
    let recipe = read(&text, &[]).unwrap();
    let data = &recipe.data["train"];
    assert_eq!(data.shards, ["s3://bucket/train/*.tar".into()]);
    assert_eq!(data.captions.table.as_ref().unwrap().file, "gs://b/c.parquet".into());
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    let set = |value: &str| read(RECIPE, &[&format!("data.train.shards={value}")]);
    assert_eq!(set("s3://bucket/train/*.tar").unwrap().data["train"].shards, data.shards);
    let both = set("[\"s3://bucket/a.tar\", \"b.tar\"]").unwrap();
    assert_eq!(both.data["train"].shards, ["s3://bucket/a.tar".into(), "/home/me/configs/b.tar".into()]);
    assert_ne!(set("s3://bucket/a.tar").unwrap().fingerprint(), set("s3://bucket/b.tar").unwrap().fingerprint());
    let error = read(&RECIPE.replace("../data/*.tar", "s4://b/*.tar"), &[]).unwrap_err().to_string();
    assert!(
        error.contains("small.toml:7: `data.train.shards` is `s4://b/*.tar`, it must be a path or begin"),
        "{error}"
    );
}

#[test]
fn an_export_has_no_settings_and_comes_after_the_training() {
    let export = "\n[[stage]]\nkind = \"export\"\n";
    assert_eq!(read(&format!("{RECIPE}{export}"), &[]).unwrap().stages[2], Stage::Export);
    let error = read(&format!("{RECIPE}{export}data = \"train\"\n"), &[]).unwrap_err().to_string();
    assert!(error.contains("`data` is no key in `stage`"), "{error}");
    let first = RECIPE.replacen("[[stage]]", "[[stage]]\nkind = \"export\"\n\n[[stage]]", 1);
    let error = read(&first, &[]).unwrap_err().to_string();
    assert!(error.contains("`export` needs a `clip` stage before it"), "{error}");
}

/// A recipe that tunes the LLM before it is used.
fn tuning() -> String {
    let texts = "[text.wiki]\nfiles = \"wiki-*.parquet\"\n\n\
                 [text.nq]\nkind = \"pairs\"\nfiles = [\"nq.jsonl\", \"s3://b/nq.jsonl\"]\ninstruction = [\"seek\", \"find\"]\n\n\
                 [model.text]";
    let stages = "[[stage]]\nkind = \"mntp\"\ndata = [\"wiki\", \"train\"]\nglobal_batch = 64\nsteps = 10\n\
                  optimizer = { learning_rate = 5e-5 }\n\n\
                  [[stage]]\nkind = \"contrast\"\ndata = [\"train\", \"nq\"]\nglobal_batch = 128\nepochs = 1\n\
                  pairs = { train = { rule = \"short-long\", short = \".txt\", long = \"long\" } }\n\
                  lora = { rank = 8 }\noptimizer = { learning_rate = 2e-4 }\nschedule = { warmup_steps = 3 }\n\n\
                  [[stage]]\nkind = \"embed\"";
    RECIPE.replacen("[model.text]", texts, 1).replacen("[[stage]]\nkind = \"embed\"", stages, 1)
}

#[test]
fn stages_that_tune_the_llm_have_their_references_defaults() {
    let recipe = read(&tuning(), &[]).unwrap();
    let [Stage::Mntp(mntp), Stage::Contrast(contrast), ..] = &recipe.stages[..] else { panic!("{:?}", recipe.stages) };
    assert_eq!((mntp.block, mntp.remainder, mntp.training.mix.policy), (512, Remainder::Once, Policy::Mixed));
    assert_eq!(mntp.mask, Masking { rate: 0.2, token: "_".to_owned(), replacement: Replacement::Bert });
    assert_eq!((mntp.lora.as_ref(), mntp.training.schedule.decay), (None, Decay::Linear));
    let optimizer = mntp.training.optimizer;
    assert_eq!((optimizer.betas, optimizer.eps, optimizer.weight_decay), ((0.9, 0.999), 1e-8, 0.0));
    let lora = contrast.lora.as_ref().unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.dropout, lora.targets.len()), (8, 16.0, 0.05, 7));
    assert_eq!((contrast.scale, contrast.negatives, contrast.training.mix.policy), (50.0, true, Policy::OneSource));
    let TextKind::Pairs { instructions } = &recipe.text["nq"].kind else { panic!("{:?}", recipe.text) };
    assert_eq!(instructions, &["seek", "find"]);
    assert_eq!(recipe.text["wiki"].kind, TextKind::Documents { column: "text".to_owned() });
    assert_eq!(clip(&recipe).training.schedule.decay, Decay::Cosine);
    assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
}

#[test]
fn each_stage_finds_the_llm_as_those_before_it_left_it() {
    let recipe = read(&tuning(), &["model.text.adapters=supervised"]).unwrap();
    let llm = |stage| recipe.llm_before(stage).unwrap();
    let adapter = |path: &str| vec![std::path::PathBuf::from(path)];
    assert_eq!(
        (llm(0).folder, llm(0).adapters),
        ("/home/me/configs/llama".into(), adapter("/home/me/configs/supervised"))
    );
    // All weights were trained: what had been merged into them is in them.
    assert_eq!((llm(1).folder, llm(1).init), ("/home/me/runs/small/mntp/model".into(), Init::Pretrained));
    assert_eq!(llm(1).adapters, Vec::<std::path::PathBuf>::new());
    assert_eq!(llm(2).adapters, adapter("/home/me/runs/small/contrast/adapter"));
    assert_eq!(recipe.encoder().unwrap(), llm(2));
}

#[test]
fn mistakes_of_stages_that_tune_the_llm_are_told() {
    let text = tuning();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{from}");
        let error = read(&text.replacen(from, to, 1), &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
    };
    check("[\"wiki\", \"train\"]", "\"nq\"", "stage `mntp` reads documents, and `[text.nq]` has pairs");
    check(
        "[\"train\", \"nq\"]",
        "[\"train\", \"wiki\"]",
        "stage `contrast` needs pairs, and `[text.wiki]` has documents",
    );
    check("data = \"train\"", "data = \"wiki\"", "stage `embed` needs images, and `wiki` is a data set of texts");
    check("[text.wiki]", "[text.train]", "there are both `[data.train]` and `[text.train]`");
    check("pairs = { train = {", "pairs = { nq = {", "needs to know how the captions of `train` make pairs");
    check("long = \"long\"", "long = \"dense\"", "names column `dense`; `data.train.captions` has .txt, long");
    check("long = \"long\"", "long = \".txt\"", "`short` and `long` are both `.txt`");
    check(
        "rule = \"short-long\", short = \".txt\", long = \"long\"",
        "rule = \"random\"",
        "one of: short-long, two-of, views",
    );
    check("lora = { rank = 8 }", "lora = { rank = 8, dropout = 1.5 }", "`stage.lora.dropout` is 1.5");
    let views = text.replacen("rule = \"short-long\", short = \".txt\", long = \"long\"", "rule = \"views\"", 1);
    let error = read(&views.replacen("rank = 8", "dropout = 0.0", 1), &[]).unwrap_err().to_string();
    assert!(error.contains("nothing tells the two apart"), "{error}");
    let error = read(&text, &["stage.mntp.schedule.warmup_steps=10"]).unwrap_err().to_string();
    assert!(error.contains("`warmup_steps` is 10, the stage has 10 steps"), "{error}");
    let (first, second) =
        (text.find("[[stage]]\nkind = \"contrast\"").unwrap(), text.find("[[stage]]\nkind = \"embed\"").unwrap());
    let end = text.find("[[stage]]\nkind = \"clip\"").unwrap();
    let exchanged = [&text[..first], &text[second..end], &text[first..second], &text[end..]].concat();
    let error = read(&exchanged, &[]).unwrap_err().to_string();
    assert!(error.contains("stage `contrast` comes after `embed`"), "{error}");
}

#[test]
fn a_loss_has_its_own_settings_and_what_is_not_said_leaves_the_fingerprint() {
    let with = |lines: &str| read(&RECIPE.replace("steps = 100", &format!("steps = 100\n{lines}")), &[]);
    let plain = with("").unwrap();
    assert_eq!(clip(&plain).objective, Objective::default());
    let json = serde_json::to_string(&plain).unwrap();
    for key in [
        "label_smoothing",
        "logit_bias",
        "\"loss\"",
        "skip_nonfinite",
        "\"lock\"",
        "\"lora\"",
        "\"ema\"",
        "distillation",
    ] {
        assert!(!json.contains(key), "{key} is in {json}");
    }
    let sigmoid = with("loss = \"sigmoid\"").unwrap();
    assert_eq!(
        clip(&sigmoid).objective,
        Objective { loss: PairLoss::Sigmoid, logit_bias_init: Some(-10.0), ..Objective::default() }
    );
    assert_eq!(clip(&sigmoid).logit_scale_init, 10f64.ln());
    let smoothed = with("label_smoothing = 0.1\nskip_nonfinite = 10").unwrap();
    assert_eq!((clip(&smoothed).objective.label_smoothing, clip(&smoothed).training.skip_nonfinite), (0.1, 10));
    assert_eq!(clip(&smoothed).logit_scale_init, (1.0f64 / 0.07).ln());
    let locked = with("lock = { vision = true, vision_unlocked_groups = 2 }").unwrap();
    assert_eq!(clip(&locked).lock, Lock { vision: true, vision_unlocked_groups: 2, ..Lock::default() });
    let parts = with("lora = { rank = 4 }\nema = { }").unwrap();
    let distilled = with("self_distillation = { rows = 512 }\nema = { decay = 0.999 }").unwrap();
    let expected = SelfDistillation { weight: 4e-4, rows: Some(512) };
    assert_eq!(clip(&distilled).objective.self_distillation, Some(expected));
    let lora = clip(&parts).lora.clone().unwrap();
    assert_eq!((lora.rank, lora.alpha, lora.targets.len()), (4, 8.0, 0));
    assert_eq!(clip(&parts).ema, Some(Ema { decay: 0.9999, used: true }));
    for recipe in [plain, sigmoid, smoothed, locked, parts, distilled] {
        assert_eq!(serde_json::from_str::<Recipe>(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    }
    for (lines, expected) in [
        ("loss = \"sigmoid\"\nlabel_smoothing = 0.1", "`label_smoothing` is of the softmax loss"),
        ("logit_bias_init = -10", "`logit_bias_init` is of the sigmoid loss"),
        ("loss = \"sigmod\"", "`stage.loss` is `sigmod`, it must be one of: softmax, sigmoid"),
        ("lock = { vision_unlocked_groups = 1 }", "`stage.lock.vision_unlocked_groups` is of a locked vision tower"),
        ("lock = { vision = true, adapter = true }", "nothing is left to learn"),
        ("lora = { rank = 4 }\nlock = { vision = true }", "a vision tower that is locked anyway"),
        ("ema = { decay = 1.0 }", "`stage.ema.decay` is 1, it must be from 0 to 0.9999999"),
        ("ema = { used = true }", "`used` is no key in `stage.ema`; did you mean `use`?"),
        ("self_distillation = { }", "the stage needs `ema = { decay = … }`"),
        ("lock = { visoin = true }", "`visoin` is no key in `stage.lock`; did you mean `vision`?"),
        ("label_smoothing = 1.0", "`stage.label_smoothing` is 1, it must be from 0 to 0.999"),
        ("label_smothing = 0.1", "did you mean `label_smoothing`?"),
        ("skip_nonfinit = 1", "did you mean `skip_nonfinite`?"),
    ] {
        let error = with(lines).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
