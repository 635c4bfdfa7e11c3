//! `llm2clip encode`: features of images and texts by an exported model, and reference vectors by which anyone can see that an
//! extraction of their own is right.

mod golden;
mod images;
mod texts;

use crate::{
    data::arguments::Format,
    export::{ExportedModel, write_safetensors},
    torch::cuda::DeviceChoice,
};
use anyhow::Context as _;
use common::recipe::Precision;
use images::ImageSide;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use tch::{Kind, Tensor};
use texts::TextSide;

/// What to encode, with what.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("asked").required(true).multiple(true).args(["images", "texts", "golden"])))]
pub struct EncodeArgs {
    /// A folder that `llm2clip export` wrote
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// The LLM's folder, where it is not the one that the model names
    #[arg(long, value_name = "FOLDER")]
    pub llm: Option<PathBuf>,
    /// Images, or patterns of them in quotes such as 'photos/*.jpg'
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// The features' file: tensors `image` and `text`, [N, width] in fp32, normalised; what each row is of is written beside,
    /// as .images.txt and .texts.txt
    #[arg(long, value_name = "FILE", required_unless_present = "golden")]
    pub out: Option<PathBuf>,
    /// Reference vectors of fixed images and sentences: `write` them to a file, or `check` what one says; exit code 1 when
    /// they are apart
    #[arg(long, num_args = 2, value_names = ["write|check", "FILE"])]
    pub golden: Vec<String>,
    /// Images per forward pass
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: u64,
    /// Tokens per forward pass of the LLM
    #[arg(long, default_value_t = 8192, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch_tokens: u64,
    /// What the vision tower and the adapter compute in; the LLM computes in what it did in the training
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "bf16"])]
    pub precision: String,
    /// Where to compute: cpu, cuda, cuda:N, auto
    #[arg(long, default_value = "cpu")]
    pub device: DeviceChoice,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    pub threads: u16,
    /// How to print: lines for people, or one JSON document
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// A model that is open, and how to run it.
struct Encoder<'a> {
    model: ExportedModel,
    args: &'a EncodeArgs,
    device: tch::Device,
    kind: Kind,
}

/// Encodes, and says what was written.
pub fn main(args: &EncodeArgs) -> anyhow::Result<()> {
    // What is cheap to check comes before what is not.
    let golden = golden::Wish::parse(&args.golden)?;
    let files = images::files(&args.images)?;
    let texts = args.texts.as_deref().map(texts::lines).transpose()?.unwrap_or_default();
    let device = args.device.choose(0).map_err(anyhow::Error::msg)?;
    tch::set_num_threads(i32::from(args.threads.max(1)));
    let kind = crate::torch::kind(if args.precision == "bf16" { Precision::Bf16 } else { Precision::Fp32 });
    let encoder = Encoder { model: ExportedModel::open(&args.model, device)?, args, device, kind };
    let text_side = (!texts.is_empty() || golden.is_some()).then(|| TextSide::open(&encoder)).transpose()?;

    let began = Instant::now();
    let mut tensors = Vec::new();
    if !files.is_empty() {
        tensors.push(("image".to_owned(), ImageSide::new(&encoder).of_files(&files)?));
    }
    if let Some(side) = text_side.as_ref().filter(|_| !texts.is_empty()) {
        tensors.push(("text".to_owned(), side.features(&side.vectors(&texts)?)?));
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut said = json!({
        "schema": 1, "model": args.model, "fingerprint": encoder.model.description.fingerprint, "images": files.len(),
        "texts": texts.len(), "width": encoder.model.description.shared_width, "seconds": seconds,
    });
    if let Some(out) = args.out.as_deref().filter(|_| !tensors.is_empty()) {
        let paths: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        write(out, tensors, &encoder, [("images.txt", &paths), ("texts.txt", &texts)])?;
        said["out"] = json!(out);
    }
    let mut reference = String::new();
    if let (Some(wish), Some(side)) = (&golden, &text_side) {
        (said["golden"], reference) = golden::run(wish, &encoder, side)?;
    }
    print(args, &said, &reference);
    match said["golden"]["same"] {
        Value::Bool(false) => anyhow::bail!("the features are not those of the reference file"),
        _ => Ok(()),
    }
}

/// Writes the features, and beside them what each row is of.
fn write(
    out: &Path,
    tensors: Vec<(String, Tensor)>,
    encoder: &Encoder<'_>,
    rows: [(&str, &[String]); 2],
) -> anyhow::Result<()> {
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    }
    write_safetensors(out, tensors, &[("fingerprint", encoder.model.description.fingerprint.clone())])?;
    for (ending, lines) in rows.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let path = out.with_extension(ending);
        let text = lines.join("\n") + "\n";
        std::fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

fn print(args: &EncodeArgs, said: &Value, reference: &str) {
    if args.output == Format::Json {
        return println!("{said:#}");
    }
    if let (Some(out), Some(path)) = (&args.out, said["out"].as_str()) {
        let seconds = said["seconds"].as_f64().unwrap_or_default();
        println!("{path}: {} images, {} texts, width {}, {seconds:.1} s", said["images"], said["texts"], said["width"]);
        for ending in ["images.txt", "texts.txt"] {
            let beside = out.with_extension(ending);
            if beside.exists() {
                println!("  {}: what each row is of", beside.display());
            }
        }
    }
    if !reference.is_empty() {
        println!("{reference}");
    }
}
