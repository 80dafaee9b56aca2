//! A model that learns itself, with a token of its own vocabulary as its semantic adaptive token, as SDSAT was published
//! (arXiv 2403.18647).

use std::io::BufWriter;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor, Var};
use model::gguf::MetadataValue;
use model::{NativeSat, SatAdapter};

use crate::TrainError;
use crate::base::{Base, Learns, ROPE_DIVISORS};
use crate::batch::{Anchors, Batch};
use crate::checkpoint::CheckpointPlace;
use crate::corpus::{Corpus, random_of};
use crate::device::TrainDevice;
use crate::evaluate::{SlotAcceptance, evaluate_native};
use crate::loss::{LossConfig, LossRows, slot_loss};
use crate::optimizer::{AdamW, AdamWConfig, Schedule};
use crate::run::{TrainEvent, TrainOutcome};
use crate::sample::SampleConfig;
use crate::tensor_file::folder_of;

/// How a model itself is trained, in two stages: first the token alone, then all weights with it. A checkpoint belongs to one
/// such run.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct NativeConfig {
    /// Tokens of a text.
    pub max_tokens: usize,
    /// Anchors in it.
    pub anchors: Anchors,
    /// Share of texts in the form of infilling, for models that have one.
    pub infill: f32,
    /// Share of these of which a line or a few are missing.
    pub short: f32,
    /// Share of texts that the model wrote itself, where there are such and others.
    pub written: f32,
    /// Weights of what slots learn. Their teacher is the model itself, as it is at that step.
    pub loss: LossConfig,
    /// Weight of what slots learn against what tokens learn, in the second stage.
    pub slot_weight: f64,
    /// Steps of the first stage: the embedding of the token learns, nothing else.
    pub n_token_steps: usize,
    /// Highest learning rate of these.
    pub token_rate: f64,
    /// Steps of the second stage: everything learns.
    pub n_joint_steps: usize,
    /// Highest learning rate of these.
    pub joint_rate: f64,
    /// Draws of texts and anchors.
    pub seed: u64,
    /// Steps between two measurements; the last step is measured in any case.
    pub evaluate_every: usize,
    /// Texts that are measured.
    pub n_evaluated: usize,
    /// Steps between two checkpoints: in the second stage each is three times the model in f32.
    pub save_every: usize,
}

/// A model that learns itself.
pub struct NativeModel {
    base: Base,
    /// The same weights, for what does not learn them.
    frozen: Base,
    sat: NativeSat,
    /// The embedding of the token: `[1, hidden]`. It goes into the table when the model is written.
    slot: Var,
}

impl NativeModel {
    /// Reads the weight file at `path` for texts of up to `max_positions` tokens. Where the file has a token of this kind it goes
    /// on from that one's embedding, elsewhere from the mean of all.
    ///
    /// # Errors
    /// What is wrong with the file or the device; [`TrainError::OutOfRange`] for a token that texts need.
    pub fn load(
        path: &Path,
        max_positions: usize,
        device: TrainDevice,
        sat: NativeSat,
    ) -> Result<Self, TrainError> {
        let base = Base::load_as(path, max_positions, device, Learns::Everything)?;
        let refuse = |field, bound, got: usize| TrainError::OutOfRange { field, bound, got: got.to_string() };
        if !(1..=SatAdapter::MAX_SLOTS).contains(&sat.n_slots) {
            return Err(refuse("slots", "from 1 to 32", sat.n_slots));
        }
        let is_one = (1..base.architecture().vocabulary).contains(&(sat.token as usize));
        if !is_one || !base.tokenizer().bytes(sat.token).is_empty() {
            let bound = "a special token of the vocabulary, which no text has";
            return Err(refuse("sat-token", bound, sat.token as usize));
        }
        let embedding = base.embedding.detach();
        let start = match base.native_sat.filter(|own| own.token == sat.token) {
            Some(own) => embedding.narrow(0, own.token as usize, 1)?,
            None => embedding.mean_keepdim(0)?,
        };
        Ok(Self { slot: Var::from_tensor(&start.contiguous()?)?, frozen: base.frozen(), base, sat })
    }

    /// The model.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Its token, and how many of it make a group.
    pub fn sat(&self) -> NativeSat {
        self.sat
    }

    /// Everything that learns, with its name in the file.
    pub fn variables(&self) -> Vec<(String, Var)> {
        let mut all = vec![("sat".to_owned(), self.slot.clone())];
        all.extend(self.base.variables.iter().cloned());
        all
    }

