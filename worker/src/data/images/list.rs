//! Lists of images: a table whose rows name a file and hold its captions.

use crate::data::{
    DataError,
    blob::Blob,
    index::{Place, Rows, ShardReader},
    table,
};

/// The columns that are tried when the recipe names none.
const USUAL: [&str; 5] = ["image", "image_file", "filepath", "file_name", "path"];

/// Reads lists. A sample's key is its image's path as the list writes it.
pub struct Lists {
    /// The column of the image's path; absent means the first of the usual ones.
    pub image_column: Option<String>,
}

impl ShardReader for Lists {
    fn kind(&self) -> String {
        format!("list-1 {}", self.image_column.as_deref().unwrap_or_default())
    }

    fn read(&self, shard: &Blob) -> Result<Rows, DataError> {
        if let Some(folder) = shard.folder() {
            return super::folder::read(folder);
        }
        let tried: Vec<&str> = self.image_column.as_deref().map_or(USUAL.to_vec(), |column| vec![column]);
        let mut failed = None;
        for column in tried {
            match read(shard, column) {
                Err(error @ DataError::MissingColumn { .. }) => failed = failed.or(Some(error)),
                other => return other,
            }
        }
        Err(failed.expect("at least one column was tried"))
    }
}

fn read(shard: &Blob, column: &str) -> Result<Rows, DataError> {
    let mut rows = Rows::default();
    let mut number = 0;
    table::read(shard, &[column.to_owned()], &mut |texts| {
        let image = texts[0].filter(|image| !image.is_empty());
        let row = rows.push(image.unwrap_or_default());
        let place = image.and_then(|_| Place::of_row(number, 0));
        rows.put(row, "image", place, image.unwrap_or_default().as_bytes(), None);
        number += 1;
        Ok(())
    })?;
    Ok(rows)
}
