//! Texts and the images found for them, for the screen.

use super::{super::embed, features::Features};
use crate::{data::Dataset, trainer::error::TrainerError};
use common::ids::SampleIndex;

/// Examples shown in the summary.
const EXAMPLES: usize = 6;

/// Texts of a column and the best images found for each (`best`, by number of the image), spread evenly over the data set.
/// `image_m` is the image that each text is of.
pub fn of(
    dataset: &Dataset,
    column: &str,
    features: &Features,
    image_m: &[i64],
    best: &[Vec<i64>],
) -> Result<Vec<String>, TrainerError> {
    let Some((column, _)) = embed::columns(dataset).find(|(_, name)| *name == column) else { return Ok(Vec::new()) };
    let count = EXAMPLES.min(best.len());
    let show = |example: usize| {
        let query = example * best.len() / count;
        let own = image_m[query];
        let found = best[query].iter().map(|i| label(dataset, features.samples[*i as usize]));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let mark = if best[query].first() == Some(&own) { "hit " } else { "miss" };
        let sample = features.samples[own as usize];
        // Which of the image's texts it is.
        let nth = query - image_m.partition_point(|image| *image < own);
        let text = dataset.captions(sample, column)?.into_iter().nth(nth).unwrap_or_default();
        let text: String = text.chars().take(48).collect();
        Ok(format!("{mark}  {text:<48}  ->  {}", found.join("   ")))
    };
    (0..count).map(show).collect()
}

/// What stands for an image on the screen: a caption column of weight 0 if there is one, else its key. `emoji:1f450`
/// is shown as the character itself.
fn label(dataset: &Dataset, sample: SampleIndex) -> Result<String, TrainerError> {
    let labels = dataset.columns().iter().position(|column| column.weight == 0);
    let text = labels.map_or_else(|| dataset.key(sample), |column| dataset.caption(sample, column))?;
    let points = text.strip_prefix("emoji:").map(|points| points.split('-').map(|p| u32::from_str_radix(p, 16)));
    let shown: Option<String> = points.and_then(|points| points.map(|p| char::from_u32(p.ok()?)).collect());
    Ok(shown.unwrap_or(text))
}