    /// Logits of the rows of a text, `[n_tokens, n_outputs]`, and of the rows of `batch` behind them, `[n_rows, n_outputs]`.
    ///
    /// # Errors
    /// Those of memory.
    pub fn logits(&self, tokens: &[u32], batch: &Batch) -> Result<[Tensor; 2], TrainError> {
        let hidden = self.base.read_with_slots(tokens, self.slot.as_tensor(), batch)?.hidden;
        let logits = self.base.logits(&hidden)?;
        Ok([logits.narrow(0, 0, tokens.len())?, logits.narrow(0, tokens.len(), batch.len())?])
    }

    /// What slots learn, and, where `standard` tokens learn too, what these do: the mean surprise at the next token.
    ///
    /// # Errors
    /// Those of memory.
    pub fn loss(
        &self,
        config: &NativeConfig,
        stage: Stage,
        tokens: &[u32],
        batch: &Batch,
    ) -> Result<Tensor, TrainError> {
        if stage == Stage::Token {
            // Texts are what they are: only the rows of slots have a graph.
            let text = self.frozen.read(tokens)?;
            let teacher = self.frozen.logits_at(&text, &batch.positions)?;
            let embedding =
                self.slot.as_tensor().broadcast_as((self.sat.n_slots, self.base.architecture().hidden))?;
            let rows = self.frozen.bare_rows(embedding.contiguous()?, &text, batch)?;
            let of_slots = self.frozen.logits(&self.frozen.draft(&rows)?)?;
            return Ok(slot_loss(config.loss, &of_slots, &teacher, batch.loss_rows(&batch.labels))?);
        }
        let [of_tokens, of_slots] = self.logits(tokens, batch)?;
        let positions = Tensor::new(&batch.positions[..], of_tokens.device())?;
        // A target that follows its pupil teaches nothing.
        let teacher = of_tokens.detach().index_select(&positions, 0)?;
        let slots = slot_loss(config.loss, &of_slots, &teacher, batch.loss_rows(&batch.labels))?;
        let n = tokens.len() - 1;
        let of_tokens = of_tokens.narrow(0, 0, n)?;
        let surprise =
            LossConfig { distillation: 0.0, cross_entropy: 1.0, slot_decay: 1.0, aligned_among: 0 };
        let (slots_of_tokens, firsts) = (vec![0u32; n], (0..n).collect::<Vec<_>>());
        let rows = LossRows { slots: &slots_of_tokens, labels: &tokens[1..], firsts: &firsts };
        let standard = slot_loss(surprise, &of_tokens, &of_tokens.detach(), rows)?;
        Ok((standard + (slots * config.slot_weight)?)?)
    }

    /// Writes the model to `path`, whole or not at all: matrices in half precision, or as they were where that is more, with the
    /// token in its metadata.
    ///
    /// # Errors
    /// [`TrainError::Io`], or what is wrong with the file that it came from.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let source = self.base.path();
        let mut file = std::fs::File::open(source).map_err(TrainError::io(source))?;
        let content = Content::read(&mut file).map_err(|error| TrainError::unreadable(source, error))?;
        let mut tensors = Vec::new();
        for (name, variable) in &self.base.variables {
            let mut tensor = variable.as_tensor().to_device(&Device::Cpu)?;
            if name == "token_embd.weight" {
                let row = self.sat.token as usize;
                let slot = self.slot.as_tensor().to_device(&Device::Cpu)?;
                tensor = tensor.slice_assign(&[row..row + 1, 0..self.base.architecture().hidden], &slot)?;
            }
            let was = content.tensor_infos.get(name).map(|info| info.ggml_dtype);
            let dtype = match was {
                Some(was @ (GgmlDType::F32 | GgmlDType::BF16)) => was,
                _ if tensor.rank() < 2 => GgmlDType::F32,
                _ => GgmlDType::F16,
            };
            tensors.push((name.clone(), QTensor::quantize(&tensor, dtype)?));
        }
        if content.tensor_infos.contains_key(ROPE_DIVISORS) {
            let divisors = content.tensor(&mut file, ROPE_DIVISORS, &Device::Cpu)?;
            tensors.push((ROPE_DIVISORS.to_owned(), divisors));
        }
        let mut metadata = content.metadata;
        metadata.insert("general.file_type".to_owned(), Value::U32(MOSTLY_F16));
        for (key, value) in self.sat.metadata() {
            // Both of its values are of this kind.
            if let MetadataValue::U32(value) = value {
                metadata.insert(key, Value::U32(value));
            }
        }
        let mut metadata: Vec<(&str, &Value)> =
            metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        metadata.sort_by_key(|(key, _)| *key);
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut part = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(TrainError::io(path))?;
        gguf_file::write(&mut BufWriter::new(&mut part), &metadata, &tensors)?;
        part.as_file().sync_all().map_err(TrainError::io(path))?;
        part.persist(path).map_err(|error| TrainError::Io { path: path.to_owned(), source: error.error })?;
        Ok(())
    }
}

