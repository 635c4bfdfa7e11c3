//! The embeddings of a data set and of its captions, computed by all ranks and known to all.

use super::{
    super::{embed, towers::Towers},
    images::{Images, Pass, gather, gather_counts},
    rank::Side,
};
use crate::{
    data::{Dataset, SampleRequest},
    trainer::{context::Context, error::TrainerError},
    vectors::{VectorStore, nth},
};
use common::ids::SampleIndex;
use half::bf16;
use std::{path::PathBuf, sync::Arc};
use tch::{Kind, Tensor};

/// Embeddings of a whole data set but for its broken images, the same on every rank.
pub struct Features {
    /// Which samples they are of.
    pub samples: Vec<SampleIndex>,
    /// 0, 1, 2 …: each image's own number.
    image_n: Vec<i64>,
    image_ND: Tensor,
    /// One a caption column.
    pub texts: Vec<Texts>,
}

/// The texts of one caption column.
pub struct Texts {
    /// The column.
    pub name: String,
    text_MD: Tensor,
    /// The image of each text, by its number among those that are whole; ascending.
    image_m: Vec<i64>,
}

impl Texts {
    /// As a side of a ranking.
    pub fn side(&self) -> Side<'_> {
        Side { rows_nD: &self.text_MD, image_n: &self.image_m }
    }
}

impl Features {
    /// The images as a side of a ranking.
    pub fn images(&self) -> Side<'_> {
        Side { rows_nD: &self.image_ND, image_n: &self.image_n }
    }

    /// Computes them, each rank its samples.
    ///
    /// # Errors
    /// When a vector is missing, or more images are broken than the recipe bears.
    pub fn compute(
        dataset: &Arc<Dataset>,
        vectors: &VectorStore,
        towers: &Towers,
        pass: Pass<'_>,
        context: &Context<'_>,
    ) -> Result<Self, TrainerError> {
        let mut local: Vec<LocalTexts> = embed::columns(dataset).map(|(_, name)| LocalTexts::of(name)).collect();
        let images = Images::compute(dataset, towers, pass, context, |samples| {
            for texts in &mut local {
                let vectors_BD = texts.read(vectors, samples)?.to_device(context.device).to_kind(Kind::Float);
                texts.parts.push(tch::no_grad(|| towers.text_embeddings(&vectors_BD)));
            }
            Ok(())
        })?;
        let texts = local.into_iter().map(|texts| texts.gather(&images, towers.width, context));
        Ok(Self {
            texts: texts.collect::<Result<_, _>>()?,
            image_n: (0..images.samples.len() as i64).collect(),
            samples: images.samples,
            image_ND: images.rows_ND,
        })
    }

    /// Writes `image`, and per caption column `text/COLUMN` with `image_of_text/COLUMN` (the row of `image` that each
    /// text belongs to), and the keys of `image`'s rows beside them.
    pub fn save(&self, path: &PathBuf, dataset: &Dataset) -> Result<(), TrainerError> {
        let io = |source| TrainerError::Io { operation: "write", path: path.clone(), source };
        std::fs::create_dir_all(path.parent().expect("the file has a folder")).map_err(io)?;
        let mut tensors = vec![("image".to_owned(), self.image_ND.shallow_clone())];
        for texts in &self.texts {
            tensors.push((format!("text/{}", texts.name), texts.text_MD.shallow_clone()));
            tensors.push((format!("image_of_text/{}", texts.name), Tensor::from_slice(&texts.image_m)));
        }
        Tensor::write_safetensors(&tensors, path)?;
        let keys = self.samples.iter().map(|sample| dataset.key(*sample)).collect::<Result<Vec<_>, _>>()?;
        std::fs::write(path.with_extension("keys.txt"), keys.join("\n") + "\n").map_err(io)
    }
}

/// One caption column's texts of this rank's samples.
struct LocalTexts {
    name: String,
    parts: Vec<Tensor>,
    /// How many texts each sample has.
    counts: Vec<i64>,
}

impl LocalTexts {
    fn of(name: &str) -> Self {
        Self { name: name.to_owned(), parts: Vec::new(), counts: Vec::new() }
    }

    /// The vectors of all captions of these samples, one after the other, as bf16 on the host.
    fn read(&mut self, vectors: &VectorStore, samples: &[SampleRequest]) -> Result<Tensor, TrainerError> {
        let width = vectors.width();
        let mut numbers: Vec<bf16> = Vec::new();
        for sample in samples {
            let mut count = 0;
            loop {
                let start = numbers.len();
                numbers.resize(start + width, bf16::ZERO);
                if (count > 0 && !self.name.ends_with("[*]"))
                    || !vectors.read(sample.index.0, &nth(&self.name, count), &mut numbers[start..])?
                {
                    numbers.truncate(start);
                    break;
                }
                count += 1;
            }
            if count == 0 {
                return Err(TrainerError::Plan(format!(
                    "the embedding store has no vector of sample {}, caption column `{}`",
                    sample.index.0, self.name
                )));
            }
            self.counts.push(count as i64);
        }
        // Not `from_slice`: tch 0.24 takes bf16 for fp16.
        let shape = [(numbers.len() / width) as i64, width as i64];
        Ok(Tensor::f_from_data_size(bytemuck::cast_slice(&numbers), &shape, Kind::BFloat16)?)
    }

    /// Every rank's texts, but for those of broken images.
    fn gather(self, images: &Images, width: i64, context: &Context<'_>) -> Result<Texts, TrainerError> {
        let counts = gather_counts(&self.counts, &images.shares, context)?;
        let mut first = 0;
        let text_rows: Vec<i64> = images
            .shares
            .iter()
            .map(|samples| {
                let own = &counts[first..first + *samples as usize];
                first += *samples as usize;
                own.iter().sum()
            })
            .collect();
        let text_MD = gather(self.parts, &text_rows, width, context)?;
        let (kept, image_m) = of_whole_images(&counts, &images.whole_N);
        let kept = Tensor::from_slice(&kept).to_device(context.device);
        Ok(Texts { name: self.name, text_MD: text_MD.index_select(0, &kept), image_m })
    }
}

/// The rows of texts whose image is whole, and the number of each one's image among those.
fn of_whole_images(counts: &[i64], whole: &[i64]) -> (Vec<i64>, Vec<i64>) {
    let (mut kept, mut image_m) = (Vec::new(), Vec::new());
    let (mut row, mut image) = (0, 0);
    for (count, whole) in counts.iter().zip(whole) {
        if *whole > 0 {
            kept.extend(row..row + count);
            image_m.extend(std::iter::repeat_n(image, *count as usize));
            image += 1;
        }
        row += count;
    }
    (kept, image_m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_broken_images_are_left_out_and_the_others_keep_their_image() {
        let (kept, image) = of_whole_images(&[2, 3, 1, 2], &[1, 0, 1, 1]);
        assert_eq!(kept, [0, 1, 5, 6, 7]);
        assert_eq!(image, [0, 0, 1, 2, 2]);
    }
}
