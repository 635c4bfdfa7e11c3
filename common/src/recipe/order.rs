//! The order of a stage's samples as its recipe describes it. Training and `llm2clip data order` both ask here, so that what
//! is listed is what is trained on.

use super::{Length, Recipe, Training};
use crate::sampler::{Order, OrderError, OrderSource, OrderSpec, Segment, Shuffle};

impl Recipe {
    /// The order of a stage whose data sets have so many samples, in the order of the stage's `data`.
    ///
    /// # Errors
    /// When the data sets do not fill a global batch.
    ///
    /// # Panics
    /// When there is not one number a data set.
    pub fn order(&self, stage: &Training, samples: &[u64]) -> Result<Order, OrderError> {
        assert_eq!(samples.len(), stage.data.len(), "one number a data set");
        let source = |(name, samples): (&String, &u64)| OrderSource {
            name: name.clone(),
            samples: *samples,
            shuffle: self.data.get(name).map_or(Shuffle::Full, |set| set.shuffle),
        };
        Order::new(OrderSpec {
            seed: self.seed,
            global_batch: stage.global_batch,
            sources: stage.data.iter().zip(samples).map(source).collect(),
            policy: stage.mix.policy,
            tail: stage.tail,
            segments: vec![Segment::first(stage.mix.weights.clone())],
        })
    }
}

impl Length {
    /// How many steps of this order that is.
    pub fn steps(self, order: &Order) -> u64 {
        match self {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => order.steps_of(epochs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        recipe::{Source, parse},
        sampler::Policy,
    };
    use std::path::Path;

    #[test]
    fn seed_batch_weights_and_shuffle_of_the_recipe_are_the_orders() {
        let text = r#"
            name = "mix"
            seed = 9
            output = "out"
            [data.a]
            kind = "webdataset"
            shards = "a.tar"
            captions = { columns = { ".txt" = 1 } }
            [data.b]
            kind = "webdataset"
            shards = "b.tar"
            captions = { columns = { ".txt" = 1 } }
            shuffle = { block = 8, window = 256 }
            [model]
            text = { folder = "llama" }
            vision = { folder = "vit" }
            adapter = {}
            [[stage]]
            kind = "embed"
            data = ["a", "b"]
            [[stage]]
            kind = "clip"
            data = ["b", "a"]
            global_batch = 32
            epochs = 2
            mix = { policy = "mixed", weights = { a = 3, b = 1 } }
            optimizer = { learning_rate = 1e-3 }
        "#;
        let here = Path::new("/here");
        let recipe = parse(Source { text, file: "mix.toml", folder: here, working_directory: here }, &[]).unwrap();
        let clip = recipe.training("clip").unwrap();
        let order = recipe.order(clip, &[500, 1_000]).unwrap();
        let expected = OrderSpec {
            sources: vec![
                OrderSource { name: "b".to_owned(), samples: 500, shuffle: Shuffle::Blocks { block: 8, window: 256 } },
                OrderSource { name: "a".to_owned(), samples: 1_000, shuffle: Shuffle::Full },
            ],
            policy: Policy::Mixed,
            segments: vec![Segment::first(Some(vec![1, 3]))],
            ..OrderSpec::plain(9, &[], 32)
        };
        assert_eq!(order.spec(), &expected);
        assert_eq!(clip.length.steps(&order), 2 * (1_500 / 32));
        assert_eq!(Length::Steps(7).steps(&order), 7);
        assert!(matches!(recipe.order(clip, &[10, 10]), Err(OrderError::NoBatch { .. })));
    }
}
