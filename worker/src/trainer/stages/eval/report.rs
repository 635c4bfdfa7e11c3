//! The results: tables for the screen, `eval/results.json` and `eval/results.md`.

use super::{classification::Accuracy, figures::Figures, paper};
use crate::trainer::error::TrainerError;
use common::{ids::Step, recipe::Benchmark};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// The note that says how several texts of an image are counted.
const PROTOCOL: &str = "Text to image, every text is a query. Image to text, an image is found when any of its texts is among the first k.";

/// The note that says how images are classified.
const ZERO_SHOT_PROTOCOL: &str = "Zero-shot: a class is the mean of its texts' normalised embeddings over the templates, \
     normalised; of equal scores the class of the lower number stands first.";

/// All that a stage found.
#[derive(Debug, Default)]
pub struct Results {
    /// The checkpoint whose towers were used; absent when none were.
    pub step: Option<Step>,
    /// The folder of the model, when it is not this job's own.
    pub model: Option<PathBuf>,
    /// Images and classes.
    pub zero_shot: Vec<Accuracy>,
    /// Images and texts.
    pub retrieval: Vec<Figures>,
    /// Captions and captions.
    pub captions: Vec<Figures>,
    /// Which data set is which benchmark.
    pub benchmarks: Vec<(String, Benchmark)>,
    /// Texts and what was found for them.
    pub examples: Vec<String>,
}

/// A table, as the command line prints it.
struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Results {
    /// What the command line shows.
    pub fn summary(&self) -> Value {
        let tables: Vec<Value> = self
            .tables()
            .into_iter()
            .map(|table| json!({ "title": table.title, "columns": table.columns, "rows": table.rows }))
            .collect();
        let mut notes = Vec::new();
        if !self.examples.is_empty() {
            notes.push("text -> the three nearest images, best first".to_owned());
            notes.extend(self.examples.iter().cloned());
        }
        json!({
            "tables": tables,
            "notes": notes,
            "retrieval": self.retrieval,
            "caption_retrieval": self.captions,
            "zero_shot": self.zero_shot,
        })
    }

    /// Writes `results.json` and `results.md` into the stage's folder.
    pub fn write(&self, folder: &Path) -> Result<(), TrainerError> {
        std::fs::create_dir_all(folder).map_err(|source| TrainerError::Io {
            operation: "create",
            path: folder.to_owned(),
            source,
        })?;
        let json = serde_json::to_string_pretty(&self.json()).expect("figures are JSON");
        for (name, text) in [("results.json", json), ("results.md", self.markdown())] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|source| TrainerError::Io { operation: "write", path, source })?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let published = |(data, benchmark): &(String, Benchmark)| match benchmark {
            Benchmark::Imagenet => {
                let rows: Vec<_> = paper::zero_shot().collect();
                json!({ "data": data, "benchmark": benchmark, "sources": paper::ZERO_SHOT_SOURCES, "top_1_percent": rows })
            }
            _ => {
                let rows: Vec<_> = paper::retrieval(*benchmark).collect();
                let source = paper::RETRIEVAL_SOURCE;
                json!({ "data": data, "benchmark": benchmark, "source": source, "recall_at_1_percent": rows })
            }
        };
        let published: Vec<Value> = self.benchmarks.iter().map(published).collect();
        json!({
            "schema": 1,
            "checkpoint_step": self.step,
            "model": self.model,
            "retrieval": self.retrieval,
            "caption_retrieval": self.captions,
            "zero_shot": self.zero_shot,
            "published": published,
        })
    }

    fn markdown(&self) -> String {
        let mut text = "# Results\n".to_owned();
        for table in self.tables() {
            let line = |cells: &[String]| {
                let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
                format!("| {} |\n", cells.join(" | "))
            };
            let columns: Vec<String> = table.columns.iter().map(|column| (*column).to_owned()).collect();
            let rule = "|---".repeat(columns.len());
            let rows: String = table.rows.iter().map(|row| line(row)).collect();
            write!(text, "\n## {}\n\n{}{rule}|\n{rows}", table.title, line(&columns)).expect("a string takes text");
        }
        for (protocol, told) in
            [(PROTOCOL, !self.retrieval.is_empty()), (ZERO_SHOT_PROTOCOL, !self.zero_shot.is_empty())]
        {
            if told {
                write!(text, "\n{protocol}\n").expect("a string takes text");
            }
        }
        text
    }

    fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        let of = self.model.as_ref().map_or_else(String::new, |folder| format!(" of {}", folder.display()));
        if let (Some(step), false) = (self.step, self.retrieval.is_empty()) {
            tables.push(of_figures(format!("retrieval with the checkpoint of step {step}{of}"), &self.retrieval));
        }
        if let (Some(step), false) = (self.step, self.zero_shot.is_empty()) {
            let title = format!("zero-shot classification with the checkpoint of step {step}{of}");
            tables.push(of_accuracy(title, &self.zero_shot));
        }
        if !self.captions.is_empty() {
            tables.push(of_figures("caption retrieval by the LLM's vectors alone".to_owned(), &self.captions));
        }
        tables.extend(self.benchmarks.iter().filter_map(|(data, benchmark)| self.beside_paper(data, *benchmark)));
        tables.extend(self.captions_beside_paper());
        tables.extend(self.zero_shot_beside_papers());
        tables
    }

    /// A data set's R@1 with the paper's rows below it.
    fn beside_paper(&self, data: &str, benchmark: Benchmark) -> Option<Table> {
        let of = |direction: &str, captions: &str| {
            let found = |f: &&Figures| f.data == data && f.captions == captions && f.direction == direction;
            self.retrieval.iter().find(found).map_or_else(String::new, |f| percent(f.recall_at_1))
        };
        let mut columns: Vec<&str> = Vec::new();
        for figures in self.retrieval.iter().filter(|figures| figures.data == data) {
            if !columns.contains(&figures.captions.as_str()) {
                columns.push(&figures.captions);
            }
        }
        let mine =
            columns.iter().map(|c| vec![format!("this job, `{c}`"), of("image to text", c), of("text to image", c)]);
        let mut rows: Vec<Vec<String>> = mine.collect();
        if rows.is_empty() {
            return None;
        }
        let published = |row: paper::Published| {
            vec![row.model.to_owned(), format!("{:.1} %", row.image_to_text), format!("{:.1} %", row.text_to_image)]
        };
        rows.extend(paper::retrieval(benchmark).map(published));
        let title = format!("{} beside the paper's rows ({})", benchmark.title(), paper::RETRIEVAL_SOURCE);
        Some(Table { title, columns: vec!["model", "image to text R@1", "text to image R@1"], rows })
    }

    /// Caption retrieval on COCO with the paper's rows below it.
    fn captions_beside_paper(&self) -> Option<Table> {
        let coco = |data: &str| self.benchmarks.iter().any(|(name, b)| name == data && *b == Benchmark::Coco);
        let mine = self.captions.iter().filter(|figures| coco(&figures.data));
        let mut rows: Vec<Vec<String>> =
            mine.map(|f| vec![format!("this job, {}", f.direction), percent(f.recall_at_1)]).collect();
        if rows.is_empty() {
            return None;
        }
        rows.extend(paper::CAPTIONS.iter().map(|(model, r1)| vec![(*model).to_owned(), format!("{r1:.1} %")]));
        let title = format!("caption retrieval accuracy beside the paper's rows ({})", paper::CAPTION_SOURCE);
        Some(Table { title, columns: vec!["encoder", "R@1"], rows })
    }
}

