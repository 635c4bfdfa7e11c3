//! How data sets are mixed and shuffled.

use super::{
    Mix, Recipe, Stage,
    error::RecipeError,
    raw::{Node, Table, Value},
    read::{choice, one_or_more, positive, small, text},
};
use crate::sampler::{Policy, Shuffle, Tail};
use std::collections::BTreeMap;

/// Reads `[data.NAME] shuffle`: `"full"` or `{ block = b, window = m }`.
pub(super) fn shuffle(table: &mut Table<'_>) -> Result<Shuffle, RecipeError> {
    let (file, path) = (table.file, table.path("shuffle"));
    let Some(node) = table.take("shuffle") else { return Ok(Shuffle::Full) };
    match &node.value {
        Value::Text(word) if word == "full" => Ok(Shuffle::Full),
        Value::Table(_) => {
            let mut blocks = Table::of(file, &path, node)?;
            let block = blocks.need("block", positive)?;
            let window = blocks.need("window", positive)?;
            if window < block {
                return Err(
                    blocks.error(format!("`{path}.window` is {window}, less than one block of {block} samples"))
                );
            }
            blocks.finish()?;
            Ok(Shuffle::Blocks { block, window })
        }
        _ => Err(file.error(&node.place, format!("`{path}` must be \"full\" or {{ block = 128, window = 262144 }}"))),
    }
}

/// Reads `mix` of a stage with these data sets; `policy` is what it is when the recipe is silent.
pub(super) fn mix(table: &mut Table<'_>, data: &[String], policy: Policy) -> Result<Mix, RecipeError> {
    let Some(mut mix) = table.table("mix")? else { return Ok(Mix { policy, weights: None }) };
    let policies = [("one-source", Policy::OneSource), ("mixed", Policy::Mixed)];
    let policy = mix.get("policy", |value| choice(value, &policies))?.unwrap_or(policy);
    let weights = mix.table("weights")?.map(|weights| self::weights(weights, data)).transpose()?;
    mix.finish()?;
    Ok(Mix { policy, weights })
}

/// Reads `tail` of a stage.
pub(super) fn tail(table: &mut Table<'_>) -> Result<Tail, RecipeError> {
    let tails = [("drop", Tail::Drop), ("carry", Tail::Carry)];
    Ok(table.get("tail", |value| choice(value, &tails))?.unwrap_or_default())
}

/// One weight a data set, in the order of the stage's `data`.
fn weights(mut table: Table<'_>, data: &[String]) -> Result<Vec<u32>, RecipeError> {
    let mut given = table.rest();
    let mut take = |name: &String| {
        let Some(Node { place, value }) = given.remove(name) else {
            return Err(table.error(format!("`stage.mix.weights` has no weight of data set `{name}`; 0 leaves it out")));
        };
        small(&value).map_err(|message| table.file.error(&place, format!("the weight of data set `{name}` {message}")))
    };
    let weights = data.iter().map(&mut take).collect::<Result<Vec<_>, _>>()?;
    if let Some((name, node)) = given.into_iter().next() {
        let names = data.join(", ");
        let message = format!("`stage.mix.weights` names `{name}`, which is not in the stage's `data` ({names})");
        return Err(table.file.error(&node.place, message));
    }
    if weights.iter().all(|weight| *weight == 0) {
        return Err(table.error("no data set of `stage.mix.weights` has a weight above 0"));
    }
    Ok(weights)
}

impl Recipe {
    /// Gives the data sets that stage number `stage` mixes other weights; those that are not named keep theirs.
    ///
    /// # Errors
    /// In words, when there is no mix, a name is not in it, a weight is missing, or none is above 0.
    pub fn set_weights(&mut self, stage: usize, new: &BTreeMap<String, u32>) -> Result<(), String> {
        let training = self.stages.get_mut(stage).and_then(Stage::training_mut).ok_or("the stage mixes no data")?;
        if let Some(name) = new.keys().find(|name| !training.data.contains(name)) {
            return Err(format!("data set `{name}` is not one of the stage's: {}", training.data.join(", ")));
        }
        let old = |number: usize| training.mix.weights.as_ref().map(|weights| weights[number]);
        let weight = |(number, name): (usize, &String)| {
            let weight = new.get(name).copied().or_else(|| old(number));
            weight.ok_or_else(|| format!("data set `{name}` needs a weight, too: it had none"))
        };
        let weights = training.data.iter().enumerate().map(weight).collect::<Result<Vec<u32>, _>>()?;
        if weights.iter().all(|weight| *weight == 0) {
            return Err("no data set has a weight above 0".to_owned());
        }
        training.mix.weights = Some(weights);
        Ok(())
    }

    /// The stage whose mix can be given other weights when a job goes on at stage number `from`: that one, or the first
    /// after it that mixes.
    pub fn mixes_from(&self, from: usize) -> Option<usize> {
        (from..self.stages.len()).find(|stage| self.stages[*stage].training().is_some())
    }
}

/// Reads a stage's `data`: one name or several, none twice.
pub(super) fn data(value: &Value) -> Result<Vec<String>, String> {
    let names = one_or_more(value, text)?;
    match names.iter().enumerate().find(|(number, name)| names[..*number].contains(name)) {
        Some((_, twice)) => Err(format!("names data set `{twice}` twice")),
        None => Ok(names),
    }
}
