//! `compare`: the evaluations of several jobs side by side; of jobs that differ by their seed, mean and spread.

use super::{Common, ckpt, error::CliError, output};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct CompareArgs {
    /// A job or its output folder; with a name, NAME=JOB; NAME=JOB,JOB,JOB are one column, with mean and spread
    #[arg(required = true, value_name = "JOB")]
    columns: Vec<String>,
    /// Which recall: among the first 1, 5 or 10
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=10))]
    at: u8,
}

/// What of `eval/results.json` is compared.
#[derive(Debug, Clone, Deserialize)]
struct Results {
    #[serde(default)]
    retrieval: Vec<Figures>,
    #[serde(default)]
    caption_retrieval: Vec<Figures>,
}

#[derive(Debug, Clone, Deserialize)]
struct Figures {
    data: String,
    captions: String,
    direction: String,
    recall_at_1: f64,
    recall_at_5: f64,
    recall_at_10: f64,
}

/// What a row is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Subject {
    task: &'static str,
    data: String,
    captions: String,
    direction: String,
}

/// One figure over the jobs of a column, as shares.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cell {
    mean: f64,
    /// The sample's standard deviation; absent for one job.
    deviation: Option<f64>,
    values: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    subject: Subject,
    /// A cell a column; absent where none of its jobs has the figure.
    columns: Vec<Option<Cell>>,
}

#[derive(Debug, Serialize)]
struct Comparison {
    recall_at: u8,
    columns: Vec<String>,
    rows: Vec<Row>,
}

pub(super) fn compare(args: &CompareArgs, common: &Common) -> Result<u8, CliError> {
    if ![1, 5, 10].contains(&args.at) {
        return Err(CliError::usage(format!("--at is {}, it must be 1, 5 or 10", args.at)));
    }
    let named = args.columns.iter().map(|column| split(column));
    let columns = named.map(|(name, jobs)| Ok((name, jobs.into_iter().map(read).collect::<Result<Vec<_>, _>>()?)));
    let comparison = lay_out(args.at, columns.collect::<Result<Vec<_>, CliError>>()?);
    match common.format {
        output::Format::Json => output::print_json(None, &comparison),
        output::Format::Text => print(&comparison),
    }
    Ok(0)
}

/// A column's name and jobs.
fn split(column: &str) -> (String, Vec<&str>) {
    // A path may hold `=`: then it is no name that stands before it.
    let (name, jobs) = match column.split_once('=') {
        Some((name, jobs)) if !name.contains('/') => (Some(name), jobs),
        _ => (None, column),
    };
    let jobs: Vec<&str> = jobs.split(',').filter(|job| !job.is_empty()).collect();
    let own = || jobs.first().map_or("", |job| job.trim_end_matches('/').rsplit('/').next().unwrap_or(job)).to_owned();
    (name.map_or_else(own, str::to_owned), jobs)
}

fn read(job: &str) -> Result<Results, CliError> {
    let path = ckpt::root(job).join("eval/results.json");
    let text = std::fs::read_to_string(&path).map_err(|error| missing(job, &path, &error))?;
    serde_json::from_str(&text)
        .map_err(|error| CliError::new(1, format!("{} is not what `eval` writes: {error}", path.display())))
}

fn missing(job: &str, path: &Path, error: &std::io::Error) -> CliError {
    CliError::usage(format!(
        "{job} has no results: {} cannot be read: {error}; its recipe's `eval` stage writes them",
        path.display()
    ))
}

