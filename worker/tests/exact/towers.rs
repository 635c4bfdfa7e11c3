//! What the ranks train: two small towers with dropout, whose pairs, texts and masked tokens depend on step and slot alone; and
//! the loss of the whole batch as plain autograd has it.

use tch::{Device, Kind, Tensor, nn};
use worker::{
    objective,
    trainer::{
        layout::clip_groups,
        parameters::FlatParameters,
        step::{
            Distillation, PairLoss, Pairing, clip::PairEncoder, contrast::TextEncoder, distill::TaughtEncoder,
            mntp::MaskedEncoder, normalise,
        },
    },
};

pub const BATCH: u64 = 23;
const WIDTH: i64 = 12;
/// Places of the batch with the same sample: within a rank, across ranks, and one three times.
pub const REPEATS: [(i64, i64); 5] = [(0, 22), (3, 4), (7, 15), (15, 19), (7, 19)];

/// Inputs of the image tower. In fp64 so many that its first layer is a gradient bucket by itself; in fp32 AdamW would make
/// full steps of the rounding of so many gradients of nearly nothing.
pub fn pixels(kind: Kind) -> i64 {
    if kind == Kind::Double { 30_000 } else { 20 }
}

/// The rows that the sums of `Task::Distilled` and `Task::Taught` are scaled to.
pub const TAUGHT: f64 = 7.0;

/// The step that `Task::Poisoned` poisons.
pub const POISONED: i64 = 3;

/// The label smoothing of `Task::Smoothed`.
const SMOOTHING: f64 = 0.15;

/// The factor on cosines of `contrast`.
pub const SCALE: f64 = 12.0;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Clip,
    Smoothed,
    Sigmoid,
    /// As `Clip`, with a teacher of the images.
    Distilled,
    /// As `Clip`, and in one step what one rank makes of its images is NaN.
    Poisoned,
    Contrast,
    /// The text tower alone, with a teacher.
    Taught,
    Mntp,
}

impl Task {
    pub const ALL: [Self; 8] = [
        Self::Distilled,
        Self::Poisoned,
        Self::Clip,
        Self::Smoothed,
        Self::Sigmoid,
        Self::Contrast,
        Self::Taught,
        Self::Mntp,
    ];

    /// Whether it trains both towers.
    pub fn pairs(self) -> bool {
        !matches!(self, Self::Contrast | Self::Taught | Self::Mntp)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Smoothed => "smoothed",
            Self::Sigmoid => "sigmoid",
            Self::Distilled => "distilled",
            Self::Poisoned => "poisoned",
            Self::Contrast => "contrast",
            Self::Taught => "taught",
            Self::Mntp => "mntp",
        }
    }

    pub fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|task| task.name() == name).unwrap()
    }
}

/// Two small towers with dropout, of which `contrast`, `distill` and `mntp` have the one of texts alone; whoever builds it gets the same
/// weights.
pub struct Towers {
    pub task: Task,
    pub store: nn::VarStore,
    w: Vec<Tensor>,
    pub log_scale: Tensor,
    /// Of the sigmoid loss.
    bias: Option<Tensor>,
}

impl Towers {
    pub fn new(task: Task, kind: Kind) -> Self {
        let mut store = nn::VarStore::new(Device::Cpu);
        let shapes = [
            ("image.a", [pixels(kind), WIDTH]),
            ("image.b", [WIDTH, WIDTH]),
            ("text.a", [9, WIDTH]),
            ("text.b", [WIDTH, WIDTH]),
        ];
        let mut w = Vec::new();
        let without = if task.pairs() { 0 } else { 2 };
        for (seed, (name, shape)) in (1..).zip(shapes).skip(without) {
            let mut variable = store.root().var(&name.replace('.', "_"), &shape, nn::Init::Const(0.0));
            let size = 1.8 / (shape[0] as f64).sqrt();
            tch::no_grad(|| variable.copy_(&(waves(seed, shape[0], shape[1]) * size)));
            w.push(variable);
        }
        let log_scale = match task.pairs() {
            true => store.root().var("logit_scale", &[], nn::Init::Const(2.659)),
            false => Tensor::from(0.0f32),
        };
        let bias = (task == Task::Sigmoid).then(|| store.root().var("logit_bias", &[], nn::Init::Const(-2.0)));
        // In place: the handles above stay those of the store.
        match kind {
            Kind::Double => store.double(),
            _ => store.float(),
        }
        Self { task, store, w, log_scale, bias }
    }