impl Results {
    /// Accuracy on ImageNet with the published rows below it.
    fn zero_shot_beside_papers(&self) -> Option<Table> {
        let imagenet = |data: &str| self.benchmarks.iter().any(|(name, b)| name == data && *b == Benchmark::Imagenet);
        let mine = self.zero_shot.iter().filter(|figures| imagenet(&figures.data));
        let mut rows: Vec<Vec<String>> = mine
            .map(|f| {
                let source = format!("{} images", f.images);
                vec![format!("this job, `{}`", f.templates), f.template_count.to_string(), percent(f.top_1), source]
            })
            .collect();
        if rows.is_empty() {
            return None;
        }
        rows.extend(paper::zero_shot().map(|row| {
            let templates = row.templates.map_or_else(|| "not told".to_owned(), |count| count.to_string());
            vec![row.model.to_owned(), templates, format!("{:.1} %", row.top_1), row.source.to_owned()]
        }));
        let title = format!("{} beside published rows, which contradict each other", Benchmark::Imagenet.title());
        Some(Table { title, columns: vec!["model", "templates", "top-1", "source"], rows })
    }
}

fn of_accuracy(title: String, figures: &[Accuracy]) -> Table {
    let row = |f: &Accuracy| {
        vec![
            f.data.clone(),
            format!("{} ({})", f.templates, f.template_count),
            f.classes.to_string(),
            f.images.to_string(),
            f.left_out.to_string(),
            percent(f.top_1),
            percent(f.top_5),
            percent(1.0 / f.classes.max(1) as f64),
        ]
    };
    let columns = vec!["data set", "templates", "classes", "images", "left out", "top-1", "top-5", "chance top-1"];
    Table { title, columns, rows: figures.iter().map(row).collect() }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn of_figures(title: String, figures: &[Figures]) -> Table {
    let row = |f: &Figures| {
        vec![
            f.data.clone(),
            f.captions.clone(),
            f.direction.clone(),
            f.queries.to_string(),
            f.targets.to_string(),
            f.left_out.to_string(),
            percent(f.recall_at_1),
            percent(f.recall_at_5),
            percent(f.recall_at_10),
            percent(1.0 / f.pairs.max(1) as f64),
        ]
    };
    let columns =
        vec!["data set", "captions", "direction", "queries", "targets", "left out", "R@1", "R@5", "R@10", "chance R@1"];
    Table { title, columns, rows: figures.iter().map(row).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(captions: &str, direction: &str, recall_at_1: f64) -> Figures {
        let (data, captions, direction) = ("coco".to_owned(), captions.to_owned(), direction.to_owned());
        let (pairs, left_out, queries, targets) = (5000, 0, 5000, 25_000);
        let (recall_at_5, recall_at_10) = (0.5, 0.75);
        Figures { data, captions, direction, pairs, left_out, queries, targets, recall_at_1, recall_at_5, recall_at_10 }
    }

    #[test]
    fn a_benchmarks_figures_stand_above_the_papers_in_every_form() {
        let results = Results {
            step: Some(Step(7)),
            retrieval: vec![
                figures(".caption[*]", "image to text", 0.123),
                figures(".caption[*]", "text to image", 0.045),
            ],
            captions: vec![figures("a, b", "a to b", 0.295)],
            benchmarks: vec![("coco".to_owned(), Benchmark::Coco)],
            ..Results::default()
        };
        let text = results.markdown();
        for line in [
            "## retrieval with the checkpoint of step 7",
            "| coco | .caption[*] | image to text | 5000 | 25000 | 0 | 12.3 % | 50.0 % | 75.0 % | 0.0 % |",
            "## COCO 5K beside the paper's rows (arXiv 2411.04997v6, table 1)",
            "| this job, `.caption[*]` | 12.3 % | 4.5 % |",
            "| EVA02 L/14-336 + LLM2CLIP 60M | 72.4 % | 58.8 % |",
            "| this job, a to b | 29.5 % |",
            "| Llama-3-8B, caption-contrastive | 29.5 % |",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        let json = results.json();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["published"][0]["benchmark"], "coco");
        assert_eq!(json["published"][0]["recall_at_1_percent"][0]["image_to_text"], 52.4);
        assert_eq!(results.summary()["tables"].as_array().unwrap().len(), 4);
    }
    #[test]
    fn accuracy_on_imagenet_stands_above_what_two_papers_say() {
        let accuracy = |templates: &str, template_count, top_1| Accuracy {
            data: "imagenet".to_owned(),
            templates: templates.to_owned(),
            template_count,
            classes: 1000,
            images: 49_999,
            left_out: 1,
            top_1,
            top_5: 0.9,
        };
        let results = Results {
            step: Some(Step(7)),
            model: Some("/models/mine".into()),
            zero_shot: vec![accuracy("one", 1, 0.7), accuracy("openai-80", 80, 0.712)],
            benchmarks: vec![("imagenet".to_owned(), Benchmark::Imagenet)],
            ..Results::default()
        };
        let text = results.markdown();
        for line in [
            "## zero-shot classification with the checkpoint of step 7 of /models/mine",
            "| imagenet | openai-80 (80) | 1000 | 49999 | 1 | 71.2 % | 90.0 % | 0.1 % |",
            "| this job, `one` | 1 | 70.0 % | 49999 images |",
            "| CLIP L/14-336 + LLM2CLIP | 80 | 75.8 % | arXiv 2411.04997v6, table 3 |",
            "| CLIP L/14 + LLM2CLIP 15M | not told | 54.0 % | ProCLIP, arXiv 2510.18795v3 |",
            "Zero-shot: a class is the mean",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        let json = results.json();
        assert_eq!(json["zero_shot"][1]["top_1"], 0.712);
        assert_eq!(json["published"][0]["top_1_percent"].as_array().unwrap().len(), 18);
        assert_eq!(results.summary()["tables"].as_array().unwrap().len(), 2);
    }
}
