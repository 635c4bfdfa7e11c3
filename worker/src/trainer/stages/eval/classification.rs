//! Zero-shot classification: images against the names of classes in templates of text.
//!
//! The protocol is open_clip's and the paper's: of every class the embeddings of its texts, normalised, are averaged over the
//! templates and normalised again; an image's scores are 100 times the cosines, and it is found when its class is among the
//! best one or five. Of equal scores the class of the lower number stands first; the factor changes no place, and is left out.

use super::{
    super::{prompts::Prompts, text_vectors::TextVectors, towers::Towers},
    images::{Images, Pass, gather, gather_counts},
};
use crate::{
    data::{Dataset, TemplateSet},
    trainer::{agreement, context::Context, error::TrainerError, step::normalise},
    vectors::VectorStore,
};
use common::{ids::SampleIndex, sampler};
use half::bf16;
use std::{path::Path, sync::Arc};
use tch::{Kind, Tensor};

/// Texts that go through the adapter at a time, at least those of one class.
const TEXTS: usize = 1024;
/// Images are ranked so many at a time, so that memory does not grow with their number.
const IMAGES: i64 = 1024;
/// The cut-offs of accuracy that are reported.
const CUTS: [i64; 2] = [1, 5];

/// A data set with classes, and the vectors of their texts.
pub struct Classification {
    data: Arc<Dataset>,
    prompts: Prompts,
    vectors: VectorStore,
}

/// Accuracy with one set of templates.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Accuracy {
    /// The data set.
    pub data: String,
    /// What the set of templates is called.
    pub templates: String,
    /// How many templates that are.
    pub template_count: usize,
    /// How many classes there are.
    pub classes: usize,
    /// Images that were classified.
    pub images: u64,
    /// Images that could not be: they are broken.
    pub left_out: u64,
    /// The share of images whose class has the highest score.
    pub top_1: f64,
    /// … one of the five highest.
    pub top_5: f64,
}

/// What a classification found, and what of.
pub struct Classified {
    /// By set of templates.
    pub figures: Vec<Accuracy>,
    samples: Vec<SampleIndex>,
    image_NP: Tensor,
    label_N: Tensor,
    classifiers: Vec<(String, Tensor)>,
}

impl Classification {
    /// Opens those of a stage's data sets that have classes.
    ///
    /// # Errors
    /// When words, images or vectors are missing or do not fit, or an image's class is none of the classes.
    pub fn open_all(
        names: &[String],
        context: &Context<'_>,
        sources: &TextVectors<'_, '_>,
    ) -> Result<Vec<Self>, TrainerError> {
        let open = |prompts: Prompts| {
            let spec = context.plan.recipe.data.get(&prompts.data).and_then(|set| set.as_classification());
            let spec = spec.expect("prompts are of data sets with classes");
            let vectors = prompts.open(context)?;
            let opened = Self { data: context.dataset(&prompts.data, &spec)?, prompts, vectors };
            opened.check_labels(context)?;
            Ok(opened)
        };
        Prompts::of_all(names, context, sources)?.into_iter().map(open).collect()
    }

    /// The data set's name.
    pub fn name(&self) -> &str {
        &self.prompts.data
    }

    /// The vectors of the classes' texts.
    pub fn vectors(&self) -> &VectorStore {
        &self.vectors
    }

    /// Classifies all images with every set of templates, each rank its share.
    ///
    /// # Errors
    /// When an image's class is none of the classes, a vector is missing, or more images are broken than the recipe bears.
    pub fn measure(&self, towers: &Towers, pass: Pass<'_>, context: &Context<'_>) -> Result<Classified, TrainerError> {
        let classifiers = self.classifiers(towers, context)?;
        let mut labels = Vec::new();
        let images = Images::compute(&self.data, towers, pass, context, |samples| {
            let found = samples.iter().map(|sample| self.label(sample.index));
            labels.extend(found.collect::<Result<Vec<i64>, _>>()?);
            Ok(())
        })?;
        let labels = gather_counts(&labels, &images.shares, context)?;
        let whole = labels.iter().zip(&images.whole_N).filter(|(_, whole)| **whole > 0).map(|(label, _)| *label);
        let label_N = Tensor::from_slice(&whole.collect::<Vec<i64>>()).to_device(context.device);
        let count = images.samples.len() as u64;
        let mine = sampler::local_slots(context.rank(), context.world(), count);
        let mine = (mine.start as i64, (mine.end - mine.start) as i64);
        let (image, label) = (images.rows_ND.narrow(0, mine.0, mine.1), label_N.narrow(0, mine.0, mine.1));
        let mut figures = Vec::new();
        for (set, classes_CP) in self.prompts.words.sets().iter().zip(&classifiers) {
            let hits = agreement::sums(context.collective, &hits(&positions(&image, classes_CP, &label)))?;
            let share = |i: usize| hits[i] as f64 / count.max(1) as f64;
            figures.push(Accuracy {
                data: self.name().to_owned(),
                templates: set.title.clone(),
                template_count: set.templates.len(),
                classes: self.prompts.words.classes(),
                images: count,
                left_out: self.data.len() - count,
                top_1: share(0),
                top_5: share(1),
            });
        }
        let titles = self.prompts.words.sets().iter().map(|set| set.title.clone());
        Ok(Classified {
            figures,
            samples: images.samples,
            image_NP: images.rows_ND,
            label_N,
            classifiers: titles.zip(classifiers).collect(),
        })
    }

