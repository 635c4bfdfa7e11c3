//! The two sides of stage 2: the vision tower, and the adapter on the LLM's vectors; with the logit scale they are what
//! `clip` trains and `eval` measures.

use super::frozen;
use crate::{
    checkpoint::Loaded,
    model::{
        adapter::{Adapter, AdapterConfig},
        lora,
        vision::{VisionConfig, VisionTower},
        weights,
    },
    torch,
    trainer::{
        error::TrainerError,
        step::{PairLoss, Pairing, normalise},
    },
};
use common::recipe::{AdapterModel, Init, Lock, Lora, Objective, Precision, Recipe};
use tch::{Device, Kind, Tensor, nn};

/// Vision tower, adapter and logit scale, over one store of variables.
pub struct Towers {
    /// Every variable by its checkpoint name.
    pub store: nn::VarStore,
    /// Pixels to the shared space.
    pub vision: Box<dyn VisionTower>,
    /// Text vectors to the shared space.
    pub adapter: Adapter,
    /// The logit scale's logarithm, a scalar in fp32.
    pub log_scale: Tensor,
    /// The logit bias, a scalar in fp32; of the sigmoid loss alone.
    pub logit_bias: Option<Tensor>,
    /// Side of the square image in pixels.
    pub image_size: i64,
    /// Width of the shared space.
    pub width: i64,
    objective: Objective,
    /// Low-rank updates that stand beside the vision tower's layers.
    lora: Option<lora::Lora>,
    /// Whether checkpoints are read for the average.
    averaged: bool,
    /// What forward and backward passes compute in; the variables are fp32.
    compute: Kind,
}

/// What a stage asks of the towers.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerSettings {
    /// Width of the text vectors.
    pub text_width: usize,
    /// Where the logit scale's logarithm begins.
    pub log_scale_init: f64,
    /// The loss that they are trained with.
    pub objective: Objective,
    /// What is not trained.
    pub lock: Lock,
    /// What is trained in the vision tower's place.
    pub lora: Option<Lora>,
    /// Whether checkpoints are read for the average that they hold.
    pub averaged: bool,
    /// What to compute in.
    pub precision: Precision,
    /// Whether the backward pass runs each block of the vision tower again.
    pub activation_checkpointing: bool,
}

impl Towers {
    /// Builds the towers of a recipe.
    pub fn build(recipe: &Recipe, settings: TowerSettings, device: Device) -> Result<Self, TrainerError> {
        let (Some(vision), Some(adapter)) = (&recipe.model.vision, &recipe.model.adapter) else {
            return Err(TrainerError::Plan("this stage needs [model.vision] and [model.adapter]".to_owned()));
        };
        let config = VisionConfig::read(&vision.folder)?;
        let mut store = nn::VarStore::new(device);
        let mut tower = config.build(&store.root());
        // What has no backward pass keeps nothing for one.
        tower.recompute_blocks(settings.activation_checkpointing && !settings.lock.whole_vision());
        match vision.init {
            Init::Random => crate::model::init::random(&store, recipe.seed, &config),
            Init::Pretrained => {
                weights::load(&mut store, &vision.folder, config.names())?;
            }
        }
        let adapter = Adapter::new(&store.root(), &adapter_config(adapter, settings.text_width, config.width()));
        crate::model::init::random_adapter(&store, recipe.seed);
        let log_scale = store.root().var("logit_scale", &[], nn::Init::Const(settings.log_scale_init));
        let bias = |start| store.root().var("logit_bias", &[], nn::Init::Const(start));
        let logit_bias = settings.objective.logit_bias_init.map(bias);
        frozen::lock(&store, tower.as_ref(), settings.lock)?;
        let adapt = |how: &Lora| frozen::adapt(&store, tower.as_mut(), how, recipe.seed);
        let lora = settings.lora.as_ref().map(adapt).transpose()?;
        Ok(Self {
            image_size: config.image_size(),
            width: config.width(),
            vision: tower,
            adapter,
            log_scale,
            logit_bias,
            objective: settings.objective,
            lora,
            averaged: settings.averaged,
            store,
            compute: torch::kind(settings.precision),
        })
    }

    /// Every variable by its name in a checkpoint, low-rank updates among them.
    pub fn variables(&self) -> Vec<(String, Tensor)> {
        let updates = self.lora.iter().flat_map(|lora| lora.store().variables());
        self.store.variables().into_iter().chain(updates).collect()
    }

    /// Whether low-rank updates drop inputs from now on, where the recipe wants that.
    pub fn train(&self, training: bool) {
        if let Some(lora) = &self.lora {
            lora.train(training);
        }
    }

    /// See [`lora::Lora::see`]; rows are images.
    pub fn see(&self, part: Option<lora::Part>) {
        if let Some(lora) = &self.lora {
            lora.see(part);
        }
    }

