//! Models: what to load, what a file holds, and a model that is ready to run.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gpu::ATTENTION_CHUNK;
use kernels::CacheType;
use speculate::{Layout, Logits, MarkovHead, RowPlan};

use crate::adapter::{AdapterSource, NativeSat, SatAdapter};
use crate::architecture::Architecture;
use crate::backend::{Backend, Cpu, Gpu};
use crate::forward::{Llama, PassOrder};
use crate::gguf::GgufFile;
use crate::network::{Network, NetworkContext};
use crate::tokenizer::Tokenizer;
use crate::weights::sha256_of_file;
use crate::{ModelError, Sequence};

/// Rows that are compared alone and together when a model is loaded.
const N_CHECKED: usize = 8;
/// Rows of a pass in front of these.
const CHECKED_AT_ONCE: usize = 32;

/// What a model runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU.
    Gpu(gpu::DeviceInfo),
}

/// What to load.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The GGUF file.
    pub weights: PathBuf,
    /// The SAT adapter, if there is one for this file.
    pub adapter: Option<AdapterSource>,
    /// SHA-256 of the weight file, in hexadecimal, where it is known: an adapter is for one file only. The file
    /// is read for it otherwise.
    pub weights_sha256: Option<String>,
    /// Adaptive tokens in a group of a model without adapter; 0 for none. Their embedding is the mean of
    /// the prompt's, which an untrained model makes something of (arXiv 2603.17942).
    pub probe_slots: usize,
    /// Longest context in tokens; the model's own length where that is shorter.
    pub max_context: usize,
    /// How keys and values are kept.
    pub cache_type: CacheType,
    /// What to run on.
    pub device: Device,
    /// Threads that share the work; as many as the machine has cores for this process when 0.
    pub n_threads: usize,
}

impl ModelConfig {
    /// A model without adapter, and a context of 8192 tokens.
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        Self {
            weights: weights.into(),
            adapter: None,
            weights_sha256: None,
            probe_slots: 0,
            max_context: 8192,
            cache_type: CacheType::default(),
            device: Device::default(),
            n_threads: 0,
        }
    }
}

/// What a weight file holds, from its header alone.
#[derive(Clone, Debug)]
pub struct ModelSummary {
    /// Sizes and constants.
    pub architecture: Architecture,
    /// `general.name`, if the file has one.
    pub name: Option<String>,
    /// Number of weights.
    pub n_parameters: u64,
    /// The type that most matrices have, like `Q4_K`.
    pub quantization: String,
    /// The semantic adaptive token of its vocabulary, where it was trained with one.
    pub native_sat: Option<NativeSat>,
}

impl ModelSummary {
    /// The architecture of the file at `weights`, from its metadata alone.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn architecture_of(weights: &Path) -> Result<Architecture, ModelError> {
        Architecture::from_gguf(&open(weights)?)
    }

    /// Checks the file at `weights` (header, metadata, names and shapes of tensors, tokenizer) and
    /// says what it holds.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn read(weights: &Path) -> Result<(Self, Tokenizer), ModelError> {
        let file = open(weights)?;
        let architecture = Architecture::from_gguf(&file)?;
        let tokenizer = Tokenizer::from_gguf(&file, architecture.vocabulary)?;
        let name = file.string("general.name").ok().map(str::to_owned);
        let mut bytes_by_type = std::collections::BTreeMap::<_, usize>::new();
        let mut n_parameters = 0;
        for entry in file.header().tensors().values() {
            n_parameters += entry.shape.iter().map(|&n| n as u64).product::<u64>();
            *bytes_by_type.entry(entry.tensor_type).or_default() += usize::from(entry.shape.len() == 2);
        }
        let commonest = bytes_by_type.into_iter().max_by_key(|&(_, n)| n);
        let quantization = commonest.map(|(tensor_type, _)| format!("{tensor_type:?}")).unwrap_or_default();
        let native_sat = NativeSat::from_gguf(&file, &architecture)?;
        Ok((Self { architecture, name, n_parameters, quantization, native_sat }, tokenizer))
    }
}

fn open(weights: &Path) -> Result<GgufFile, ModelError> {
    GgufFile::open(weights).map_err(|source| ModelError::Gguf { path: weights.to_owned(), source })
}

