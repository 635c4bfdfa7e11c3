//! What the paper published, to stand beside a job's own figures.

use common::recipe::Benchmark;

/// Where the retrieval rows were printed.
pub const RETRIEVAL_SOURCE: &str = "arXiv 2411.04997v6, table 1";
/// Where the caption retrieval rows were printed.
pub const CAPTION_SOURCE: &str = "arXiv 2411.04997 v4 to v6, caption retrieval accuracy on COCO";

/// Where accuracy on ImageNet was printed by the paper, and by others who trained LLM2CLIP with its public code and LLM.
pub const ZERO_SHOT_SOURCES: [&str; 2] = ["arXiv 2411.04997v6, table 3", "ProCLIP, arXiv 2510.18795v3"];

/// A published accuracy on ImageNet-1k. The two sources contradict each other: say which is meant.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PublishedAccuracy {
    /// The model, with the number of image-text pairs that LLM2CLIP was trained on where it is told.
    pub model: &'static str,
    /// How many templates; absent where the source does not tell.
    pub templates: Option<u32>,
    /// In percent.
    pub top_1: f64,
    /// Who printed it.
    pub source: &'static str,
}

/// The published accuracies on ImageNet, source by source.
pub fn zero_shot() -> impl Iterator<Item = PublishedAccuracy> {
    let [paper, proclip] = ZERO_SHOT_SOURCES;
    let of_paper = TABLE_3.iter().flat_map(move |(model, [one, eighty])| {
        let row = |templates, top_1| PublishedAccuracy { model, templates: Some(templates), top_1, source: paper };
        [row(1, *one), row(80, *eighty)]
    });
    let of_proclip = PROCLIP.iter().map(move |(model, top_1)| PublishedAccuracy {
        model,
        templates: None,
        top_1: *top_1,
        source: proclip,
    });
    of_paper.chain(of_proclip)
}

/// Top-1 with one template and with 80.
const TABLE_3: [(&str, [f64; 2]); 4] = [
    ("CLIP L/14-224", [73.7, 75.5]),
    ("CLIP L/14-224 + LLM2CLIP", [73.2, 74.3]),
    ("CLIP L/14-336", [74.9, 76.6]),
    ("CLIP L/14-336 + LLM2CLIP", [74.6, 75.8]),
];

/// Top-1.
const PROCLIP: [(&str, f64); 10] = [
    ("CLIP B/16", 67.1),
    ("CLIP B/16 + LLM2CLIP 3M", 45.8),
    ("CLIP B/16 + LLM2CLIP 15M", 46.5),
    ("CLIP B/16 + LLM2CLIP 30M", 49.7),
    ("CLIP L/14", 74.5),
    ("CLIP L/14 + LLM2CLIP 3M", 52.8),
    ("CLIP L/14 + LLM2CLIP 15M", 54.0),
    ("CLIP L/14 + LLM2CLIP 30M", 56.4),
    ("EVA02 L + LLM2CLIP 3M", 56.4),
    ("SigLIP2 + LLM2CLIP 3M", 63.8),
];

/// A model's R@1 in percent: per benchmark image to text, text to image.
struct Row {
    model: &'static str,
    figures: [[f64; 2]; 5],
}

/// A published row of one benchmark.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Published {
    /// The model, with the number of image-text pairs that LLM2CLIP was trained on.
    pub model: &'static str,
    /// R@1 in percent.
    pub image_to_text: f64,
    /// R@1 in percent.
    pub text_to_image: f64,
}

/// The published rows of a benchmark of retrieval, in the paper's order; none of a classification.
pub fn retrieval(benchmark: Benchmark) -> impl Iterator<Item = Published> {
    let at = match benchmark {
        Benchmark::Flickr30k => Some(0),
        Benchmark::Coco => Some(1),
        Benchmark::Sharegpt4v => Some(2),
        Benchmark::Urban1k => Some(3),
        Benchmark::Docci => Some(4),
        Benchmark::Imagenet => None,
    };
    let row = |(at, row): (usize, &Row)| {
        let [image_to_text, text_to_image] = row.figures[at];
        Published { model: row.model, image_to_text, text_to_image }
    };
    at.into_iter().flat_map(|at| TABLE_1.iter().map(move |row| (at, row))).map(row)
}

/// Caption retrieval accuracy on COCO's 5,000 test images, R@1 of the first caption to the second in percent.
pub const CAPTIONS: [(&str, f64); 6] = [
    ("CLIP L/14, text tower", 25.2),
    ("EVA02 L/14, text tower", 27.1),
    ("Llama-3-8B", 5.2),
    ("Llama-3.2-1B", 5.6),
    ("Llama-3-8B, caption-contrastive", 29.5),
    ("Llama-3.2-1B, caption-contrastive", 29.4),
];

const fn row(model: &'static str, figures: [[f64; 2]; 5]) -> Row {
    Row { model, figures }
}