    /// Whether inputs are dropped in training: a pass draws random numbers then.
    pub fn drops(&self) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.config().dropout > 0.0)
    }

    /// Puts a checkpoint's values into the variables, of what is trained the average if it is to be taken; then merges low-rank
    /// updates into the weights beside which they stand, and freezes all.
    ///
    /// # Errors
    /// When the checkpoint is of another model.
    pub fn load(&mut self, checkpoint: &Loaded) -> Result<(), TrainerError> {
        for (name, mut variable) in self.variables() {
            let kind = if self.averaged && variable.requires_grad() { "ema" } else { "param" };
            let tensor = checkpoint.tensor(&format!("{kind}.{name}"))?;
            if tensor.size() != variable.size() {
                return Err(TrainerError::Plan(format!(
                    "the checkpoint's `{name}` has shape {:?}, this recipe's model has {:?}: config.json was changed since it \
                     was written",
                    tensor.size(),
                    variable.size()
                )));
            }
            tch::no_grad(|| variable.copy_(&tensor));
        }
        if self.lora.take().is_some() {
            lora::merge(self.vision.as_mut());
        }
        self.store.freeze();
        Ok(())
    }

    /// The loss, with its scalars.
    pub fn pairing(&self) -> Pairing<'_> {
        let label_smoothing = self.objective.label_smoothing;
        let loss = match &self.logit_bias {
            Some(bias) => PairLoss::Sigmoid { bias },
            None => PairLoss::Softmax { label_smoothing },
        };
        Pairing { log_scale: &self.log_scale, loss, distillation: None }
    }

    /// What the vision tower makes of pixels, or of the patches `kept_BK` of them: [B, width], not normalised.
    pub fn image_features(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        self.vision.forward_kept(&pixels_BCHW.to_kind(self.compute), kept_BK)
    }

    /// What the adapter makes of text vectors: [B, width], not normalised.
    pub fn text_features(&self, vectors_BD: &Tensor) -> Tensor {
        self.adapter.forward(&vectors_BD.to_kind(self.compute))
    }

    /// Floating-point operations of a training step per pair when `patches` of an image are seen: of what is trained three
    /// times those of a forward pass (Kaplan et al. 2020, section 2.1), of what is locked those of the forward pass, and beside
    /// low-rank updates two times. What recomputation adds does not count.
    pub fn flops_per_pair(&self, patches: i64) -> f64 {
        let passes = |trained: f64| 1.0 + 2.0 * trained;
        let (vision, adapter) = frozen::trained_shares(&self.store);
        let vision = if self.lora.is_some() { 2.0 } else { passes(vision) };
        vision * self.vision.flops(patches) + passes(adapter) * self.adapter.flops()
    }

    /// Image embeddings, normalised: [B, width] fp32.
    pub fn image_embeddings(&self, pixels_BCHW: &Tensor) -> Tensor {
        normalise(&self.image_features(pixels_BCHW, None))
    }

    /// Text embeddings, normalised: [B, width] fp32.
    pub fn text_embeddings(&self, vectors_BD: &Tensor) -> Tensor {
        normalise(&self.text_features(vectors_BD))
    }
}