    /// Leaves what was measured in `FOLDER/DATA_SET.classes.safetensors`, with the keys of its rows beside it.
    pub fn save(&self, found: &Classified, folder: &Path) -> Result<(), TrainerError> {
        let path = folder.join(format!("{}.classes.safetensors", self.name()));
        let io = |source| TrainerError::Io { operation: "write", path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let classifiers =
            found.classifiers.iter().map(|(title, rows)| (format!("class/{title}"), rows.shallow_clone()));
        let mut tensors: Vec<(String, Tensor)> = classifiers.collect();
        tensors.push(("image".to_owned(), found.image_NP.shallow_clone()));
        tensors.push(("label".to_owned(), found.label_N.shallow_clone()));
        Tensor::write_safetensors(&tensors, &path)?;
        let keys = found.samples.iter().map(|sample| self.data.key(*sample)).collect::<Result<Vec<_>, _>>()?;
        std::fs::write(path.with_extension("keys.txt"), keys.join("\n") + "\n").map_err(io)
    }

    /// Whether every image of this rank's share has a class that there is: told before anything was computed, a mistake in the recipe
    /// ends the job, and is not tried again.
    fn check_labels(&self, context: &Context<'_>) -> Result<(), TrainerError> {
        let mut mine = sampler::local_slots(context.rank(), context.world(), self.data.len());
        mine.try_for_each(|sample| self.label(SampleIndex(sample)).map(|_| ()))
    }

    /// The number of an image's class.
    fn label(&self, sample: SampleIndex) -> Result<i64, TrainerError> {
        let written = self.data.caption(sample, 0)?;
        let found = self.prompts.words.class_of(&written);
        let told = |what: String| {
            let key = self.data.key(sample).unwrap_or_else(|_| sample.to_string());
            TrainerError::Plan(format!(
                "sample {key} of data set `{}` {what} (`data.{}.classes`, column `{}`)",
                self.name(),
                self.name(),
                self.data.columns()[0].name
            ))
        };
        found.map(|class| class as i64).map_err(told)
    }

    /// A classifier a set of templates: [C, P] fp32, rows normalised. Each rank makes those of its share of the classes.
    fn classifiers(&self, towers: &Towers, context: &Context<'_>) -> Result<Vec<Tensor>, TrainerError> {
        let words = &self.prompts.words;
        let (classes, templates) = (words.classes() as u64, words.templates().len());
        let mine = sampler::local_slots(context.rank(), context.world(), classes);
        let rows: Vec<i64> = sampler::rows(context.world(), classes).into_iter().map(|n| n as i64).collect();
        let mut parts: Vec<Vec<Tensor>> = words.sets().iter().map(|_| Vec::new()).collect();
        for chunk in sampler::chunks(mine, (TEXTS / templates).max(1) as u64) {
            let shape = [(chunk.end - chunk.start) as i64, templates as i64, towers.width];
            let vectors = self.read(chunk)?.to_device(context.device).to_kind(Kind::Float);
            let texts_CTP = tch::no_grad(|| towers.text_embeddings(&vectors)).view(shape);
            for (set, part) in words.sets().iter().zip(&mut parts) {
                part.push(class_rows(&texts_CTP, set));
            }
        }
        parts.into_iter().map(|part| gather(part, &rows, towers.width, context)).collect()
    }

    /// The vectors of classes in all templates, class after class: [C·T, D] bf16 on the host.
    fn read(&self, classes: std::ops::Range<u64>) -> Result<Tensor, TrainerError> {
        let (width, templates) = (self.vectors.width(), self.prompts.words.templates());
        let mut numbers = vec![bf16::ZERO; (classes.end - classes.start) as usize * templates.len() * width];
        let places = classes.flat_map(|class| templates.iter().map(move |template| (class, template)));
        for ((class, template), row) in places.zip(numbers.chunks_exact_mut(width)) {
            if !self.vectors.read(class, template, row)? {
                return Err(TrainerError::Plan(format!(
                    "the embedding store of data set `{}` has no vector of class {class} in the template `{template}`",
                    self.name()
                )));
            }
        }
        // Not `from_slice`: tch 0.24 takes bf16 for fp16.
        let shape = [(numbers.len() / width) as i64, width as i64];
        Ok(Tensor::f_from_data_size(bytemuck::cast_slice(&numbers), &shape, Kind::BFloat16)?)
    }
}

/// The rows of a classifier, [C, P]: of normalised embeddings of all templates, [C, T, P], the mean over those of a set,
/// normalised.
fn class_rows(texts_CTP: &Tensor, set: &TemplateSet) -> Tensor {
    let templates: Vec<i64> = set.templates.iter().map(|template| *template as i64).collect();
    let templates = Tensor::from_slice(&templates).to_device(texts_CTP.device());
    normalise(&texts_CTP.index_select(1, &templates).mean_dim([1i64].as_slice(), false, Kind::Float))
}

/// How many classes stand before each image's own: those of a higher score, and of the same score those of a lower number.
/// [n] i64 on the CPU; `i64::MAX` when its own score is no number.
fn positions(image_nP: &Tensor, classes_CP: &Tensor, label_n: &Tensor) -> Tensor {
    let (n, device) = (image_nP.size()[0], image_nP.device());
    let class_1C = Tensor::arange(classes_CP.size()[0], (Kind::Int64, device)).unsqueeze(0);
    let block = |start: i64| {
        let length = IMAGES.min(n - start);
        let score_nC = image_nP.narrow(0, start, length).matmul(&classes_CP.tr());
        let label_n1 = label_n.narrow(0, start, length).unsqueeze(1);
        let own_n1 = score_nC.gather(1, &label_n1, false);
        let equal_nC = score_nC.eq_tensor(&own_n1).logical_and(&class_1C.lt_tensor(&label_n1));
        let before_n = score_nC.gt_tensor(&own_n1).logical_or(&equal_nC).sum_dim_intlist(1, false, Kind::Int64);
        before_n.masked_fill(&own_n1.isnan().squeeze_dim(1), i64::MAX).to_device(tch::Device::Cpu)
    };
    let blocks: Vec<Tensor> = (0..n).step_by(IMAGES as usize).map(block).collect();
    if blocks.is_empty() { Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu)) } else { Tensor::cat(&blocks, 0) }
}

