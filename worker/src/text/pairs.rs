//! Pairs of texts for `contrast`: which captions of a sample they are, and how they are read.
//!
//! A pair is drawn by (seed, data set, sample, epoch) alone, from the same generator as everything that is drawn of a
//! sample. Instructions stand before queries only, as in the reference (`E5_cc3m.py`): what is sought has none.

use crate::model::{
    ModelError,
    tokenizer::{CaptionTokenizer, Encoded},
};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{self, CaptionColumn},
    sampler::{CounterRng, Purpose},
};

/// How a sample's captions make a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PairRule {
    /// A short and a long caption; either is the query equally often (research code, recipe A).
    ShortLong {
        /// The column of the short one.
        short: usize,
        /// The column of the long one.
        long: usize,
        /// Before a short caption that seeks a long one.
        seeks_long: Option<String>,
        /// Before a long caption that seeks a short one.
        seeks_short: Option<String>,
    },
    /// Two captions of different columns, drawn by weight (paper, appendix C.1).
    TwoOf {
        /// One weight a column; two or more are above 0.
        weights: Vec<u32>,
        /// Before the query.
        instruction: Option<String>,
    },
    /// One caption twice, its column drawn by weight.
    Views {
        /// One weight a column.
        weights: Vec<u32>,
    },
}

/// A caption: whose, and of which column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The sample.
    pub sample: SampleIndex,
    /// The column.
    pub column: usize,
}

/// Which captions make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawnPair<'a> {
    /// What stands before the query.
    pub instruction: Option<&'a str>,
    /// What seeks.
    pub query: Place,
    /// What is sought.
    pub positive: Place,
    /// Another sample's caption of the same column as the positive, as the reference takes one; absent when there is no
    /// other sample.
    pub negative: Option<Place>,
}

impl PairRule {
    /// A recipe's rule over the columns of its data set.
    ///
    /// # Panics
    /// When the rule names a column that is not there; a valid recipe does not.
    pub fn of(rule: &recipe::PairRule, columns: &[CaptionColumn]) -> Self {
        let place = |name: &String| {
            let place = columns.iter().position(|column| column.name == *name);
            place.expect("a valid recipe names columns that are there")
        };
        let weights = || columns.iter().map(|column| column.weight).collect();
        match rule {
            recipe::PairRule::ShortLong { short, long, seeks_long, seeks_short } => Self::ShortLong {
                short: place(short),
                long: place(long),
                seeks_long: seeks_long.clone(),
                seeks_short: seeks_short.clone(),
            },
            recipe::PairRule::TwoOf { instruction } => {
                Self::TwoOf { weights: weights(), instruction: instruction.clone() }
            }
            recipe::PairRule::Views => Self::Views { weights: weights() },
        }
    }

    /// Whether there are two captions to draw.
    pub fn is_possible(&self) -> bool {
        match self {
            Self::ShortLong { short, long, .. } => short != long,
            Self::TwoOf { weights, .. } => weights.iter().filter(|weight| **weight > 0).count() >= 2,
            Self::Views { weights } => weights.iter().any(|weight| *weight > 0),
        }
    }

    /// Draws the pair of a sample of a data set that has `samples` of them.
    ///
    /// # Panics
    /// When the rule is not possible.
    pub fn draw(&self, seed: u64, source: u32, sample: SampleIndex, epoch: Epoch, samples: u64) -> DrawnPair<'_> {
        assert!(self.is_possible(), "a pair needs captions of two columns: {self:?}");
        let mut rng = CounterRng::new(seed, Purpose::Pair, source, sample, epoch);
        let (instruction, query, positive) = match self {
            Self::ShortLong { short, long, seeks_long, seeks_short } => match rng.below(2) {
                0 => (seeks_long, *short, *long),
                _ => (seeks_short, *long, *short),
            },
            Self::TwoOf { weights, instruction } => {
                let query = weighted(&mut rng, weights);
                let mut others = weights.clone();
                others[query] = 0;
                (instruction, query, weighted(&mut rng, &others))
            }
            Self::Views { weights } => {
                let column = weighted(&mut rng, weights);
                (&None, column, column)
            }
        };
        let negative = (samples > 1).then(|| {
            let other = rng.below(samples - 1);
            Place { sample: SampleIndex(other + u64::from(other >= sample.0)), column: positive }
        });
        let place = |column| Place { sample, column };
        DrawnPair { instruction: instruction.as_deref(), query: place(query), positive: place(positive), negative }
    }
}

/// A number below the number of weights, in proportion to them.
fn weighted(rng: &mut CounterRng, weights: &[u32]) -> usize {
    let mut drawn = rng.below(weights.iter().copied().map(u64::from).sum());
    let found = weights.iter().position(|weight| match drawn.checked_sub(u64::from(*weight)) {
        Some(left) => {
            drawn = left;
            false
        }
        None => true,
    });
    found.expect("what was drawn is below the sum of the weights")
}

/// A pair's texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What stands before the query.
    pub instruction: Option<String>,
    /// What seeks.
    pub query: String,
    /// What is sought.
    pub positive: String,
    /// What is not.
    pub negative: Option<String>,
}

/// A pair as the LLM reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// With its instruction, of which no token is averaged.
    pub query: Encoded,
    /// Without.
    pub positive: Encoded,
    /// Without.
    pub negative: Option<Encoded>,
}