/// Flickr30k, COCO, ShareGPT4V, Urban1k, DOCCI.
const TABLE_1: [Row; 18] = [
    row("CLIP B/16", [[82.3, 62.2], [52.4, 33.1], [84.5, 79.8], [67.5, 53.1], [60.7, 57.1]]),
    row("CLIP B/16 + LLM2CLIP 15M", [[91.8, 80.7], [64.8, 52.4], [97.8, 97.6], [90.1, 92.1], [86.1, 86.9]]),
    row("EVA02 B/16", [[86.2, 71.5], [58.7, 42.1], [90.5, 85.5], [67.0, 60.8], [67.7, 68.0]]),
    row("EVA02 B/16 + LLM2CLIP 15M", [[91.2, 81.4], [66.0, 53.9], [98.5, 98.5], [88.2, 91.3], [86.8, 88.5]]),
    row("CLIP L/14-224", [[85.2, 65.0], [56.3, 36.5], [84.2, 83.6], [68.3, 55.6], [63.1, 65.8]]),
    row("CLIP L/14-224 + LLM2CLIP 15M", [[93.0, 83.5], [67.4, 56.4], [98.7, 98.6], [91.5, 94.1], [88.3, 90.4]]),
    row("EVA02 L/14-224", [[89.7, 77.3], [63.7, 47.5], [91.9, 89.3], [73.3, 68.5], [73.5, 75.0]]),
    row("EVA02 L/14-224 + LLM2CLIP 3M", [[94.3, 84.3], [65.2, 56.0], [98.0, 98.0], [91.0, 94.7], [87.8, 90.7]]),
    row("EVA02 L/14-224 + LLM2CLIP 15M", [[94.6, 85.0], [69.5, 58.3], [98.9, 99.1], [93.6, 95.7], [89.8, 91.2]]),
    row("EVA02 L/14-224 + LLM2CLIP 60M", [[95.9, 85.1], [71.7, 58.5], [99.2, 99.2], [95.2, 97.0], [90.1, 92.0]]),
    row("CLIP L/14-336", [[87.7, 67.0], [58.0, 37.1], [86.2, 84.0], [72.8, 57.0], [67.4, 65.7]]),
    row("CLIP L/14-336 + LLM2CLIP 15M", [[91.2, 82.1], [65.5, 53.6], [98.1, 98.4], [90.3, 93.2], [87.7, 89.0]]),
    row("CLIP L/14-336 + LLM2CLIP 60M", [[93.9, 84.3], [68.5, 54.8], [98.9, 99.1], [96.6, 97.9], [89.6, 91.6]]),
    row("EVA02 L/14-336", [[89.6, 78.0], [64.2, 47.9], [91.5, 89.4], [76.6, 70.0], [74.7, 76.4]]),
    row("EVA02 L/14-336 + LLM2CLIP 15M", [[94.7, 85.1], [69.7, 58.5], [98.8, 99.2], [93.5, 96.2], [89.2, 91.3]]),
    row("EVA02 L/14-336 + LLM2CLIP 60M", [[95.9, 85.4], [72.4, 58.8], [98.8, 99.2], [95.5, 97.3], [90.7, 92.6]]),
    row("SigLIP2 SO400M/14-224", [[93.9, 82.9], [72.0, 55.5], [90.2, 87.2], [75.7, 74.5], [77.0, 78.9]]),
    row("SigLIP2 SO400M/14-224 + LLM2CLIP 60M", [[95.2, 84.6], [73.7, 57.6], [99.4, 99.4], [96.2, 97.3], [91.5, 92.9]]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_benchmark_are_its_own_column() {
        let of = |benchmark, model: &str| {
            let row = retrieval(benchmark).find(|row| row.model == model).unwrap();
            (row.image_to_text, row.text_to_image)
        };
        assert_eq!(of(Benchmark::Flickr30k, "CLIP B/16"), (82.3, 62.2));
        assert_eq!(of(Benchmark::Coco, "EVA02 L/14-336 + LLM2CLIP 60M"), (72.4, 58.8));
        assert_eq!(of(Benchmark::Sharegpt4v, "SigLIP2 SO400M/14-224"), (90.2, 87.2));
        assert_eq!(of(Benchmark::Urban1k, "CLIP L/14-224 + LLM2CLIP 15M"), (91.5, 94.1));
        assert_eq!(of(Benchmark::Docci, "SigLIP2 SO400M/14-224 + LLM2CLIP 60M"), (91.5, 92.9));
        assert_eq!(retrieval(Benchmark::Imagenet).count(), 0);
    }

    #[test]
    fn accuracies_on_imagenet_say_who_printed_them() {
        let of = |model: &str| {
            let rows = zero_shot().filter(|row| row.model == model);
            rows.map(|row| (row.templates, row.top_1, row.source)).collect::<Vec<_>>()
        };
        let [paper, proclip] = ZERO_SHOT_SOURCES;
        assert_eq!(of("CLIP L/14-336 + LLM2CLIP"), [(Some(1), 74.6, paper), (Some(80), 75.8, paper)]);
        assert_eq!(of("CLIP L/14 + LLM2CLIP 15M"), [(None, 54.0, proclip)]);
    }
}
