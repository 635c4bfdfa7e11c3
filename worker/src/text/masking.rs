//! Which tokens of a block are to be predicted, and what stands in their place.
//!
//! As transformers' `DataCollatorForLanguageModeling`: each token that is not a special one is chosen by itself. What is
//! chosen depends on (seed, data set, block, epoch) alone.

use crate::model::{ModelError, tokenizer::TextTokenizer};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{Masking, Replacement},
    sampler::{CounterRng, Purpose},
};

/// How blocks are masked.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskRule {
    rate: f64,
    replacement: Replacement,
    /// The token that stands for a masked one.
    mask: u32,
    /// Tokens below this stand in for some.
    vocabulary: u32,
    /// Tokens that are never chosen.
    special: Vec<u32>,
}

/// A block as the LLM reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Places that are to be predicted, ascending, and the tokens that were there. Never the first place: nothing is before
    /// it to predict it.
    pub targets: Vec<(u32, u32)>,
}

impl MaskRule {
    /// A recipe's rule with a tokenizer over `vocabulary` tokens.
    ///
    /// # Errors
    /// When the tokenizer has no such mask token.
    pub fn new(masking: &Masking, tokenizer: &TextTokenizer, vocabulary: u32) -> Result<Self, ModelError> {
        let mask = tokenizer.id(&masking.token, vocabulary).ok_or_else(|| {
            let (token, path) = (masking.token.clone(), tokenizer.path().to_owned());
            ModelError::MaskToken { token, path }
        })?;
        let special = [tokenizer.first(), tokenizer.last()].concat();
        Ok(Self { rate: masking.rate, replacement: masking.replacement, mask, vocabulary, special })
    }

    /// Masks a block.
    pub fn apply(&self, mut ids: Vec<u32>, seed: u64, source: u32, block: SampleIndex, epoch: Epoch) -> Masked {
        let mut rng = CounterRng::new(seed, Purpose::Mask, source, block, epoch);
        let mut targets = Vec::new();
        for (place, id) in (0..).zip(&mut ids) {
            // Drawn for every token, so that what one is does not change what befalls the others.
            let (chosen, how, other) = (rng.uniform(), rng.uniform(), rng.below(u64::from(self.vocabulary)));
            if chosen >= self.rate || self.special.contains(id) {
                continue;
            }
            if place > 0 {
                targets.push((place, *id));
            }
            *id = match self.replacement {
                Replacement::Bert if how >= 0.9 => *id,
                Replacement::Bert if how >= 0.8 => other as u32,
                Replacement::Bert | Replacement::All => self.mask,
            };
        }
        Masked { ids, targets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(replacement: Replacement) -> MaskRule {
        MaskRule { rate: 0.2, replacement, mask: 7, vocabulary: 1000, special: vec![1] }
    }

    fn apply(rule: &MaskRule, ids: &[u32], block: u64, epoch: u64) -> Masked {
        rule.apply(ids.to_vec(), 3, 0, SampleIndex(block), Epoch(epoch))
    }

    #[test]
    fn a_fifth_is_chosen_and_of_it_80_10_and_10_percent_are_masked_another_and_itself() {
        let ids: Vec<u32> = (0..512).map(|i| 500 + i % 300).collect();
        let (mut chosen, mut masked, mut same) = (0, 0, 0);
        for block in 0..400 {
            let found = apply(&rule(Replacement::Bert), &ids, block, 0);
            chosen += found.targets.len();
            for (place, token) in &found.targets {
                assert_eq!(*token, ids[*place as usize]);
                masked += usize::from(found.ids[*place as usize] == 7);
                same += usize::from(found.ids[*place as usize] == *token);
            }
            let untouched = |place: usize| !found.targets.iter().any(|(target, _)| *target as usize == place);
            assert!((1..512).filter(|place| untouched(*place)).all(|place| found.ids[place] == ids[place]));
        }
        let share = |part: usize, whole: usize| part as f64 / whole as f64;
        assert!((share(chosen, 400 * 511) - 0.2).abs() < 0.005);
        // One in 1,000 of the others is the mask token or the token itself.
        assert!((share(masked, chosen) - 0.8).abs() < 0.01 && (share(same, chosen) - 0.1).abs() < 0.01);
    }

    #[test]
    fn all_may_be_masked_special_tokens_stay_and_the_first_place_is_no_target() {
        let ids = [5; 64];
        let found = apply(&MaskRule { rate: 1.0, ..rule(Replacement::All) }, &ids, 0, 0);
        assert_eq!((found.ids, found.targets.len(), found.targets[0]), (vec![7; 64], 63, (1, 5)));
        assert_eq!(apply(&MaskRule { rate: 1.0, ..rule(Replacement::All) }, &[1; 8], 0, 0).targets, []);
    }

    #[test]
    fn the_mask_token_is_one_of_the_vocabulary_as_the_reference_looks_it_up() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/llama-tiny");
        let tokenizer = TextTokenizer::open(&folder).unwrap();
        let with = |token: &str| {
            let masking = Masking { rate: 0.2, token: token.to_owned(), replacement: Replacement::All };
            MaskRule::new(&masking, &tokenizer, 4096)
        };
        assert_eq!(tokenizer.text(&[with("_").unwrap().mask]).unwrap().trim(), "_");
        let error = with("of the").unwrap_err().to_string();
        assert!(error.contains("\"of the\" is no token of") && error.contains("mask.token"), "{error}");
    }

    #[test]
    fn masks_depend_on_seed_data_set_block_and_epoch() {
        let (rule, ids) = (rule(Replacement::Bert), vec![9; 256]);
        let base = apply(&rule, &ids, 0, 0);
        assert_eq!(base, apply(&rule, &ids, 0, 0));
        assert_ne!(base, apply(&rule, &ids, 1, 0));
        assert_ne!(base, apply(&rule, &ids, 0, 1));
        assert_ne!(base, rule.apply(ids.clone(), 3, 1, SampleIndex(0), Epoch(0)));
        assert_ne!(base, rule.apply(ids, 4, 0, SampleIndex(0), Epoch(0)));
    }
}