/// A model that is ready to run.
pub struct Model {
    network: Arc<dyn Network>,
    tokenizer: Tokenizer,
    context_length: usize,
    cache_type: CacheType,
    markov_head: Option<Arc<MarkovHead>>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("architecture", self.architecture()).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model onto the device that `config` names.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn load(config: &ModelConfig) -> Result<Self, ModelError> {
        Self::load_with_progress(config, &mut |_| ControlFlow::Continue(()))
    }

    /// Loads a model, telling `progress` the share that is done, from 0 to 1. It is given up when
    /// `progress` says so.
    ///
    /// # Errors
    /// [`ModelError`]; [`ModelError::Cancelled`] when it was given up.
    pub fn load_with_progress(
        config: &ModelConfig,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        match &config.device {
            Device::Cpu => Self::load_on(Cpu::new(config.n_threads), config, progress),
            Device::Gpu(info) => {
                let model = Self::load_on(Gpu::new(info, config.n_threads)?, config, progress)?;
                // Drivers compile kernels, and nobody has tested ours on all of them. Some rows see the first chunk of
                // attention alone, some two. Software takes a minute for that, and is what tests run on.
                let n_before = if info.is_software { 0 } else { ATTENTION_CHUNK - 4 };
                model.check_rows(n_before.min(model.context_length.saturating_sub(N_CHECKED)))?;
                Ok(model)
            }
        }
    }