/// What `general.file_type` says of weights in half precision.
const MOSTLY_F16: u32 = 1;

/// What learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The embedding of the token.
    Token,
    /// Everything.
    Joint,
}

impl NativeModel {
    /// What learns in `stage`, with its name in a checkpoint.
    fn learning_in(&self, stage: Stage) -> Vec<(String, Var)> {
        match stage {
            Stage::Token => vec![("sat".to_owned(), self.slot.clone())],
            Stage::Joint => self.variables(),
        }
    }
}

/// Trains `model` on `corpus` in its two stages, and writes it to `out`. Steps are counted through both. A checkpoint beside it,
/// `out` with `.checkpoint` behind its name, is gone on from where there is one of this run, and removed at the end. `on_event`
/// says whether to go on.
///
/// # Errors
/// What is wrong with the configuration or a file, [`TrainError::Exists`] where `out` is there without a checkpoint of this
/// run, and [`TrainError::NotANumber`]; the last checkpoint stays.
pub fn train_native(
    model: &NativeModel,
    corpus: &Corpus,
    config: &NativeConfig,
    out: &Path,
    on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<TrainOutcome, TrainError> {
    let base = &model.base;
    let NativeSat { token, n_slots, .. } = model.sat;
    let NativeConfig { max_tokens, infill, short, written, .. } = *config;
    let of_samples = SampleConfig { max_tokens, infill, short, written, n_slots };
    let samples = corpus.held_out(base, of_samples, config.n_evaluated)?;
    let place = CheckpointPlace::beside(out, base.sha256(), &(config, token, n_slots))?;
    let mut checkpoint = place.open(out)?;
    let n_resumed = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
    let stages = [
        (Stage::Token, 0, config.n_token_steps, config.token_rate),
        (Stage::Joint, config.n_token_steps, config.n_joint_steps, config.joint_rate),
    ];
    let n_steps = config.n_token_steps + config.n_joint_steps;
    for (stage, first, n_of_stage, learning_rate) in stages {
        let schedule = Schedule { n_warm_up: (n_of_stage / 20).min(100), n_steps: n_of_stage };
        let variables = model.learning_in(stage);
        let mut optimizer = AdamW::new(AdamWConfig { learning_rate, ..AdamWConfig::default() }, &variables)?;
        // It is of the stage whose step was the last.
        let is_of_stage = (n_resumed > config.n_token_steps) == (stage == Stage::Joint);
        if let Some(checkpoint) = checkpoint.take_if(|_| is_of_stage) {
            checkpoint.restore(&variables, &mut optimizer, n_resumed - first)?;
            if on_event(TrainEvent::Resumed { step: n_resumed }).is_break() {
                return Ok(TrainOutcome::Stopped { step: n_resumed });
            }
        }
        for step in first.max(n_resumed)..first + n_of_stage {
            let started = std::time::Instant::now();
            let mut random = random_of(config.seed.wrapping_add(1), step);
            let texts = corpus.texts_of_step(base, of_samples, config.anchors, &mut random)?;
            let n_rows: usize = texts.iter().map(|(_, batch)| batch.len()).sum();
            let mut loss = None;
            for (sample, batch) in &texts {
                let share = batch.len() as f64 / n_rows as f64;
                let of_text = (model.loss(config, stage, &sample.tokens, batch)? * share)?;
                loss = Some(match loss {
                    Some(loss) => (of_text + loss)?,
                    None => of_text,
                });
            }
            let loss: Tensor = loss.ok_or_else(|| corpus.too_little())?;
            let value = f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(TrainError::NotANumber { step });
            }
            let gradient_norm = optimizer.step(&loss.backward()?, schedule.at(step - first))?;
            let step = step + 1;
            let seconds = started.elapsed().as_secs_f64();
            let mut wish = on_event(TrainEvent::Step { step, loss: value, gradient_norm, n_rows, seconds });
            if step == n_steps || step.is_multiple_of(config.evaluate_every.max(1)) {
                let acceptance: SlotAcceptance = evaluate_native(model, &samples, config.anchors.n)?;
                if on_event(TrainEvent::Evaluated { step, acceptance }).is_break() {
                    wish = ControlFlow::Break(());
                }
            }
            let is_stopped = wish.is_break() && step < n_steps;
            if is_stopped || (step < n_steps && step.is_multiple_of(config.save_every.max(1))) {
                place.save(&variables, &optimizer, step)?;
            }
            if is_stopped {
                model.save(out)?;
                return Ok(TrainOutcome::Stopped { step });
            }
        }
    }
    model.save(out)?;
    place.remove();
    Ok(TrainOutcome::Finished)
}
