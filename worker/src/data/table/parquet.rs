//! Parquet files with columns of strings, batch by batch.

use super::{Blob, DataError, EachRow, Location, failed, missing};
use crate::data::chunks::{Chunks, Failure};
use arrow_array::{Array, cast::AsArray as _, types::Int64Type};
use arrow_schema::DataType;
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
};

pub fn read(file: &Blob, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let failure = Failure::default();
    let read = rows(Chunks::new(file.clone(), &failure), &file.location(), columns, each);
    read.map_err(|error| failure.take().map_or(error, |source| file.failed("read", source)))
}

fn rows(file: Chunks, path: &Location, columns: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    let said = |error: &dyn std::fmt::Display| failed(path)(&error.to_string());
    // Without the schema of the writer's own, every string column comes as one type.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load(&file, options).map_err(|error| said(&error))?;
    let names: Vec<String> = metadata.schema().fields().iter().map(|field| field.name().clone()).collect();
    let place =
        |column: &String| names.iter().position(|name| name == column).ok_or_else(|| missing(path, column, &names));
    let roots = columns.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
    let file = file.in_order(&metadata, &mask);
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
        .with_projection(mask)
        .build()
        .map_err(|error| said(&error))?;
    for batch in reader {
        let batch = batch.map_err(|error| said(&error))?;
        let texts = columns
            .iter()
            .map(|name| Texts::of(batch.column_by_name(name).expect("the projection holds the column"), name, path))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let owned: Vec<Option<std::borrow::Cow<'_, str>>> = texts.iter().map(|texts| texts.get(row)).collect();
            each(&owned.iter().map(Option::as_deref).collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

/// A column whose values can be given as text.
enum Texts<'a> {
    Strings(&'a arrow_array::StringArray),
    /// Keys are numbers at times.
    Numbers(&'a arrow_array::Int64Array),
}

impl<'a> Texts<'a> {
    fn of(array: &'a dyn Array, name: &str, path: &Location) -> Result<Self, DataError> {
        match array.data_type() {
            DataType::Utf8 => Ok(Self::Strings(array.as_string())),
            DataType::Int64 => Ok(Self::Numbers(array.as_primitive::<Int64Type>())),
            other => Err(failed(path)(&format!("column `{name}` holds {other}, not strings"))),
        }
    }

    fn get(&self, row: usize) -> Option<std::borrow::Cow<'a, str>> {
        match self {
            Self::Strings(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Numbers(array) => array.is_valid(row).then(|| array.value(row).to_string().into()),
        }
    }
}
