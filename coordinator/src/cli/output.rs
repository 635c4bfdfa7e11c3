//! What is printed: tables for people, one JSON document for machines.

use common::{daemon::clock::rfc3339, time::Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

/// What to print on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// Keys of our own types that hold a [`Timestamp`].
const TIMES: [&str; 6] = ["at", "created", "updated", "since", "seen", "until"];

/// A value of ours as it is shown to machines: times as RFC 3339.
pub(super) fn shown(value: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(value).expect("our types are JSON");
    show_times(&mut value);
    value
}

fn show_times(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(show_times),
        Value::Object(entries) => {
            for (key, value) in entries {
                match value.as_u64() {
                    Some(time) if TIMES.contains(&key.as_str()) => *value = json!(rfc3339(Timestamp(time))),
                    _ => show_times(value),
                }
            }
        }
        _ => {}
    }
}

/// Prints one document: `{"schema": 1, KEY: value}`, or the fields of `value` beside the schema when there is no key.
pub(super) fn print_json(key: Option<&str>, value: &impl Serialize) {
    let value = shown(value);
    let mut document = json!({ "schema": 1 });
    match (key, value) {
        (None, Value::Object(fields)) => document.as_object_mut().expect("it is an object").extend(fields),
        (key, value) => document[key.unwrap_or("value")] = value,
    }
    println!("{}", serde_json::to_string_pretty(&document).expect("it is JSON"));
}

/// Lines of a table: columns as wide as their widest cell, two blanks apart, no trailing blanks.
pub(super) fn table(columns: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
        cells.chain([columns[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(columns.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines
}

/// Prints a table on stdout.
pub(super) fn print_table(columns: &[&str], rows: &[Vec<String>]) {
    table(columns, rows).iter().for_each(|line| println!("{line}"));
}

/// A stage's summary as lines: its tables, then its notes.
pub(super) fn summary(summary: &Value) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
    };
    let mut lines = Vec::new();
    for described in summary["tables"].as_array().into_iter().flatten() {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.push(described["title"].as_str().unwrap_or_default().to_owned());
        let columns = texts(&described["columns"]);
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = described["rows"].as_array().into_iter().flatten().map(&texts).collect();
        lines.extend(table(&columns, &rows).into_iter().map(|line| format!("  {line}")));
    }
    let notes = texts(&summary["notes"]);
    lines.extend(notes.iter().take(1).cloned());
    lines.extend(notes.iter().skip(1).map(|note| format!("  {note}")));
    lines
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A duration for people.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_rows_have_no_trailing_blanks() {
        let rows = vec![vec!["demo".to_owned(), "running".to_owned()], vec!["a-long-name".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["job", "phase"], &rows), ["job          phase", "demo         running", "a-long-name  x"]);
    }

    #[test]
    fn times_are_rfc_3339_wherever_they_stand() {
        let value = shown(&json!({ "created": 0, "failures": [{ "at": 1000, "step": 5 }], "until": null }));
        assert_eq!(value["created"], "1970-01-01T00:00:00Z");
        assert_eq!(value["failures"][0], json!({ "at": "1970-01-01T00:00:01Z", "step": 5 }));
    }

    #[test]
    fn sizes_and_durations_are_short() {
        assert_eq!((bytes(512), bytes(1536), bytes(5 << 30)), ("512 B".into(), "1.5 KiB".into(), "5.0 GiB".into()));
        assert_eq!(
            (duration(5.2), duration(65.0), duration(7260.0)),
            ("5 s".into(), "1 min 05 s".into(), "2 h 01 min".into())
        );
    }
}