/// How many positions are below each cut-off, in the order of [`CUTS`].
fn hits(position_n: &Tensor) -> [i64; 2] {
    CUTS.map(|cut| position_n.lt(cut).sum(Kind::Int64).int64_value(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Golden {
        classes: i64,
        templates: i64,
        width: i64,
        features: Vec<f32>,
        weights: Vec<f32>,
        images: Vec<f32>,
        labels: Vec<i64>,
        top_1: i64,
        top_5: i64,
    }

    fn set(templates: usize) -> TemplateSet {
        TemplateSet { title: "all".to_owned(), templates: (0..templates).collect() }
    }

    #[test]
    fn classifiers_and_accuracy_are_those_of_open_clip() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/zero_shot/golden.json");
        let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tensor = |numbers: &[f32]| Tensor::from_slice(numbers).view([-1, golden.width]);
        let texts = normalise(&tensor(&golden.features).view([golden.classes, golden.templates, golden.width]));
        let rows = class_rows(&texts, &set(golden.templates as usize));
        let expected = tensor(&golden.weights);
        let apart = ((&rows - &expected).abs().max() / expected.abs().max()).double_value(&[]);
        assert!(apart < 1e-5, "classifiers differ by {apart}");
        println!("classifiers differ by {apart:.1e}");
        let found = hits(&positions(&tensor(&golden.images), &rows, &Tensor::from_slice(&golden.labels)));
        assert_eq!(found, [golden.top_1, golden.top_5]);
    }

    #[test]
    fn a_subset_of_templates_is_averaged_alone() {
        let texts = normalise(&Tensor::from_slice(&[3f32, 0.0, 0.0, 4.0, 1.0, 1.0]).view([1, 3, 2]));
        let rows = class_rows(&texts, &TemplateSet { title: String::new(), templates: vec![0] });
        assert_eq!(Vec::<f32>::try_from(rows.view([-1])).unwrap(), [1.0, 0.0]);
        let both: Vec<f32> = Vec::try_from(class_rows(&texts, &set(2)).view([-1])).unwrap();
        assert!((both[0] - 0.5f32.sqrt()).abs() < 1e-6 && both[0].to_bits() == both[1].to_bits(), "{both:?}");
    }

    #[test]
    fn of_equal_scores_the_lower_class_stands_first_and_no_number_finds_nothing() {
        let classes = Tensor::from_slice(&[1f32, 0.0, 1.0, 0.0, 0.0, 1.0]).view([3, 2]);
        let image = Tensor::from_slice(&[1f32, 0.0, 1.0, 0.0, 1.0, 0.0, f32::NAN, 0.0]).view([4, 2]);
        let places = positions(&image, &classes, &Tensor::from_slice(&[0i64, 1, 2, 0]));
        assert_eq!(Vec::<i64>::try_from(&places).unwrap(), [0, 1, 2, i64::MAX]);
        assert_eq!(hits(&places), [1, 3]);
        let many = Tensor::randn([2500, 2], (Kind::Float, tch::Device::Cpu));
        let labels = Tensor::randint(3, [2500], (Kind::Int64, tch::Device::Cpu));
        let whole: Vec<i64> = Vec::try_from(positions(&many, &classes, &labels)).unwrap();
        let part = positions(&many.narrow(0, 1500, 700), &classes, &labels.narrow(0, 1500, 700));
        assert_eq!(whole[1500..2200], Vec::<i64>::try_from(part).unwrap()[..], "blocks do not matter");
    }
}
