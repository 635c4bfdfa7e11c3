//! Stage `export`: what `clip` trained, as other libraries take it, in `OUTPUT/export`. Nothing is computed.

use crate::{
    export::{self, Exported, Trained},
    trainer::{context::Context, context::Outcome, error::TrainerError},
};
use std::path::Path;

/// Runs the stage: the lowest rank writes.
pub fn run(context: &Context<'_>) -> Result<Outcome, TrainerError> {
    if !context.speaks() {
        return Ok(Outcome { summary: None, stopped: false });
    }
    context.activity("writing the export");
    let output = &context.plan.output;
    let trained = Trained::open(context.storage, output, None)?;
    let to = output.join("export");
    let exported = export::export(&trained, &to)?;
    Ok(Outcome { summary: Some(summary(&exported, &to)), stopped: false })
}

fn summary(exported: &Exported, to: &Path) -> serde_json::Value {
    let description = &exported.description;
    let was = if exported.unchanged { " (it was there, made of the same things)" } else { "" };
    let notes = [
        format!("the checkpoint of step {} is exported to {}{was}", description.checkpoint.step, to.display()),
        format!(
            "features: llm2clip encode --model {} --images 'FOLDER/*.jpg' --out features.safetensors",
            to.display()
        ),
    ];
    serde_json::json!({ "notes": notes, "export": to, "fingerprint": description.fingerprint })
}