    fn load_on(
        backend: impl Backend,
        config: &ModelConfig,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        let file = open(&config.weights)?;
        let architecture = Architecture::from_gguf(&file)?;
        let context_length = config.max_context.min(architecture.context_length);
        let adapter = match &config.adapter {
            Some(source) => Some(load_adapter(source, config, &architecture)?),
            None => None,
        };
        let markov_head = adapter.as_ref().and_then(|adapter| adapter.markov_head.clone());
        let probe_slots = config.probe_slots;
        let vocabulary = architecture.vocabulary;
        // The tokenizer takes about as long as a tenth of the weights; it is built beside them.
        let (tokenizer, llama) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::from_gguf(&file, vocabulary));
            let llama =
                Llama::load(backend, &file, architecture, adapter, probe_slots, context_length, progress);
            (tokenizer.join(), llama)
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let network = Arc::new(llama?);
        Ok(Self { network, tokenizer, context_length, cache_type: config.cache_type, markov_head })
    }

    /// Whether rows behind `n_before` others give the same bits alone and among others, which is what makes speculation exact.
    fn check_rows(&self, n_before: usize) -> Result<(), ModelError> {
        let vocabulary = self.architecture().vocabulary as u32;
        let tokens: Vec<u32> =
            (0..(n_before + N_CHECKED) as u32).map(|idx| (97 * idx + 5) % vocabulary).collect();
        let (before, tokens) = tokens.split_at(n_before);
        let pass = |context: &mut dyn NetworkContext, plan: &RowPlan, logits: &mut Logits| {
            let layout = Layout::default();
            context.forward(PassOrder { plan, layout: &layout, is_cancelled: &|| false }, logits)
        };
        let mut common = self.network.clone().context(n_before + tokens.len(), self.cache_type)?;
        for (idx, tokens) in before.chunks(CHECKED_AT_ONCE).enumerate() {
            let plan = RowPlan::prefill(idx * CHECKED_AT_ONCE, tokens);
            pass(common.as_mut(), &plan, &mut Logits::default())?;
        }
        let logits = |n_together: usize| -> Result<Vec<u32>, ModelError> {
            let mut context = self.network.clone().context(n_before + tokens.len(), self.cache_type)?;
            context.copy_prefix(common.as_ref(), n_before)?;
            let (mut all, mut logits) = (Vec::new(), Logits::default());
            for (idx, tokens) in tokens.chunks(n_together).enumerate() {
                let mut plan = RowPlan::prefill(n_before + idx * n_together, tokens);
                (0..tokens.len()).for_each(|row| {
                    plan.want_logits(row);
                });
                pass(context.as_mut(), &plan, &mut logits)?;
                all.extend(logits.full.iter().map(|logit| logit.to_bits()));
            }
            Ok(all)
        };
        match logits(1)? == logits(tokens.len())? {
            true => Ok(()),
            false => Err(ModelError::VaryingRows { device: self.device() }),
        }
    }

    /// Sizes and constants.
    pub fn architecture(&self) -> &Architecture {
        self.network.architecture()
    }

    /// The tokenizer that came with the weights.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Longest sequence in tokens.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Semantic adaptive tokens in a group, trained or not.
    pub fn n_adaptive_tokens(&self) -> usize {
        self.network.n_slots()
    }

    /// What says how the drafts of adaptive tokens depend on each other, where the adapter has it.
    pub fn markov_head(&self) -> Option<&Arc<MarkovHead>> {
        self.markov_head.as_ref()
    }

    /// Whether its adaptive tokens were trained.
    pub fn has_trained_slots(&self) -> bool {
        self.network.has_trained_slots()
    }

    /// What it runs on, for people.
    pub fn device(&self) -> String {
        self.network.describe()
    }

    /// Bytes of weights that a pass reads.
    pub fn pass_bytes(&self) -> usize {
        self.network.pass_bytes()
    }

    /// Multiply-adds of the linear layers for one row, its logits included.
    pub fn n_products_per_row(&self) -> usize {
        let Architecture { hidden, vocabulary, .. } = *self.architecture();
        self.n_products_per_prompt_row() + vocabulary * hidden
    }

    /// Multiply-adds of the linear layers for a row whose logits nobody wants: the weights of all layers.
    pub fn n_products_per_prompt_row(&self) -> usize {
        let Architecture { n_layers, hidden, feed_forward, .. } = *self.architecture();
        let (query, kv) = (self.architecture().query_width(), self.architecture().kv_width());
        n_layers * hidden * (2 * query + 2 * kv + 3 * feed_forward)
    }

    /// Bytes read and multiply-adds of bytes, per second, that the device reaches at best. Takes some
    /// seconds.
    ///
    /// # Errors
    /// When the device fails.
    pub fn roofline(&self) -> Result<(f64, f64), ModelError> {
        self.network.roofline()
    }

    /// Threads of the host that share the work.
    pub fn n_threads(&self) -> usize {
        self.network.n_threads()
    }

    /// What measurements on this device are valid for.
    pub fn device_fingerprint(&self) -> String {
        self.network.fingerprint()
    }

    /// Memory that the cache of a sequence takes when its context is full.
    pub fn sequence_bytes(&self) -> usize {
        self.architecture().cache_bytes(self.context_length, self.cache_type)
    }

    /// How keys and values are kept.
    pub(crate) fn cache_type(&self) -> CacheType {
        self.cache_type
    }

    pub(crate) fn network(&self) -> &Arc<dyn Network> {
        &self.network
    }

    /// An empty sequence on this model.
    ///
    /// # Errors
    /// [`ModelError::NoMemory`].
    pub fn sequence(self: &Arc<Self>) -> Result<Sequence, ModelError> {
        Sequence::new(self.clone())
    }
}

/// Adapters are trained for one file: deltas on other weights would draft noise.
fn load_adapter(
    source: &AdapterSource,
    config: &ModelConfig,
    architecture: &Architecture,
) -> Result<SatAdapter, ModelError> {
    let adapter = SatAdapter::load(source, architecture)?;
    let got = match &config.weights_sha256 {
        Some(known) => known.clone(),
        None => sha256_of_file(&config.weights)?,
    };
    if adapter.base_sha256() != got {
        let (what, expected) = ("base_sha256".to_owned(), adapter.base_sha256().to_owned());
        return Err(ModelError::AdapterMismatch { what, expected, got });
    }
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Behind so many rows that some see more than one chunk of attention, on every device of this machine.
    #[test]
    fn rows_give_the_same_bits_behind_a_long_context() {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let gpus = gpu::DeviceInfo::all().into_iter().map(Device::Gpu);
        for device in gpus.chain([Device::Cpu]) {
            let config = ModelConfig { device, ..ModelConfig::new(tiny) };
            let model = Model::load(&config).expect("the tiny model");
            for n_before in [ATTENTION_CHUNK / 2 - 4, ATTENTION_CHUNK - 4] {
                model.check_rows(n_before).expect("rows give the same bits");
            }
        }
    }
}