    pub fn pairing(&self) -> Pairing<'_> {
        let label_smoothing = if self.task == Task::Smoothed { SMOOTHING } else { 0.0 };
        let loss = match &self.bias {
            Some(bias) => PairLoss::Sigmoid { bias },
            None => PairLoss::Softmax { label_smoothing },
        };
        let distilled = self.task == Task::Distilled;
        let distillation = distilled.then_some(Distillation { weight: 0.05, rows: TAUGHT });
        Pairing { log_scale: &self.log_scale, loss, distillation }
    }

    pub fn parameters(&self) -> FlatParameters {
        let variables = self.store.variables().into_iter().collect();
        let mut parameters = FlatParameters::new(variables, clip_groups(0.1, 1.0, 0, |_| 1), Device::Cpu).unwrap();
        parameters.average(0.8, self.task == Task::Distilled);
        parameters
    }

    /// Embeddings of the pairs of some slots at a step, with a dropout mask for each slot.
    pub fn encode(&self, step: i64, slots: std::ops::Range<u64>) -> (Tensor, Tensor) {
        let (first, count) = (slots.start as i64, (slots.end - slots.start) as i64);
        let tower = |kind: i64, w: &[Tensor]| tower(100 * step + kind, (first, count), &w[0], &w[1]);
        (tower(10, &self.w[..2]), tower(20, &self.w[2..]))
    }

    /// Vectors of the queries, positives and negatives of some slots at a step.
    pub fn texts(&self, step: i64, slots: std::ops::Range<u64>) -> Tensor {
        let place = (slots.start as i64, (slots.end - slots.start) as i64);
        Tensor::cat(&[20, 21, 22].map(|role| tower(100 * step + role, place, &self.w[0], &self.w[1])), 0)
    }

    /// What `distill` trains makes of some slots at a step.
    pub fn learner(&self, step: i64, slots: std::ops::Range<u64>) -> Tensor {
        let place = (slots.start as i64, (slots.end - slots.start) as i64);
        tower(100 * step + 20, place, &self.w[0], &self.w[1])
    }

    /// The summed loss of some slots' masked tokens: slot i has i modulo 3 of them.
    pub fn masked(&self, step: i64, slots: std::ops::Range<u64>) -> Tensor {
        let (first, count) = (slots.start as i64, (slots.end - slots.start) as i64);
        let tokens: Vec<i64> = (0..count).flat_map(|row| vec![row; ((first + row) % 3) as usize]).collect();
        let targets: Vec<i64> = tokens.iter().map(|row| (first + row + step) % WIDTH).collect();
        let logits = tower(100 * step + 20, (first, count), &self.w[0], &self.w[1]);
        let logits = logits.index_select(0, &Tensor::from_slice(&tokens));
        objective::masked::cross_entropy_sum(&logits, &Tensor::from_slice(&targets))
    }
}

pub fn masked_tokens(slots: std::ops::Range<u64>) -> i64 {
    slots.map(|slot| (slot % 3) as i64).sum()
}

/// [count, WIDTH]: two layers with a dropout mask for each row.
pub fn tower(seed: i64, (first, count): (i64, i64), a: &Tensor, b: &Tensor) -> Tensor {
    let x = waves(seed, BATCH as i64, a.size()[0]).narrow(0, first, count);
    let mask = waves(seed + 50, BATCH as i64, WIDTH).narrow(0, first, count).gt(-0.5).to_kind(a.kind());
    ((x.to_kind(a.kind()).matmul(a).tanh() * mask) * 1.25).matmul(b)
}

/// What a teacher makes of some slots.
pub fn taught(step: i64, slots: std::ops::Range<u64>, kind: Kind) -> Tensor {
    let all = waves(100 * step + 30, BATCH as i64, WIDTH).to_kind(kind);
    all.narrow(0, slots.start as i64, (slots.end - slots.start) as i64)
}

/// Pairs that have no negative, [count] bool.
pub fn lacking((first, count): (i64, i64)) -> Tensor {
    (Tensor::arange(count, (Kind::Int64, Device::Cpu)) + first).remainder(5).eq(2)
}

/// Numbers on [-1, 1] that depend on the seed and the place alone.
pub fn waves(seed: i64, rows: i64, columns: i64) -> Tensor {
    let place = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu)) + (seed * 7919) as f64;
    (place * 12.9898).sin().multiply_scalar(43758.5453).sin().to_kind(Kind::Float).view([rows, columns])
}

pub struct Slice<'a> {
    pub towers: &'a Towers,
    pub step: i64,
    pub chunks: Vec<std::ops::Range<u64>>,
    pub poisoned: bool,
}

impl PairEncoder for Slice<'_> {
    fn encode(&self, chunk: usize) -> (Tensor, Tensor) {
        let (image, text) = self.towers.encode(self.step, self.chunks[chunk].clone());
        (if self.poisoned { image * f64::NAN } else { image }, text)
    }

    fn teach(&self, chunk: usize) -> Option<Tensor> {
        Some(taught(self.step, self.chunks[chunk].clone(), self.towers.w[0].kind()))
    }
}

impl TextEncoder for Slice<'_> {
    fn encode(&self, chunk: usize) -> Tensor {
        self.towers.texts(self.step, self.chunks[chunk].clone())
    }
}

impl TaughtEncoder for Slice<'_> {
    fn encode(&self, chunk: usize) -> Tensor {
        self.towers.learner(self.step, self.chunks[chunk].clone())
    }

    fn teach(&self, chunk: usize) -> Tensor {
        taught(self.step, self.chunks[chunk].clone(), self.towers.w[0].kind())
    }
}

