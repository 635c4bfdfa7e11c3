//! Data sets of texts alone: `[text.NAME]`.

use super::{
    DataPath, IndexPlace,
    error::RecipeError,
    raw::Table,
    read::{choice, data_path, index_place, one_or_more, share, text},
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A data set of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextSet {
    /// What a row is.
    #[serde(flatten)]
    pub kind: TextKind,
    /// Patterns of the tables: parquet, CSV, JSON lines, or one JSON array.
    pub files: Vec<DataPath>,
    /// The largest share of pairs with an empty text to bear, 0 to 1.
    pub broken_limit: f64,
    /// Where what is known of the files is kept.
    #[serde(default)]
    pub index: IndexPlace,
}

/// What a row of a data set of texts is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TextKind {
    /// A document, such as a row of Wikitext.
    Documents {
        /// The column it is in.
        column: String,
    },
    /// A pair in columns `query`, `positive` and perhaps `negative`, as in E5's files.
    Pairs {
        /// What stands before a query: of several that of the row's number, round and round, as E5's files with two tasks
        /// have it.
        #[serde(default)]
        instructions: Vec<String>,
    },
}

/// Reads one `[text.NAME]`.
pub(super) fn text_set(mut table: Table<'_>, folder: &Path) -> Result<TextSet, RecipeError> {
    let kinds = [("documents", false), ("pairs", true)];
    let pairs = table.get("kind", |value| choice(value, &kinds))?.unwrap_or(false);
    let column = table.get("column", text)?;
    let instructions = table.get("instruction", |value| one_or_more(value, text))?;
    let kind = match (pairs, column, instructions) {
        (true, None, instructions) => TextKind::Pairs { instructions: instructions.unwrap_or_default() },
        (true, Some(_), _) => {
            return Err(table.error("pairs are in the columns query, positive and negative: leave `column` out"));
        }
        (false, column, None) => TextKind::Documents { column: column.unwrap_or_else(|| "text".to_owned()) },
        (false, _, Some(_)) => {
            return Err(table.error("an `instruction` stands before queries: set `kind` to \"pairs\", or leave it out"));
        }
    };
    let set = TextSet {
        kind,
        files: table.need("files", |value| one_or_more(value, |value| data_path(value, folder)))?,
        broken_limit: table.get("broken_limit", share)?.unwrap_or(0.1),
        index: index_place(&mut table, folder)?,
    };
    table.finish()?;
    Ok(set)
}
