//! Folders of images: ImageNet's, one folder a class, and Urban1k's, with a folder of captions beside that of the images.

use crate::data::{
    DataError,
    index::{Place, Rows},
    table::EachRow,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The images below a folder as relative paths, sorted byte by byte.
fn images(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next)? {
            let entry = entry?;
            let path = entry.path();
            let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            if entry.file_type()?.is_dir() {
                open.push(path);
            } else if matches!(ending.as_deref(), Some("jpg" | "jpeg" | "png" | "webp")) {
                found.extend(path.strip_prefix(folder).map(Path::to_owned));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The file of an image's caption: `caption/1.txt` for `image/1.jpg`, else `a/1.txt` for `a/1.jpg`.
fn caption_file(folder: &Path, image: &Path) -> PathBuf {
    let apart = image.strip_prefix("image").map(|rest| Path::new("caption").join(rest));
    folder.join(apart.unwrap_or_else(|_| image.to_owned())).with_extension("txt")
}

/// The first line of an image's caption: Urban1k's files have more, which are not meant.
fn caption(folder: &Path, image: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(caption_file(folder, image)) {
        Ok(text) => Ok(text.lines().next().map(str::to_owned)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(folder: &Path) -> impl Fn(io::Error) -> DataError {
    move |source| DataError::Io { operation: "list", path: folder.to_owned().into(), source }
}

/// Lists a folder: a sample's key is its image's path in it.
pub fn read(folder: &Path) -> Result<Rows, DataError> {
    let mut rows = Rows::default();
    for (number, image) in (0..).zip(images(folder).map_err(failed(folder))?) {
        let row = rows.push(&image.to_string_lossy());
        // Captions are part of what the folder is known by: they have no table whose time of change would tell.
        let text = caption(folder, &image).map_err(failed(folder))?.unwrap_or_default();
        rows.put(row, "image", Place::of_row(number, 0), text.as_bytes(), None);
    }
    Ok(rows)
}

/// Reads what a folder says of its images: `caption`, the first line of the text beside, and `class`, the first folder.
pub fn fields(folder: &Path, fields: &[String], each: &mut EachRow<'_>) -> Result<(), DataError> {
    for image in images(folder).map_err(failed(folder))? {
        let text = |field: &String| match field.as_str() {
            "caption" | "txt" => caption(folder, &image).map_err(failed(folder)),
            "class" => {
                let class = image.parent().and_then(|parent| parent.iter().next());
                Ok(class.map(|class| class.to_string_lossy().into_owned()))
            }
            other => Err(DataError::MissingColumn {
                path: folder.to_owned().into(),
                column: other.to_owned(),
                columns: "caption, class".to_owned(),
            }),
        };
        let texts = fields.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        each(&texts.iter().map(Option::as_deref).collect::<Vec<_>>())?;
    }
    Ok(())
}
