//! Small recipes over the emoji data.

use std::path::{Path, PathBuf};

/// A file of `tests/data/emoji`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/emoji").join(name)
}

/// A folder of `configs/models`.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models").join(name)
}

/// `mntp` over word glosses and captions, then `contrast` over captions, so many steps each in batches of 16 and chunks of 4, with
/// more lines for either: what stands before `embed` in [`Recipe::tuning`].
pub fn tuning(steps: u64, mntp: &str, contrast: &str) -> String {
    format!(
        r#"
[text.glosses]
files = {glosses:?}

[[stage]]
kind = "mntp"
data = ["glosses", "train"]
block = 32
global_batch = 16
chunk = 4
steps = {steps}
optimizer = {{ learning_rate = 1e-3, clip_norm = 1.0 }}
{mntp}

[[stage]]
kind = "contrast"
data = "train"
pairs = {{ train = {{ rule = "short-long", short = ".txt", long = "long_caption", seeks_long = "find more" }} }}
global_batch = 16
chunk = 4
steps = {steps}
optimizer = {{ learning_rate = 1e-3, clip_norm = 1.0 }}
{contrast}
"#,
        glosses = data("text-validation.parquet"),
    )
}

/// A recipe to be changed and written down. Its models are small: scenarios are not about what they learn.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The training set's shards.
    pub shards: PathBuf,
    /// The parquet of long captions.
    pub table: PathBuf,
    /// The caption table's key column.
    pub key: String,
    /// Where the text vectors lie already; absent means that the recipe has an LLM and a stage `embed`.
    pub vectors: Option<PathBuf>,
    /// Folder of the vision tower's config.json.
    pub vision: PathBuf,
    /// How the vision tower begins: `random` or `pretrained`.
    pub init: &'static str,
    /// Optimizer steps.
    pub steps: u64,
    /// Pairs a step.
    pub global_batch: u64,
    /// Pairs a pass.
    pub chunk: u64,
    /// Where checkpoints are kept; absent means in the output.
    pub checkpoints: Option<String>,
    /// Steps between checkpoints.
    pub every_steps: u64,
    /// Restarts.
    pub max_failures: u32,
    /// Seconds for which the last checkpoint is tried again.
    pub storage_wait_s: u64,
    /// More lines for the data set.
    pub data: String,
    /// More lines for `[model.text]`.
    pub text: String,
    /// Stages before `embed`, and the data that they need.
    pub tuning: String,
    /// Stages between `embed` and `clip`.
    pub before_clip: String,
    /// More lines for the `clip` stage.
    pub clip: String,
    /// Whether each rank keeps the moments of its share of the parameters alone.
    pub sharded: bool,
    /// With how many ranks it may run: the content of `[elastic]`; empty means with as many as it was launched with.
    pub elastic: String,
    /// More lines for `[faults]`.
    pub faults: String,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            shards: data("emoji-wds/train/00000.tar"),
            table: data("emoji-dense-train.parquet"),
            key: "key".to_owned(),
            vectors: None,
            vision: data("../vit-mini"),
            init: "random",
            steps: 12,
            global_batch: 48,
            chunk: 16,
            checkpoints: None,
            every_steps: 4,
            max_failures: 0,
            storage_wait_s: 60,
            data: String::new(),
            text: String::new(),
            tuning: String::new(),
            before_clip: String::new(),
            clip: String::new(),
            sharded: false,
            elastic: String::new(),
            faults: String::new(),
        }
    }
}

impl Recipe {
    /// Writes the recipe to `folder/recipe.toml`, its output being `folder/output`.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let (vectors, llm, embed) = match &self.vectors {
            Some(folder) => (format!("vectors = {folder:?}"), String::new(), ""),
            None => (
                String::new(),
                format!(
                    "[model.text]\nfolder = {:?}\ninit = \"random\"\nmax_length = 64\n{}\n",
                    small_llm(folder),
                    self.text
                ),
                "[[stage]]\nkind = \"embed\"\ndata = \"train\"\n",
            ),
        };
        let elastic = if self.elastic.is_empty() { String::new() } else { format!("[elastic]\n{}", self.elastic) };
        let text = format!(
            r#"name = "scenario"
seed = 7
output = {output:?}
{checkpoints}

[data.train]
kind = "webdataset"
shards = {shards:?}
captions = {{ table = {table:?}, key = {key:?}, columns = {{ ".txt" = 1, long_caption = 1 }} }}
{vectors}
{data}

{llm}
[model.vision]
folder = {vision:?}
init = {init:?}

[model.adapter]
blocks = 1

{tuning}

{embed}
{before_clip}
[[stage]]
kind = "clip"
data = "train"
global_batch = {global_batch}
chunk = {chunk}
steps = {steps}
optimizer = {{ learning_rate = 1e-3, clip_norm = 1.0, sharded = {sharded} }}
schedule = {{ warmup_steps = 2 }}
checkpoint = {{ every_steps = {every_steps}, keep = 2 }}
{clip}

[faults]
max_failures = {max_failures}
storage_wait_s = {storage_wait_s}
{faults}

{elastic}
"#,
            output = folder.join("output"),
            checkpoints = self.checkpoints.as_ref().map(|place| format!("checkpoints = {place:?}")).unwrap_or_default(),
            shards = self.shards,
            table = self.table,
            key = self.key,
            vision = self.vision,
            init = self.init,
            global_batch = self.global_batch,
            chunk = self.chunk,
            steps = self.steps,
            every_steps = self.every_steps,
            data = self.data,
            tuning = self.tuning,
            before_clip = self.before_clip,
            clip = self.clip,
            sharded = self.sharded,
            max_failures = self.max_failures,
            faults = self.faults,
            storage_wait_s = self.storage_wait_s,
        );
        let path = folder.join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// A folder of an LLM with the demo's tokenizer and an eighth of its width.
fn small_llm(folder: &Path) -> PathBuf {
    let (demo, small) = (model("llama-tiny"), folder.join("llm"));
    std::fs::create_dir_all(&small).unwrap();
    std::fs::copy(demo.join("tokenizer.json"), small.join("tokenizer.json")).unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    });
    std::fs::write(small.join("config.json"), config.to_string()).unwrap();
    small
}
