//! The fields of samples' own metadata, shard by shard.

use super::Gathered;
use crate::data::{
    DataError,
    files::Files,
    images::folder,
    index::ShardIndex,
    table::{self, EachRow, Field},
};
use serde_json::Value;

/// The longest metadata that are read, in bytes.
pub const LONGEST: u64 = 1 << 24;

/// Where a sample's own fields are.
pub trait OwnFields: Sync {
    /// Reads fields of all rows of a shard, in order.
    fn read(&self, shard: u32, fields: &[String], each: &mut EachRow<'_>) -> Result<(), DataError>;

    /// Whether several shards are worth reading at once, and small enough to be held.
    fn small(&self) -> bool;
}

/// The `.json` members of tars. Metadata that are absent or no JSON have no field.
pub struct TarMetadata<'a> {
    /// The tars.
    pub files: &'a Files,
    /// Their indices.
    pub indices: &'a [ShardIndex],
    /// What was gathered when they were indexed.
    pub gathered: Option<&'a Gathered>,
}

/// The texts of fields in metadata.
pub fn texts_of(fields: &[Field], metadata: &Value) -> Vec<Option<String>> {
    fields.iter().map(|field| field.text(metadata)).collect()
}

impl OwnFields for TarMetadata<'_> {
    fn read(&self, shard: u32, fields: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
        if let Some(rows) = self.gathered.and_then(|gathered| gathered.of(&self.files.location(shard), fields)) {
            return rows.iter().try_for_each(|texts| each(&texts.iter().map(Option::as_deref).collect::<Vec<_>>()));
        }
        let index = &self.indices[shard as usize];
        let fields: Vec<Field> = fields.iter().map(|field| Field::new(field)).collect();
        let slot = index.slot("json");
        let mut bytes = Vec::new();
        for row in 0..index.footer().rows {
            let place = slot.map(|slot| index.place(row, slot)).transpose()?.flatten();
            let extent = place.map(|place| place.extent()).filter(|extent| extent.length <= LONGEST);
            let value = match extent {
                Some(extent) => {
                    self.files.read(shard, extent.offset, extent.length as usize, &mut bytes)?;
                    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
                }
                None => Value::Null,
            };
            let texts = texts_of(&fields, &value);
            each(&texts.iter().map(Option::as_deref).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn small(&self) -> bool {
        true
    }
}

/// The columns of shards that are tables or folders themselves.
pub struct RowColumns<'a> {
    /// The shards.
    pub files: &'a Files,
}

impl OwnFields for RowColumns<'_> {
    fn read(&self, shard: u32, fields: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
        // It was seen to be the shard that was indexed.
        let shard = self.files.blob(shard)?;
        match shard.folder() {
            Some(folder) => folder::fields(folder, fields, each),
            None => table::read(&shard, fields, each),
        }
    }

    fn small(&self) -> bool {
        false
    }
}