/// The recipe's adapter, from the LLM's width to the shared one.
pub(super) fn adapter_config(spec: &AdapterModel, input: usize, output: i64) -> AdapterConfig {
    AdapterConfig {
        input: input as i64,
        output,
        blocks: spec.blocks as i64,
        expansion: spec.expansion as i64,
        l2_norm: spec.l2_norm,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::teacher::Teacher, *};
    use crate::{
        collective::Solo,
        objective::Repeats,
        trainer::{
            layout::clip_groups,
            parameters::FlatParameters,
            step::{
                Cut, LossSettings, StepSettings,
                clip::{PairEncoder, clip_step},
            },
            timeline::Timeline,
        },
    };
    use common::recipe::{Source, parse};
    use std::path::Path;

    const PAIRS: i64 = 8;

    struct Batch<'a> {
        towers: &'a Towers,
        pixels: Tensor,
        kept: Tensor,
        text: Tensor,
    }

    impl PairEncoder for Batch<'_> {
        fn encode(&self, _chunk: usize) -> (Tensor, Tensor) {
            (self.towers.image_features(&self.pixels, Some(&self.kept)), self.towers.text_features(&self.text))
        }
    }

    /// The demo's recipe with another vision tower.
    fn recipe(folder: &str) -> Recipe {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let text = std::fs::read_to_string(configs.join("demo-quick.toml")).unwrap();
        let source = Source { text: &text, file: "demo-quick.toml", folder: &configs, working_directory: &configs };
        parse(source, &[format!("model.vision.folder=models/{folder}")]).unwrap()
    }

    fn settings(objective: Objective) -> TowerSettings {
        TowerSettings {
            text_width: 24,
            log_scale_init: 2.6592,
            objective,
            lock: Lock::default(),
            lora: None,
            averaged: false,
            precision: Precision::Fp32,
            activation_checkpointing: true,
        }
    }

    /// How a few steps are taken.
    #[derive(Clone, Default)]
    struct Run {
        objective: Objective,
        lock: Lock,
        lora: Option<Lora>,
        skip_nonfinite: bool,
        /// The step whose images are NaN.
        poisoned: Option<u64>,
    }

    /// Losses of a few steps over one batch with patch dropout and activation checkpointing.
    fn losses(folder: &str, Run { objective, lock, lora, skip_nonfinite, poisoned }: Run) -> Vec<f64> {
        let settings = TowerSettings { lock, lora, ..settings(objective) };
        let towers = Towers::build(&recipe(folder), settings, Device::Cpu).unwrap();
        let normal = |shape: &[i64], seed| {
            tch::manual_seed(seed);
            Tensor::randn(shape, (Kind::Float, Device::Cpu))
        };
        let (layers, patches) = (towers.vision.layers(), towers.vision.patches());
        let kept = Tensor::arange_start_step(0, patches, 2, (Kind::Int64, Device::Cpu)).expand([PAIRS, -1], false);
        let mut batch = Batch {
            towers: &towers,
            pixels: normal(&[PAIRS, 3, towers.image_size, towers.image_size], 1),
            kept,
            text: normal(&[PAIRS, 24], 2),
        };
        let groups = clip_groups(0.1, 0.9, layers, |name| towers.vision.layer_id(name));
        let (trained, frozen) = frozen::parted(towers.variables());
        let mut parameters = FlatParameters::new(trained, groups, Device::Cpu).unwrap().with_frozen(frozen);
        let pixels = batch.pixels.shallow_clone();
        let step = |step| {
            let factor = if poisoned == Some(step) { f64::NAN } else { 1.0 };
            batch.pixels = &pixels * factor;
            let settings = StepSettings {
                step,
                learning_rate: 1e-3,
                betas: (0.9, 0.98),
                eps: 1e-6,
                clip_norm: Some(1.0),
                skip_nonfinite,
                loss: LossSettings::default(),
            };
            let cut = Cut { sizes: &[PAIRS], rows: &[PAIRS], repeats: &Repeats::default() };
            let time = Timeline::begin(Device::Cpu);
            let begun = clip_step(&batch, cut, &Solo, &mut parameters, towers.pairing(), &settings, time);
            begun.unwrap().wait().unwrap().loss
        };
        (1..=8).map(step).collect()
    }

    #[test]
    fn every_vision_tower_of_configs_learns_in_the_clip_stage() {
        for folder in ["vit-tiny", "eva02-tiny", "siglip-tiny"] {
            let losses = losses(folder, Run::default());
            assert!((losses[0] - (PAIRS as f64).ln()).abs() < 1.5, "{folder} begins by guessing: {losses:?}");
            assert!(losses[7] < 0.5 * losses[0], "{folder}: {losses:?}");
        }
    }

    #[test]
    fn the_sigmoid_loss_and_label_smoothing_learn_in_the_clip_stage() {
        let sigmoid =
            Objective { loss: common::recipe::PairLoss::Sigmoid, logit_bias_init: Some(-10.0), ..Objective::default() };
        let losses = losses("vit-tiny", Run { objective: sigmoid, ..Run::default() });
        assert!(losses[0] > 5.0 && losses[7] < 0.9 * losses[0], "{losses:?}");
        let smoothed = Objective { label_smoothing: 0.1, ..Objective::default() };
        let smoothed = self::losses("vit-tiny", Run { objective: smoothed, ..Run::default() });
        assert!(smoothed[7] < 0.7 * smoothed[0], "{smoothed:?}");
        let plain = self::losses("vit-tiny", Run::default());
        assert!(smoothed[7] > plain[7], "{smoothed:?} {plain:?}");
    }

    #[test]
    fn a_poisoned_step_updates_nothing_and_the_guard_changes_no_bit_of_others() {
        let plain = losses("vit-tiny", Run::default());
        let guarded = Run { skip_nonfinite: true, ..Run::default() };
        assert_eq!(losses("vit-tiny", guarded.clone()), plain);
        let skipped = losses("vit-tiny", Run { poisoned: Some(3), ..guarded.clone() });
        assert!(skipped[2].is_nan(), "{skipped:?}");
        assert_eq!(skipped[..2], plain[..2]);
        assert_eq!(skipped[3], plain[2], "the step after it begins where it began");
        assert!(skipped[4..].iter().all(|loss| loss.is_finite()), "{skipped:?}");
        let through = losses("vit-tiny", Run { poisoned: Some(3), ..Run::default() });
        assert!(through[3..].iter().all(|loss| loss.is_nan()), "{through:?}");
    }

    #[test]
    fn what_is_locked_stays_as_it_was_and_is_in_the_checkpoint_without_moments() {
        let (blocks, all) = (Lock { vision: true, vision_unlocked_groups: 2, ..Lock::default() }, Lock::default());
        let towers = |lock| {
            let settings = TowerSettings { lock, ..settings(Objective::default()) };
            Towers::build(&recipe("vit-tiny"), settings, Device::Cpu).unwrap()
        };
        let whole: Vec<String> = towers(all).store.variables().into_keys().collect();
        let towers = towers(blocks);
        let (trained, frozen) = frozen::parted(towers.variables());
        assert_eq!(trained.len() + frozen.len(), whole.len());
        let parameters = FlatParameters::new(trained, clip_groups(0.1, 1.0, 0, |_| 1), Device::Cpu).unwrap();
        let numel: usize = frozen.iter().map(|(_, tensor)| tensor.numel()).sum();
        let all: usize = towers.store.variables().values().map(Tensor::numel).sum();
        assert_eq!(parameters.numel() as usize, all - numel);
        let parameters = parameters.with_frozen(frozen);
        let names: Vec<String> = parameters.named(&Solo).unwrap().into_iter().map(|(name, _)| name).collect();
        assert!(whole.iter().all(|name| names.contains(&format!("param.{name}"))));
        let locked = "vision_model.embeddings.patch_embedding.weight";
        assert!(whole.iter().any(|name| name == locked) && !names.contains(&format!("exp_avg.{locked}")));
    }

    #[test]
    fn a_locked_tower_and_a_locked_adapter_let_the_other_learn() {
        let vision = Lock { vision: true, ..Lock::default() };
        let adapter = Lock { adapter: true, logit_scale: true, ..Lock::default() };
        for lock in [vision, adapter, Lock { vision_unlocked_groups: 1, ..vision }] {
            let losses = losses("vit-tiny", Run { lock, ..Run::default() });
            assert!(losses[7] < 0.98 * losses[0], "{lock:?}: {losses:?}");
        }
    }

    #[test]
    fn low_rank_updates_learn_beside_every_vision_tower_that_stays_as_it_was() {
        for folder in ["vit-tiny", "eva02-tiny", "siglip-tiny"] {
            let lora = common::recipe::Lora { rank: 4, alpha: 8.0, dropout: 0.1, targets: Vec::new() };
            let lock = Lock { adapter: true, ..Lock::default() };
            let losses = losses(folder, Run { lora: Some(lora.clone()), lock, ..Run::default() });
            assert!(losses[7] < 0.98 * losses[0], "{folder}: {losses:?}");
            let settings = TowerSettings { lora: Some(lora), lock, ..settings(Objective::default()) };
            let towers = Towers::build(&recipe(folder), settings, Device::Cpu).unwrap();
            let (trained, _) = frozen::parted(towers.variables());
            assert!(trained.iter().all(|(name, _)| name.contains(".lora_") || name == "logit_scale"), "{folder}");
            assert!(towers.drops() && trained.len() > 20, "{folder}: {}", trained.len());
        }
    }

    #[test]
    fn the_teacher_is_the_average_as_it_is_at_any_time() {
        let settings = || TowerSettings {
            lock: Lock { vision: true, vision_unlocked_groups: 3, ..Lock::default() },
            ..settings(Objective::default())
        };
        let student = Towers::build(&recipe("vit-tiny"), settings(), Device::Cpu).unwrap();
        let (trained, _) = frozen::parted(student.variables());
        let mut parameters = FlatParameters::new(trained, clip_groups(0.1, 1.0, 0, |_| 1), Device::Cpu).unwrap();
        parameters.average(0.5, true);
        let teacher = Teacher::of(&student, &parameters, &recipe("vit-tiny"), settings()).unwrap();
        let pixels = Tensor::ones([2, 3, student.image_size, student.image_size], (Kind::Float, Device::Cpu));
        let start = student.image_features(&pixels, None).detach();
        let apart = |from: Tensor| {
            let apart = (teacher.image_features(&pixels, None) - from).norm() / start.norm();
            apart.double_value(&[])
        };
        assert!(apart(start.shallow_clone()) < 1e-5);
        let projection = student.store.variables()["visual_projection.weight"].shallow_clone();
        let _ = tch::no_grad(|| projection.shallow_clone().g_mul_scalar_(3.0));
        assert!(apart(start.shallow_clone()) < 1e-5, "only the student has learned");
        parameters.update_average(None);
        // Half of the way to three times what it was.
        assert!(apart(&start * 2.0) < 1e-5, "{}", apart(&start * 2.0));
    }
}
