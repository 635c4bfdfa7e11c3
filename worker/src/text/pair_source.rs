//! Where pairs come from: the captions of a data set of images, or a file that has them as they are.

use super::pairs::{Pair, PairRule, Place};
use crate::{
    data::{DataError, Dataset, Documents, Places},
    storage::Storage,
};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::DataPath,
};
use std::sync::Arc;

/// Pairs by number.
#[derive(Debug)]
pub enum PairSource {
    /// Captions of images.
    Captions {
        /// The data set.
        data: Arc<Dataset>,
        /// Which of a sample's captions.
        rule: PairRule,
    },
    /// A file of pairs.
    File(Box<PairFile>),
}

/// Pairs in a file, such as the jsonl files of E5's data that LLM2Vec trains on: fields `query`, `positive`, `negative`.
#[derive(Debug)]
pub struct PairFile {
    query: Documents,
    positive: Documents,
    negative: Option<Documents>,
    instructions: Vec<String>,
}

impl PairFile {
    /// Opens the pairs of all files that match the patterns. Each column is copied once into a file that any row can be read
    /// of, as for [`Documents`]. Without a field `negative` there are no negatives. `instructions` are before the queries; of
    /// several that of the row's number, round and round.
    ///
    /// # Errors
    /// When a file is missing, is no table or lacks `query` or `positive`, or when the copies cannot be kept.
    pub fn open(
        storage: &Arc<Storage>,
        patterns: &[DataPath],
        instructions: Vec<String>,
        places: &Places,
    ) -> Result<Self, DataError> {
        let column = |name: &str| Documents::open(storage, patterns, name, places);
        let negative = match column("negative") {
            Ok(negative) => Some(negative),
            Err(DataError::MissingColumn { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { query: column("query")?, positive: column("positive")?, negative, instructions })
    }

    fn pair(&self, row: u64) -> Result<Pair, DataError> {
        let negative = self.negative.as_ref().map(|negative| negative.text(row)).transpose()?;
        let round = (row % self.instructions.len().max(1) as u64) as usize;
        Ok(Pair {
            instruction: self.instructions.get(round).cloned(),
            query: self.query.text(row)?,
            positive: self.positive.text(row)?,
            negative: negative.filter(|text| !text.trim().is_empty()),
        })
    }
}

impl PairSource {
    /// How many pairs an epoch has.
    pub fn len(&self) -> u64 {
        match self {
            Self::Captions { data, .. } => data.len(),
            Self::File(file) => file.query.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// BLAKE3 in hex of what the pairs are made of.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Captions { data, .. } => data.fingerprint(),
            Self::File(file) => {
                let texts = [Some(&file.query), Some(&file.positive), file.negative.as_ref()];
                let parts: Vec<&str> = texts.into_iter().flatten().map(Documents::fingerprint).collect();
                blake3::hash(parts.join(" ").as_bytes()).to_hex().to_string()
            }
        }
    }

    /// What a pair is called in messages.
    pub fn key(&self, sample: SampleIndex) -> Result<String, DataError> {
        match self {
            Self::Captions { data, .. } => data.key(sample),
            Self::File(_) => Ok(format!("row {}", sample.0)),
        }
    }

    /// Whether a pair may bring a text that is not its own.
    pub fn has_negatives(&self) -> bool {
        match self {
            Self::Captions { data, .. } => data.len() > 1,
            Self::File(file) => file.negative.is_some(),
        }
    }

    /// The texts of a pair; `None` when its query or its positive is empty, so that it teaches nothing: the caller takes its
    /// stand-in (`Order::reserve`) and counts it.
    ///
    /// # Panics
    /// When there is no such pair, or the rule is not possible.
    pub fn pair(&self, seed: u64, source: u32, sample: SampleIndex, epoch: Epoch) -> Result<Option<Pair>, DataError> {
        let pair = match self {
            Self::File(file) => file.pair(sample.0)?,
            Self::Captions { data, rule } => {
                let drawn = rule.draw(seed, source, sample, epoch, data.len());
                let text = |place: Place| data.caption(place.sample, place.column);
                let negative = drawn.negative.map(text).transpose()?;
                Pair {
                    instruction: drawn.instruction.map(str::to_owned),
                    query: text(drawn.query)?,
                    positive: text(drawn.positive)?,
                    negative: negative.filter(|text| !text.trim().is_empty()),
                }
            }
        };
        let whole = [&pair.query, &pair.positive].into_iter().all(|text| !text.trim().is_empty());
        Ok(whole.then_some(pair))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::storage;
    use common::recipe::{CaptionColumn, CaptionTable, Captions, DataKind, DataSet, IndexPlace, RowRange, Unmatched};
    use std::{collections::BTreeMap, path::Path};

    #[test]
    fn pairs_of_a_file_are_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(&IndexPlace::Folder(folder.path().join("index")));
        let open = |name: &str, text: &str, instructions: &[&str]| {
            let instructions = instructions.iter().map(|text| (*text).to_owned()).collect();
            std::fs::write(folder.path().join(name), text).unwrap();
            PairFile::open(&storage(), &[folder.path().join(name).into()], instructions, &places)
                .map(|file| PairSource::File(Box::new(file)))
        };
        let rows = "{\"query\": \"q0\", \"positive\": \"p0\", \"negative\": \"n0\"}\n\
                    {\"query\": \"q1\", \"positive\": \"p1\", \"negative\": null}\n\
                    {\"query\": \" \", \"positive\": \"p2\", \"negative\": \"n2\"}\n";
        let source = open("nq.jsonl", rows, &["Given a question, retrieve", "Find"]).unwrap();
        let pair = |row| source.pair(1, 0, SampleIndex(row), Epoch(0)).unwrap();
        let first = pair(0).unwrap();
        assert_eq!(first.instruction.as_deref(), Some("Given a question, retrieve"));
        assert_eq!(
            (first.query.as_str(), first.positive.as_str(), first.negative.as_deref()),
            ("q0", "p0", Some("n0"))
        );
        let second = pair(1).unwrap();
        assert_eq!((second.negative, second.instruction.as_deref()), (None, Some("Find")));
        assert_eq!((pair(2), source.len()), (None, 3));
        let bare = open("bare.jsonl", "{\"query\": \"q\", \"positive\": \"p\"}\n", &[]).unwrap();
        let pair = bare.pair(1, 0, SampleIndex(0), Epoch(0)).unwrap().unwrap();
        assert_eq!((pair.negative, pair.instruction), (None, None));
        assert_ne!(bare.fingerprint(), source.fingerprint());
        let error = open("wrong.jsonl", "{\"question\": \"q\"}\n", &[]).err().unwrap().to_string();
        assert!(error.contains("no column `query`; it has: question"), "{error}");
    }

    #[test]
    fn pairs_of_images_are_their_captions_and_the_same_at_every_visit() {
        let (root, folder) =
            (Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji"), tempfile::tempdir().unwrap());
        let column = |name: &str| CaptionColumn { name: name.to_owned(), weight: 1 };
        let table = CaptionTable {
            file: root.join("emoji-dense-val.parquet").into(),
            key: "key".to_owned(),
            join: "key".to_owned(),
            unmatched: Unmatched::Broken,
        };
        let spec = DataSet {
            kind: DataKind::Webdataset,
            shards: vec![root.join("emoji-wds/val/*.tar").into()],
            captions: Captions { table: Some(table), columns: vec![column(".txt"), column("long_caption")] },
            broken_limit: 0.0,
            images: None,
            image_column: None,
            rows: RowRange::default(),
            only: BTreeMap::new(),
            index: IndexPlace::Folder(folder.path().to_owned()),
            vectors: None,
            benchmark: None,
            classes: None,
            shuffle: common::sampler::Shuffle::Full,
        };
        let data = Arc::new(Dataset::open(&storage(), "val", &spec).unwrap());
        let rule = PairRule::ShortLong { short: 0, long: 1, seeks_long: Some("long".to_owned()), seeks_short: None };
        let source = PairSource::Captions { data: data.clone(), rule };
        for sample in (0..source.len()).map(SampleIndex) {
            let pair = source.pair(3, 0, sample, Epoch(1)).unwrap().unwrap();
            assert_eq!(Some(&pair), source.pair(3, 0, sample, Epoch(1)).unwrap().as_ref());
            let (short, long) = (data.caption(sample, 0).unwrap(), data.caption(sample, 1).unwrap());
            let expected = if pair.instruction.is_some() { (short, long) } else { (long, short) };
            assert_eq!((pair.query, pair.positive), expected);
        }
    }
}
