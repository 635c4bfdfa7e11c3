//! A corpus in blocks of n tokens, by number.

use super::{Corpus, Packing, Piece};
use crate::{
    data::DataError,
    model::{ModelError, tokenizer::TextTokenizer},
};
use common::recipe::Remainder;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Texts that a thread takes at a time.
const STRETCH: u64 = 256;

/// A corpus and where its blocks begin.
#[derive(Debug)]
pub struct Blocks {
    corpus: Corpus,
    tokenizer: Arc<TextTokenizer>,
    packing: Packing,
    fingerprint: String,
}

/// Why a text gives no tokens.
#[derive(Debug, thiserror::Error)]
pub enum BlocksError {
    /// It cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer fails.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl Blocks {
    /// Reads every text once, on so many threads, to know its length in tokens: with what the tokenizer puts around a text, as
    /// the reference does.
    ///
    /// # Errors
    /// When a text cannot be read.
    pub fn open(
        corpus: Corpus,
        tokenizer: Arc<TextTokenizer>,
        (block, remainder): (u32, Remainder),
        threads: usize,
    ) -> Result<Self, BlocksError> {
        let lengths = lengths(&corpus, &tokenizer, threads.max(1))?;
        let packing = Packing::new(lengths, block, remainder);
        let file = std::fs::read(tokenizer.path())
            .map_err(|source| ModelError::Read { path: tokenizer.path().to_owned(), source })?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(corpus.fingerprint().as_bytes()).update(&file);
        hasher.update(format!("{block} {remainder:?}").as_bytes());
        let fingerprint = hasher.finalize().to_hex().to_string();
        Ok(Self { corpus, tokenizer, packing, fingerprint })
    }

    /// How many blocks there are.
    pub fn len(&self) -> u64 {
        self.packing.blocks()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that are in no block.
    pub fn dropped(&self) -> u64 {
        self.packing.dropped()
    }

    /// BLAKE3 in hex of the texts, the tokenizer and how they are packed.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// A block's tokens.
    ///
    /// # Errors
    /// When a text cannot be read.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn tokens(&self, number: u64) -> Result<Vec<u32>, BlocksError> {
        let mut ids = Vec::new();
        for Piece { document, tokens } in self.packing.pieces(number) {
            let text = self.corpus.text(document as u64)?;
            let all = self.tokenizer.tokens_with_ends(&text)?;
            ids.extend_from_slice(&all[tokens.start as usize..tokens.end as usize]);
        }
        Ok(ids)
    }
}

/// Every text's length in tokens.
fn lengths(corpus: &Corpus, tokenizer: &TextTokenizer, threads: usize) -> Result<Vec<u32>, BlocksError> {
    let next = AtomicU64::new(0);
    let work = || -> Result<Vec<(u64, Vec<u32>)>, BlocksError> {
        let mut found = Vec::new();
        loop {
            let start = next.fetch_add(STRETCH, Ordering::Relaxed);
            if start >= corpus.len() {
                return Ok(found);
            }
            let around = (tokenizer.first().len() + tokenizer.last().len()) as u32;
            let length = |number| Ok(tokenizer.tokens(&corpus.text(number)?)?.len() as u32 + around);
            let stretch = (start..corpus.len().min(start + STRETCH)).map(length);
            found.push((start, stretch.collect::<Result<_, BlocksError>>()?));
        }
    };
    let parts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| worker.join().expect("a panic ends the process");
        workers.into_iter().map(join).collect::<Result<Vec<_>, BlocksError>>()
    })?;
    let mut stretches: Vec<_> = parts.into_iter().flatten().collect();
    stretches.sort_unstable_by_key(|(start, _)| *start);
    Ok(stretches.into_iter().flat_map(|(_, lengths)| lengths).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Documents, Places, tests::storage};
    use common::recipe::IndexPlace;
    use std::path::Path;

    #[test]
    fn blocks_are_the_documents_tokens_one_after_the_other_whatever_threads_counted_them() {
        let folder = tempfile::tempdir().unwrap();
        let rows: Vec<String> =
            (0..700).map(|i| format!("{{\"text\": \"{}\"}}", "a red fox in the snow ".repeat(i % 5))).collect();
        std::fs::write(folder.path().join("t.jsonl"), rows.join("\n")).unwrap();
        let places = Places::new(&IndexPlace::Folder(folder.path().join("index")));
        let files = [folder.path().join("t.jsonl").into()];
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/text");
        let tokenizer = Arc::new(TextTokenizer::open(&golden).unwrap());
        let open = |threads| {
            let documents = Documents::open(&storage(), &files, "text", &places).unwrap();
            Blocks::open(Corpus::Documents(documents), tokenizer.clone(), (32, Remainder::Once), threads).unwrap()
        };
        let (one, three) = (open(1), open(3));
        let all = |blocks: &Blocks| -> Vec<u32> {
            (0..blocks.len()).flat_map(|number| blocks.tokens(number).unwrap()).collect()
        };
        let expected: Vec<u32> = (0..one.corpus.len())
            .flat_map(|row| tokenizer.tokens_with_ends(&one.corpus.text(row).unwrap()).unwrap())
            .collect();
        assert_eq!(all(&one), expected[..expected.len() / 32 * 32]);
        assert_eq!(one.dropped(), expected.len() as u64 % 32);
        assert_eq!((all(&three), three.fingerprint()), (all(&one), one.fingerprint()));
    }
}