/// The rows in the order in which the jobs have them.
fn lay_out(at: u8, columns: Vec<(String, Vec<Results>)>) -> Comparison {
    let of = |results: &Results| -> Vec<(Subject, f64)> {
        let tasks = [("retrieval", &results.retrieval), ("caption retrieval", &results.caption_retrieval)];
        let figures = tasks.into_iter().flat_map(|(task, figures)| figures.iter().map(move |figures| (task, figures)));
        figures.map(|(task, figures)| (subject(task, figures), recall(at, figures))).collect()
    };
    let found: Vec<Vec<Vec<(Subject, f64)>>> = columns.iter().map(|(_, jobs)| jobs.iter().map(of).collect()).collect();
    let mut subjects: Vec<Subject> = Vec::new();
    for (subject, _) in found.iter().flatten().flatten() {
        if !subjects.contains(subject) {
            subjects.push(subject.clone());
        }
    }
    let row = |subject: Subject| {
        let values = |jobs: &Vec<Vec<(Subject, f64)>>| {
            cell(jobs.iter().flatten().filter(|(of, _)| *of == subject).map(|(_, value)| *value).collect())
        };
        Row { columns: found.iter().map(values).collect(), subject }
    };
    let rows = subjects.into_iter().map(row).collect();
    Comparison { recall_at: at, columns: columns.into_iter().map(|(name, _)| name).collect(), rows }
}

fn subject(task: &'static str, figures: &Figures) -> Subject {
    let Figures { data, captions, direction, .. } = figures.clone();
    Subject { task, data, captions, direction }
}

fn recall(at: u8, figures: &Figures) -> f64 {
    match at {
        1 => figures.recall_at_1,
        5 => figures.recall_at_5,
        _ => figures.recall_at_10,
    }
}

fn cell(values: Vec<f64>) -> Option<Cell> {
    if values.is_empty() {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(Cell { mean, deviation: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()), values })
}

fn print(comparison: &Comparison) {
    let recall = format!("R@{}", comparison.recall_at);
    let mut columns = vec!["task", "data set", "captions", "direction"];
    let named: Vec<String> = comparison.columns.iter().map(|name| format!("{name}, {recall}")).collect();
    columns.extend(named.iter().map(String::as_str));
    let row = |row: &Row| {
        let Subject { task, data, captions, direction } = &row.subject;
        let mut cells = vec![(*task).to_owned(), data.clone(), captions.clone(), direction.clone()];
        cells.extend(row.columns.iter().map(|cell| cell.as_ref().map_or_else(|| "-".to_owned(), shown)));
        cells
    };
    output::print_table(&columns, &comparison.rows.iter().map(row).collect::<Vec<_>>());
}

fn shown(cell: &Cell) -> String {
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    match cell.deviation {
        Some(deviation) => format!("{} ± {} %", percent(cell.mean), percent(deviation)),
        None => format!("{} %", percent(cell.mean)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn results(first: f64, captions: Option<f64>) -> Results {
        let figures = |direction: &str, recall: f64| {
            json!({ "data": "val", "captions": ".txt", "direction": direction, "recall_at_1": recall, "recall_at_5": 1.0,
                    "recall_at_10": 1.0 })
        };
        let captions: Vec<_> = captions.iter().map(|recall| figures("a to b", *recall)).collect();
        serde_json::from_value(json!({ "retrieval": [figures("image to text", first)], "caption_retrieval": captions }))
            .unwrap()
    }

    #[test]
    fn columns_have_names_or_are_called_after_their_folders() {
        assert_eq!(split("runs/demo/"), ("demo".to_owned(), vec!["runs/demo/"]));
        assert_eq!(split("raw=runs/a,runs/b"), ("raw".to_owned(), vec!["runs/a", "runs/b"]));
        assert_eq!(split("runs/lr=1/x"), ("x".to_owned(), vec!["runs/lr=1/x"]));
    }

    #[test]
    fn jobs_of_a_column_are_averaged_and_a_figure_that_a_column_lacks_is_left_open() {
        let columns = vec![
            ("raw".to_owned(), vec![results(0.25, None)]),
            ("tuned".to_owned(), vec![results(0.5, Some(0.9)), results(0.75, Some(0.7))]),
        ];
        let comparison = lay_out(1, columns);
        assert_eq!(comparison.rows.len(), 2);
        let [raw, tuned] = &comparison.rows[0].columns[..] else { panic!("two columns") };
        assert_eq!(shown(raw.as_ref().unwrap()), "25.0 %");
        assert_eq!(shown(tuned.as_ref().unwrap()), "62.5 ± 17.7 %");
        assert_eq!(comparison.rows[1].columns[0], None);
        assert_eq!(comparison.rows[1].subject.task, "caption retrieval");
    }
}