impl MaskedEncoder for Slice<'_> {
    fn chunks(&self) -> usize {
        self.chunks.len()
    }

    fn masked(&self) -> i64 {
        self.chunks.iter().cloned().map(masked_tokens).sum()
    }

    fn loss_sum(&self, chunk: usize) -> Tensor {
        self.towers.masked(self.step, self.chunks[chunk].clone())
    }
}

/// The loss of the whole batch.
pub fn whole(towers: &Towers, step: i64, kind: Kind) -> Tensor {
    let batch = BATCH as i64;
    let targets = Tensor::arange(batch, (Kind::Int64, Device::Cpu));
    // `cross_entropy_for_logits` of tch computes in fp32.
    let one_way = |logits: &Tensor| logits.log_softmax(-1, kind).nll_loss(&targets);
    let hidden_BB = Tensor::zeros([batch; 2], (Kind::Bool, Device::Cpu));
    for (a, b) in REPEATS.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
        let _ = hidden_BB.get(a).get(b).fill_(1);
    }
    let cosines_BB = || {
        let (image, text) = towers.encode(step, 0..BATCH);
        normalise(&image).matmul(&normalise(&text).tr())
    };
    match towers.task {
        Task::Distilled => {
            let logits_BB = (cosines_BB() * towers.log_scale.exp()).masked_fill(&hidden_BB, f64::NEG_INFINITY);
            let all = distillation(&towers.encode(step, 0..BATCH).0, step, kind);
            (one_way(&logits_BB) + one_way(&logits_BB.tr())) * 0.5 + all * 0.05
        }
        Task::Taught => distillation(&towers.learner(step, 0..BATCH), step, kind),
        Task::Clip | Task::Poisoned | Task::Smoothed => {
            let logits_BB = (cosines_BB() * towers.log_scale.exp()).masked_fill(&hidden_BB, f64::NEG_INFINITY);
            let plain = (one_way(&logits_BB) + one_way(&logits_BB.tr())) * 0.5;
            if towers.task != Task::Smoothed {
                return plain;
            }
            let even = |logits_BB: &Tensor| {
                let log_p_BB = logits_BB.log_softmax(-1, kind).masked_fill(&hidden_BB, 0.0);
                let seen_B = hidden_BB.logical_not().sum_dim_intlist(&[1i64][..], false, kind);
                -(log_p_BB.sum_dim_intlist(&[1i64][..], false, kind) / seen_B).mean(kind)
            };
            plain * (1.0 - SMOOTHING) + (even(&logits_BB) + even(&logits_BB.tr())) * (0.5 * SMOOTHING)
        }
        Task::Sigmoid => {
            let logits_BB = cosines_BB() * towers.log_scale.exp() + towers.bias.as_ref().unwrap();
            let z_BB = Tensor::eye(batch, (kind, Device::Cpu)) * 2.0 - 1.0;
            -(logits_BB * z_BB).log_sigmoid().masked_fill(&hidden_BB, 0.0).sum(kind) / batch as f64
        }
        Task::Contrast => {
            let rows = normalise(&towers.texts(step, 0..BATCH)).chunk(3, 0);
            let scores = |documents: &Tensor| rows[0].matmul(&documents.tr()) * SCALE;
            let positives_BB = scores(&rows[1]).masked_fill(&hidden_BB, f64::NEG_INFINITY);
            let none_1B = lacking((0, batch)).unsqueeze(0);
            let negatives_BB = scores(&rows[2]).masked_fill(&none_1B, f64::NEG_INFINITY);
            one_way(&Tensor::cat(&[positives_BB, negatives_BB], 1))
        }
        Task::Mntp => towers.masked(step, 0..BATCH) / masked_tokens(0..BATCH) as f64,
    }
}

/// What the teacher says of the whole batch's rows, as torch's pdist, mse and smooth_l1 have it.
fn distillation(rows: &Tensor, step: i64, kind: Kind) -> Tensor {
    let (student, teacher) = (normalise(rows), normalise(&taught(step, 0..BATCH, kind)));
    let upper_BB = Tensor::ones([BATCH as i64; 2], (Kind::Bool, Device::Cpu)).triu(1);
    let distances = |rows: &Tensor| {
        let apart = (rows.unsqueeze(1) - rows.unsqueeze(0)).square();
        apart.sum_dim_intlist(&[2i64][..], false, rows.kind()).masked_select(&upper_BB).sqrt()
    };
    let n = BATCH as f64;
    let change = distances(&student) - distances(&teacher);
    let smooth = change.smooth_l1_loss(&change.zeros_like(), tch::Reduction::Sum, 1.0);
    (&student - &teacher).square().sum(kind) * (TAUGHT / n) + smooth * (TAUGHT * (TAUGHT - 1.0) / (n * (n - 1.0)))
}
