//! The words of zero-shot classification, as CLIP_benchmark keeps them: `classnames.txt`, one class a line in the order of
//! the `.cls` numbers, and `zeroshot_classification_templates.txt`, one template a line with `{c}` for the class.

use super::DataError;
use std::path::{Path, PathBuf};

/// Classes and templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// A class's name by its number.
    pub classes: Vec<String>,
    /// Texts around a class's name; `{c}` stands for it.
    pub templates: Vec<String>,
}

impl Labels {
    /// Reads both files of a folder.
    ///
    /// # Errors
    /// When a file is missing or empty, or a template has no `{c}`.
    pub fn read(folder: &Path) -> Result<Self, DataError> {
        let classes = lines(folder.join("classnames.txt"))?;
        let path = folder.join("zeroshot_classification_templates.txt");
        let templates = lines(path.clone())?;
        if let Some(template) = templates.iter().find(|template| !template.contains("{c}")) {
            let reason = format!("the template `{template}` has no {{c}} where the class belongs");
            return Err(DataError::Table { path: path.into(), reason });
        }
        Ok(Self { classes, templates })
    }

    /// The texts of a class, one a template.
    ///
    /// # Panics
    /// When there is no such class.
    pub fn texts(&self, class: usize) -> Vec<String> {
        self.templates.iter().map(|template| template.replace("{c}", &self.classes[class])).collect()
    }
}

fn lines(path: PathBuf) -> Result<Vec<String>, DataError> {
    let text = std::fs::read_to_string(&path).map_err(|source| DataError::Io {
        operation: "read",
        path: path.clone().into(),
        source,
    })?;
    let lines: Vec<String> =
        text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return Err(DataError::Table { path: path.into(), reason: "it has no line".to_owned() });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_and_templates_make_texts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("classnames.txt", "tench\ngreat white shark\r\n");
        write("zeroshot_classification_templates.txt", "a photo of a {c}.\nart of the {c}.\n");
        let labels = Labels::read(folder.path()).unwrap();
        assert_eq!(labels.texts(1), ["a photo of a great white shark.", "art of the great white shark."]);
        write("zeroshot_classification_templates.txt", "a photo of a {}.\n");
        assert!(Labels::read(folder.path()).unwrap_err().to_string().contains("has no {c}"));
    }
}
