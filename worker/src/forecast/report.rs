//! A forecast as a document and as lines.

use super::{
    given::{Given, Known, Set},
    stage::{Forecast, Item},
};
use common::{ids::WorldSize, recipe::Recipe};
use serde::Serialize;
use std::{collections::BTreeMap, fmt::Write as _};

/// Dense bf16 FLOP/s of an H100 (its data sheet), and the share of it that a good program reaches.
const H100: (f64, f64) = (989e12, 0.4);

/// How many parts of a sum a line names; the document has all.
const PARTS: usize = 4;

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    schema: u32,
    recipe: &'a str,
    ranks: u32,
    models: BTreeMap<&'static str, Model>,
    data: &'a BTreeMap<String, Set>,
    stages: Vec<Forecast>,
    missing: &'a [String],
}

#[derive(Debug, Serialize)]
struct Model {
    parameters: i64,
    known: Known,
}

impl<'a> Report<'a> {
    pub(super) fn new(recipe: &'a Recipe, world: WorldSize, given: &'a Given, stages: Vec<Forecast>) -> Self {
        let mut models = BTreeMap::new();
        if let Some(llm) = &given.llm {
            models.insert("text", Model { parameters: llm.config.size().parameters, known: llm.known });
        }
        if let Some(vision) = &given.vision {
            models.insert("vision", Model { parameters: vision.config.size().parameters, known: vision.known });
        }
        if let Some(teacher) = &given.teacher {
            models.insert("teacher", Model { parameters: teacher.config.parameters(), known: teacher.known });
        }
        if let Some(adapter) = &given.adapter {
            models.insert("adapter", Model { parameters: adapter.size().parameters, known: Known::Here });
        }
        Self {
            schema: 1,
            recipe: &recipe.name,
            ranks: world.0,
            models,
            data: &given.sets,
            stages,
            missing: &given.missing,
        }
    }

    /// Lines for people.
    pub(super) fn text(&self) -> String {
        let mut text =
            format!("{} on {} rank{}: a forecast, nothing was run\n\n", self.recipe, self.ranks, plural(self.ranks));
        let names = self.models.keys().copied().chain(self.data.keys().map(String::as_str));
        let wide = names.map(str::len).max().unwrap_or(0);
        for (name, model) in &self.models {
            let how = if model.known == Known::Published { ", the published model of this name" } else { "" };
            let _ = writeln!(text, "  {name:wide$}  {} parameters{how}", short(model.parameters as f64));
        }
        for (name, set) in self.data {
            let _ = writeln!(text, "  {name:wide$}  {}", described(set));
        }
        for stage in &self.stages {
            let _ = write!(text, "\n{}\n", self.stage(stage));
        }
        if !self.missing.is_empty() {
            let _ = writeln!(text, "\nnot here, and needed to run it:");
            self.missing.iter().for_each(|what| _ = writeln!(text, "  {what}"));
        }
        text
    }

    fn stage(&self, stage: &Forecast) -> String {
        let mut lines = vec![format!("stage {}: {}", stage.stage, work(stage))];
        if !stage.memory.is_empty() {
            lines.push(listed("memory a rank", &stage.memory));
        }
        if self.ranks > 1 && !stage.sent_per_step.is_empty() {
            lines.push(listed("sent a rank and step", &stage.sent_per_step));
        }
        if !stage.storage.is_empty() {
            lines.push(listed("storage", &stage.storage));
        }
        if let (Some(flop), Some(executed)) = (stage.flop, stage.executed_flop) {
            let seconds = executed / (H100.0 * H100.1 * f64::from(self.ranks));
            let again = if executed > flop {
                format!(", with what is computed twice {}", operations(executed))
            } else {
                String::new()
            };
            lines.push(format!(
                "  {:22}{}{again}; were every rank an H100 at {:.0} % of its peak, {}",
                "compute",
                operations(flop),
                100.0 * H100.1,
                duration(seconds)
            ));
        }
        lines.join("\n")
    }
}

fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn described(set: &Set) -> String {
    let said = |known: Known| match known {
        Known::Assumed => " (assumed)",
        Known::Said => " (as you said)",
        Known::Here | Known::Published => "",
    };
    let samples = match set.samples {
        Some(samples) => format!("{} samples{}", grouped(samples), said(set.samples_known)),
        None => "an unknown number of samples".to_owned(),
    };
    format!("{samples}, {:.0} tokens a text{}", set.tokens, said(set.tokens_known))
}

fn work(stage: &Forecast) -> String {
    let mut parts = Vec::new();
    if let Some(samples) = stage.samples {
        parts.push(format!("{} samples", grouped(samples)));
    }
    if let Some(batch) = stage.global_batch {
        let steps =
            stage.steps.map_or_else(|| "an unknown number of steps".to_owned(), |n| format!("{} steps", grouped(n)));
        parts.push(format!("{steps} of {}", grouped(batch)));
    }
    if let (Some(rows), Some(chunk)) = (stage.rank_batch, stage.chunk) {
        parts.push(format!("{} a rank in chunks of {}", grouped(rows), grouped(chunk)));
    }
    if parts.is_empty() { "what the stages before it left".to_owned() } else { parts.join(", ") }
}

/// The sum, and its larger parts.
fn listed(what: &str, items: &[Item]) -> String {
    let sum: u64 = items.iter().map(|item| item.bytes).sum();
    let mut sorted: Vec<&Item> = items.iter().collect();
    sorted.sort_by_key(|item| std::cmp::Reverse(item.bytes));
    let large = sorted.iter().filter(|item| item.bytes > sum / 100).take(PARTS);
    let parts: Vec<String> = large.map(|item| format!("{} {}", item.what, bytes(item.bytes))).collect();
    let parts = if items.len() == 1 { items[0].what.clone() } else { parts.join(", ") };
    format!("  {what:22}{}: {parts}", bytes(sum))
}

fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut scaled = (bytes as f64, 0);
    while scaled.0 >= 1024.0 && scaled.1 + 1 < units.len() {
        scaled = (scaled.0 / 1024.0, scaled.1 + 1);
    }
    let digits = usize::from(scaled.0 < 100.0 && scaled.1 > 0);
    format!("{:.digits$} {}", scaled.0, units[scaled.1])
}

fn short(number: f64) -> String {
    match number {
        1e9.. => format!("{:.2} G", number / 1e9),
        1e6.. => format!("{:.1} M", number / 1e6),
        _ => grouped(number as u64),
    }
}

fn operations(flop: f64) -> String {
    match flop {
        1e18.. => format!("{:.2} EFLOP", flop / 1e18),
        1e15.. => format!("{:.2} PFLOP", flop / 1e15),
        _ => format!("{:.2} TFLOP", flop / 1e12),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        86_400.0.. => format!("{:.1} days", seconds / 86_400.0),
        3_600.0.. => format!("{:.1} h", seconds / 3_600.0),
        60.0.. => format!("{:.0} min", seconds / 60.0),
        1.0.. => format!("{seconds:.0} s"),
        _ => "less than a second".to_owned(),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!((grouped(7), grouped(1_234), grouped(2_873_538)), ("7".into(), "1,234".into(), "2,873,538".into()));
        assert_eq!(
            (bytes(900), bytes(1 << 30), bytes(150 << 20)),
            ("900 B".into(), "1.0 GiB".into(), "150 MiB".into())
        );
        assert_eq!((short(8.03e9), short(3e5)), ("8.03 G".into(), "300,000".into()));
        assert_eq!((operations(2.5e18), duration(7_200.0)), ("2.50 EFLOP".into(), "2.0 h".into()));
    }
}
