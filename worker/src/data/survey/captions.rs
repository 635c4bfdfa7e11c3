//! The captions of shards that no recipe describes: which columns there are, and their texts row by row.

use super::Survey;
use crate::data::{
    DataError,
    join::{OwnFields as _, RowColumns, TarMetadata},
    table,
};
use common::recipe::DataKind;
use serde_json::Value;

/// The longest text of a member that is read, in bytes.
const LONGEST: usize = 1 << 20;
/// What a column of captions is called, in part.
const USUAL: [&str; 5] = ["caption", "text", "description", "txt", "conversation"];

/// What is done with the texts of a row, one a column; `None` where there is none.
pub type EachRow<'a> = dyn FnMut(u32, &[Option<&str>]) -> Result<(), DataError> + 'a;

impl Survey {
    /// The columns that look like captions, as a recipe names them: `.txt`, `.json:long_caption`, `.caption[*]`. Where none is
    /// called so, all texts of the first row but the image's own path.
    pub fn caption_columns(&self) -> Result<Vec<String>, DataError> {
        let mut names = Vec::new();
        for shard in 0..self.paths.len() {
            names = match self.kind {
                DataKind::Webdataset => self.tar_columns(shard)?,
                DataKind::Parquet | DataKind::List => table::text_columns(&self.files.blob(shard as u32)?)?,
            };
            // A shard without samples has no columns.
            if !names.is_empty() {
                break;
            }
        }
        let usual = |name: &&String| USUAL.iter().any(|usual| name.to_ascii_lowercase().contains(usual));
        let captions: Vec<String> = names.iter().filter(usual).cloned().collect();
        let image = |name: &String| self.image_column.as_deref() == Some(name.as_str());
        let chosen =
            if captions.is_empty() { names.into_iter().filter(|name| !image(name)).collect() } else { captions };
        let own = |name: String| if name.starts_with('.') { name } else { format!(".{name}") };
        Ok(chosen.into_iter().map(own).collect())
    }

    /// `.txt`, and the texts of the first `.json`.
    fn tar_columns(&self, shard: usize) -> Result<Vec<String>, DataError> {
        let index = &self.indices[shard];
        let present = |slot: &usize| {
            let missing = index.footer().slots[*slot].flaws.get(&crate::data::index::Flaw::Missing);
            missing.map_or(0, Vec::len) < index.footer().rows as usize
        };
        let mut names: Vec<String> = index.slot("txt").filter(present).map(|_| ".txt".to_owned()).into_iter().collect();
        if index.footer().rows > 0
            && let Some(slot) = index.slot("json")
        {
            let text = self.member(shard, 0, slot)?;
            let metadata: Value = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            names.extend(table::text_fields(&metadata).into_iter().map(|field| format!(".json:{field}")));
        }
        Ok(names)
    }

    /// Hands on the texts of the columns, row by row.
    ///
    /// # Errors
    /// When a table has no such column, a shard cannot be read, or with the first error of `each`.
    pub fn texts(&self, shard: usize, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
        if columns.is_empty() {
            return Ok(());
        }
        let number = u32::try_from(shard).expect("a data set has fewer than 2^32 shards");
        let plain = |name: &String| name.strip_prefix('.').unwrap_or(name).to_owned();
        let mut row = 0;
        let mut next = || {
            row += 1;
            row - 1
        };
        if self.kind != DataKind::Webdataset {
            let fields: Vec<String> = columns.iter().map(plain).collect();
            return RowColumns { files: &self.files }.read(number, &fields, &mut |texts| each(next(), texts));
        }
        let field = |name: &String| plain(name).strip_prefix("json:").map(str::to_owned);
        let fields: Vec<String> = columns.iter().filter_map(field).collect();
        let mut line = |row: u32, fields: &[Option<&str>]| {
            let mut fields = fields.iter();
            let mut texts = Vec::new();
            for name in columns {
                texts.push(match field(name) {
                    Some(_) => fields.next().copied().flatten().map(str::to_owned),
                    None => {
                        let member = plain(name);
                        let slot = self.indices[shard].slot(member.strip_suffix("[*]").unwrap_or(&member));
                        slot.map(|slot| self.member(shard, row, slot)).transpose()?.flatten()
                    }
                });
            }
            each(row, &texts.iter().map(Option::as_deref).collect::<Vec<_>>())
        };
        if fields.is_empty() {
            return (0..self.indices[shard].footer().rows).try_for_each(|row| line(row, &[]));
        }
        let metadata = TarMetadata { files: &self.files, indices: &self.indices, gathered: None };
        metadata.read(number, &fields, &mut |texts| line(next(), texts))
    }

    /// A member of a tar as text; `None` when there is none, or it is no UTF-8.
    fn member(&self, shard: usize, row: u32, slot: usize) -> Result<Option<String>, DataError> {
        let Some(place) = self.indices[shard].place(row, slot)? else { return Ok(None) };
        let (extent, mut bytes) = (place.extent(), Vec::new());
        self.files.read(shard as u32, extent.offset, (extent.length as usize).min(LONGEST), &mut bytes)?;
        Ok(String::from_utf8(bytes).ok())
    }
}

/// The captions in a text of a column: several where its name ends in `[*]`.
pub fn split(column: &str, text: &str) -> Vec<String> {
    if !column.ends_with("[*]") {
        return vec![text.to_owned()];
    }
    let lines = || text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    serde_json::from_str(text).unwrap_or_else(|_| lines())
}