impl Pair {
    /// The tokens of all of its texts, each in the template.
    pub fn encode(&self, tokenizer: &CaptionTokenizer) -> Result<EncodedPair, ModelError> {
        Ok(EncodedPair {
            query: match &self.instruction {
                Some(instruction) => tokenizer.encode_query(instruction, &self.query),
                None => tokenizer.encode(&self.query),
            }?,
            positive: tokenizer.encode(&self.positive)?,
            negative: self.negative.as_ref().map(|text| tokenizer.encode(text)).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::recipe::Pooling;
    use std::path::Path;

    fn short_long() -> PairRule {
        let words = |text: &str| Some(text.to_owned());
        PairRule::ShortLong { short: 2, long: 5, seeks_long: words("seek long"), seeks_short: words("seek short") }
    }

    fn draw(rule: &PairRule, sample: u64, epoch: u64, samples: u64) -> DrawnPair<'_> {
        rule.draw(7, 0, SampleIndex(sample), Epoch(epoch), samples)
    }

    #[test]
    fn short_captions_seek_long_ones_as_often_as_the_other_way_round() {
        let rule = short_long();
        let mut short_queries = 0;
        for sample in 0..10_000 {
            let pair = draw(&rule, sample, 0, 10_000);
            let expected = if pair.query.column == 2 { ("seek long", 5) } else { ("seek short", 2) };
            assert_eq!((pair.instruction.unwrap(), pair.positive.column), expected);
            assert_eq!((pair.query.sample, pair.positive.sample), (SampleIndex(sample), SampleIndex(sample)));
            short_queries += u64::from(pair.query.column == 2);
        }
        assert!((4_800..5_200).contains(&short_queries), "{short_queries}");
    }

    #[test]
    fn negatives_are_the_positives_column_of_any_other_sample() {
        let rule = short_long();
        let mut counts = [0; 5];
        for epoch in 0..8_000 {
            let pair = draw(&rule, 3, epoch, 5);
            let negative = pair.negative.unwrap();
            assert_eq!(negative.column, pair.positive.column);
            counts[negative.sample.0 as usize] += 1;
        }
        assert_eq!(counts[3], 0);
        assert!(counts.iter().all(|count| *count == 0 || (1_850..2_150).contains(count)), "{counts:?}");
        assert_eq!(draw(&rule, 0, 0, 1).negative, None);
    }

    #[test]
    fn two_captions_are_of_different_columns_and_drawn_by_weight() {
        let rule = PairRule::TwoOf { weights: vec![1, 0, 3, 2], instruction: None };
        let mut queries = [0; 4];
        for sample in 0..12_000 {
            let pair = draw(&rule, sample, 1, 12_000);
            assert!(pair.query.column != pair.positive.column && pair.positive.column != 1);
            queries[pair.query.column] += 1;
        }
        for (count, expected) in queries.iter().zip([2_000, 0, 6_000, 4_000]) {
            assert!((expected - 200..=expected + 200).contains(count), "{queries:?}");
        }
    }

    #[test]
    fn a_pair_depends_on_seed_data_set_sample_and_epoch() {
        let rule = short_long();
        let base = rule.draw(7, 0, SampleIndex(1), Epoch(0), 1 << 40);
        assert_eq!(base, rule.draw(7, 0, SampleIndex(1), Epoch(0), 1 << 40));
        for other in [(8, 0, 0), (7, 1, 0), (7, 0, 1)] {
            assert_ne!(base.negative, rule.draw(other.0, other.1, SampleIndex(1), Epoch(other.2), 1 << 40).negative);
        }
    }

    #[test]
    fn two_views_are_of_one_caption_and_their_negative_of_another_sample() {
        let rule = PairRule::Views { weights: vec![0, 2, 1] };
        let pair = draw(&rule, 4, 0, 9);
        assert_eq!(pair.query, pair.positive);
        assert!(pair.query.column > 0 && pair.negative.unwrap().sample != pair.query.sample);
    }

    #[test]
    fn a_recipes_rule_finds_its_columns() {
        let column = |(name, weight): (&str, u32)| CaptionColumn { name: name.to_owned(), weight };
        let columns = [(".txt", 1), ("url", 0), ("long", 3)].map(column);
        let rule = recipe::PairRule::ShortLong {
            short: ".txt".to_owned(),
            long: "long".to_owned(),
            seeks_long: None,
            seeks_short: None,
        };
        let found = PairRule::of(&rule, &columns);
        assert_eq!(found, PairRule::ShortLong { short: 0, long: 2, seeks_long: None, seeks_short: None });
        let found = PairRule::of(&recipe::PairRule::TwoOf { instruction: None }, &columns);
        assert_eq!(found, PairRule::TwoOf { weights: vec![1, 0, 3], instruction: None });
    }

    #[test]
    fn one_caption_is_no_pair() {
        assert!(!PairRule::TwoOf { weights: vec![0, 4], instruction: None }.is_possible());
        assert!(short_long().is_possible());
    }

    #[test]
    fn an_instruction_is_read_and_not_averaged() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/text");
        let template = "<|start_header_id|>user<|end_header_id|>\n\n{caption}<|eot_id|>";
        let tokenizer = CaptionTokenizer::open(&folder, template, 64, Pooling::MeanCaption).unwrap();
        let text = |text: &str| text.to_owned();
        let mut pair = Pair {
            instruction: Some(text("Given a sentence, retrieve a detailed relevant sentence")),
            query: text("a dog"),
            positive: text("a dog"),
            negative: Some(text("a cat on a mat")),
        };
        let with = pair.encode(&tokenizer).unwrap();
        pair.instruction = None;
        let without = pair.encode(&tokenizer).unwrap();
        assert_eq!(without.query, without.positive);
        assert_eq!(with.positive, without.positive);
        let averaged = |encoded: &Encoded| encoded.ids[encoded.span.clone()].len();
        assert_eq!(averaged(&with.query), averaged(&without.query));
        assert!(with.query.ids.len() > without.query.ids.len() + 5 && with.query.span.end == with.query.ids.len());
        assert!(with.negative.unwrap().span.len() > with.positive.span.len());
    }
}
