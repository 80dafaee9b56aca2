//! The Llama family, once: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

use std::ops::ControlFlow;
use std::path::PathBuf;

use kernels::CacheType;
use speculate::{Layout, Logits, RowInput, RowPlan};

use crate::adapter::{AdapterSource, LINEARS, MAX_SLOTS, SatAdapter};
use crate::architecture::Architecture;
use crate::backend::{Backend, Cpu, LinearKernels, Norm, Projection, Rope, Visibility, VocabularyHead};
use crate::gguf::GgufFile;
use crate::tokenizer::Tokenizer;
use crate::weights::{Weights, sha256_of_file};
use crate::{ModelError, Sequence};

/// Rows a pass may place behind the context: drafts and adaptive groups of the last step.
pub(crate) const MARGIN_ROWS: usize = 256;

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
    /// Threads that share the work; as many as the machine has cores for this process when 0.
    pub n_threads: usize,
    /// Which matrix products to use.
    pub linear_kernels: LinearKernels,
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
            n_threads: 0,
            linear_kernels: LinearKernels::default(),
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
}

impl ModelSummary {
    /// The architecture of the file at `weights`, from its metadata alone.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn architecture_of(weights: &std::path::Path) -> Result<Architecture, ModelError> {
        Architecture::from_gguf(&open(weights)?)
    }

    /// Checks the file at `weights` (header, metadata, names and shapes of tensors, tokenizer) and
    /// says what it holds.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn read(weights: &std::path::Path) -> Result<(Self, Tokenizer), ModelError> {
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
        Ok((Self { architecture, name, n_parameters, quantization }, tokenizer))
    }
}

fn open(weights: &std::path::Path) -> Result<GgufFile, ModelError> {
    GgufFile::open(weights).map_err(|source| ModelError::Gguf { path: weights.to_owned(), source })
}

/// A model that is ready to run.
pub struct Model {
    llama: Llama<Cpu>,
    tokenizer: Tokenizer,
    context_length: usize,
    cache_type: CacheType,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("architecture", &self.llama.architecture).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model onto the CPU.
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
        let file = open(&config.weights)?;
        let architecture = Architecture::from_gguf(&file)?;
        let context_length = config.max_context.min(architecture.context_length);
        let adapter = match &config.adapter {
            Some(source) => Some(load_adapter(source, config, &architecture)?),
            None => None,
        };
        let backend = Cpu::new(config.linear_kernels, config.n_threads);
        // First, so that its unpacked form is gone when the weights come.
        let adapter = adapter.map(|adapter| AdapterWeights::load(&backend, adapter)).transpose()?;
        // The tokenizer takes about as long as a tenth of the weights; it is built beside them.
        let (tokenizer, weights) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::from_gguf(&file, architecture.vocabulary));
            let weights = Weights::load(&backend, &file, &architecture, progress);
            (tokenizer.join(), weights)
        });
        let tokenizer = tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let weights = weights?;
        let rope = Rope::new(&architecture, &weights.rope_divisors, context_length + MARGIN_ROWS);
        let probe_slots = if adapter.is_some() { 0 } else { config.probe_slots.min(MAX_SLOTS) };
        let llama = Llama { backend, architecture, weights, rope, adapter, probe_slots };
        Ok(Self { llama, tokenizer, context_length, cache_type: config.cache_type })
    }

    /// Sizes and constants.
    pub fn architecture(&self) -> &Architecture {
        &self.llama.architecture
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
        self.llama.n_slots()
    }

    /// Whether its adaptive tokens were trained.
    pub fn has_adapter(&self) -> bool {
        self.llama.adapter.is_some()
    }

    /// What it runs on, for people.
    pub fn device(&self) -> String {
        self.llama.backend.describe()
    }

    /// Bytes of weights that a pass reads.
    pub fn pass_bytes(&self) -> usize {
        self.llama.weights.pass_bytes(&self.llama.backend)
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
    pub fn roofline(&self) -> (f64, f64) {
        self.llama.backend.roofline()
    }

    /// Threads that share the work.
    pub fn n_threads(&self) -> usize {
        self.llama.backend.n_threads()
    }

    /// What measurements on this device are valid for.
    pub fn device_fingerprint(&self) -> String {
        self.llama.backend.fingerprint()
    }

    /// Memory that the cache of a sequence takes when its context is full.
    pub fn sequence_bytes(&self) -> usize {
        self.llama.architecture.cache_bytes(self.context_length, self.cache_type)
    }

    /// How keys and values are kept.
    pub(crate) fn cache_type(&self) -> CacheType {
        self.cache_type
    }

    /// An empty sequence on this model.
    ///
    /// # Errors
    /// [`ModelError::NoMemory`].
    pub fn sequence(self: &std::sync::Arc<Self>) -> Result<Sequence, ModelError> {
        Sequence::new(self.clone())
    }

    pub(crate) fn llama(&self) -> &Llama<Cpu> {
        &self.llama
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

pub(crate) struct AdapterWeights<B: Backend> {
    embedding: Vec<f32>,
    layers: Vec<[B::LowRank; LINEARS.len()]>,
    n_slots: usize,
}

impl<B: Backend> AdapterWeights<B> {
    fn load(backend: &B, adapter: SatAdapter) -> Result<Self, ModelError> {
        let (n_slots, rank) = (adapter.n_slots(), adapter.rank);
        let mut layers = Vec::with_capacity(adapter.layers.len());
        for deltas in adapter.layers {
            let [q, k, v, o, gate, up, down] = deltas.map(|delta| backend.low_rank(delta.a, delta.b, rank));
            layers.push([q?, k?, v?, o?, gate?, up?, down?]);
        }
        Ok(Self { embedding: adapter.embedding, layers, n_slots })
    }
}

/// Buffers that a sequence keeps between passes.
pub(crate) struct Buffers<B: Backend> {
    pass: Visibility,
    hidden: B::Rows,
    selected: B::Rows,
    normed: B::Input,
    queries: B::Rows,
    keys: B::Rows,
    values: B::Rows,
    attended: B::Input,
    activated: B::Input,
    projected: B::Rows,
    vocabulary: B::Scratch,
}

impl<B: Backend> Default for Buffers<B> {
    fn default() -> Self {
        Self {
            pass: Visibility::default(),
            hidden: B::Rows::default(),
            selected: B::Rows::default(),
            normed: B::Input::default(),
            queries: B::Rows::default(),
            keys: B::Rows::default(),
            values: B::Rows::default(),
            attended: B::Input::default(),
            activated: B::Input::default(),
            projected: B::Rows::default(),
            vocabulary: B::Scratch::default(),
        }
    }
}

pub(crate) struct Llama<B: Backend> {
    pub(crate) backend: B,
    pub(crate) architecture: Architecture,
    weights: Weights<B>,
    pub(crate) rope: Rope,
    adapter: Option<AdapterWeights<B>>,
    /// Slots without training, where there is no adapter.
    probe_slots: usize,
}

impl<B: Backend> Llama<B> {
    fn n_slots(&self) -> usize {
        self.adapter.as_ref().map_or(self.probe_slots, |adapter| adapter.n_slots)
    }

    /// What the slots of a model without adapter are embedded as behind a prompt: the mean of its tokens'
    /// embeddings, once for each slot, `[n_slots, hidden]`. Nothing for a model with an adapter.
    pub(crate) fn probe_embedding(&self, prompt: &[u32]) -> Result<Vec<f32>, ModelError> {
        if self.probe_slots == 0 || prompt.is_empty() {
            return Ok(Vec::new());
        }
        let mut counts = std::collections::BTreeMap::<u32, f32>::new();
        prompt.iter().for_each(|&token| *counts.entry(token).or_default() += 1.0 / prompt.len() as f32);
        let tokens: Vec<u32> = counts.keys().copied().collect();
        let plan = RowPlan::prefill(0, &tokens);
        self.check(&plan)?;
        let weights: Vec<f32> = counts.values().copied().collect();
        let hidden = self.architecture.hidden;
        let mean = self.backend.weighted_embedding(&self.weights.embedding, hidden, &plan, &weights)?;
        Ok(mean.repeat(self.probe_slots))
    }

    /// Runs `plan`: writes its keys and values behind the committed rows of `cache`, and the
    /// logits that it asks for to `logits`. `layout` says
    /// which tokens are aside; `probe` embeds the slots of a model without adapter.
    pub(crate) fn forward(
        &self,
        plan: &RowPlan,
        layout: &Layout,
        probe: &[f32],
        cache: &mut B::Cache,
        buffers: &mut Buffers<B>,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        self.check(plan)?;
        let n_probe = probe.len() / self.architecture.hidden;
        if self.adapter.is_none() && plan.rows().len() > plan.n_token_rows() && n_probe < self.probe_slots {
            return Err(ModelError::SlotOutsideAdapter { slot: 0, n_slots: 0 });
        }
        let Self { backend, architecture, weights, .. } = self;
        let shape = architecture.attention_shape();
        let Buffers {
            pass,
            hidden,
            selected,
            normed,
            queries,
            keys,
            values,
            attended,
            activated,
            projected,
            vocabulary,
        } = buffers;
        let slots = self.adapter.as_ref().map_or(probe, |adapter| &adapter.embedding);
        let first_adaptive = plan.n_token_rows();
        let adapter = self.adapter.as_ref().filter(|_| first_adaptive < plan.rows().len());
        let norm = |weight| Norm { weight, epsilon: architecture.stream_epsilon() };

        // A pass computes tokens aside or others, never both.
        let is_aside = layout.aside.contains(&plan.n_committed());
        pass.set(plan, layout);
        backend.embed(&weights.embedding, architecture.hidden, slots, plan, hidden)?;
        if architecture.embedding_multiplier() != 1.0 {
            backend.scale(hidden, architecture.embedding_multiplier());
        }
        let mut residual = None;
        for (layer_idx, layer) in weights.layers.iter().enumerate() {
            let deltas = adapter.map(|adapter| &adapter.layers[layer_idx]);
            let with_delta =
                |linear, idx: usize| Projection { linear, delta: deltas.map(|deltas| &deltas[idx]) };
            backend.normalise(residual, hidden, norm(&layer.attention_norm), first_adaptive, normed);
            let layers = [with_delta(&layer.q, 0), with_delta(&layer.k, 1), with_delta(&layer.v, 2)];
            backend.project(layers, normed, [&mut *queries, &mut *keys, &mut *values])?;
            if let Some([of_queries, of_keys]) = &layer.head_norms {
                let norm = |weight| Norm { weight, epsilon: architecture.norm_epsilon };
                backend.normalise_heads(queries, norm(of_queries));
                backend.normalise_heads(keys, norm(of_keys));
            }
            backend.rope(&self.rope, plan, queries);
            if is_aside {
                backend.keep_unturned(cache, layer_idx, plan, keys);
            }
            backend.rope(&self.rope, plan, keys);
            backend.store(cache, layer_idx, plan, keys, values);
            backend.attend(cache, layer_idx, shape, pass, queries, first_adaptive, attended);
            backend.project([with_delta(&layer.o, 3)], attended, [&mut *projected])?;

            let feed_forward_norm = norm(&layer.feed_forward_norm);
            backend.normalise(Some(projected), hidden, feed_forward_norm, first_adaptive, normed);
            backend.project_swiglu(
                with_delta(&layer.gate, 4),
                with_delta(&layer.up, 5),
                normed,
                activated,
            )?;
            backend.project([with_delta(&layer.down, 6)], activated, [&mut *projected])?;
            residual = Some(&*projected);
        }
        logits.vocabulary = architecture.vocabulary;
        if plan.logit_rows().is_empty() {
            logits.ranked.clear();
            logits.is_full.clear();
            logits.full.clear();
        } else {
            backend.select(hidden, plan.logit_rows(), selected);
            backend.select(projected, plan.logit_rows(), queries);
            backend.normalise(Some(queries), selected, norm(&weights.output_norm), usize::MAX, normed);
            let head = match &weights.output {
                Some(output) => VocabularyHead { matrix: &output.matrix, bias: output.bias.as_deref() },
                None => VocabularyHead { matrix: &weights.embedding, bias: None },
            };
            backend.project_vocabulary(head, normed, plan.wanted(), vocabulary, logits)?;
        }
        Ok(())
    }

    fn check(&self, plan: &RowPlan) -> Result<(), ModelError> {
        let vocabulary = self.architecture.vocabulary;
        let n_slots = self.n_slots();
        for row in plan.rows() {
            match row.input {
                RowInput::Token(token) if token as usize >= vocabulary => {
                    return Err(ModelError::TokenOutsideVocabulary { token, vocabulary });
                }
                RowInput::Adaptive(slot) if slot >= n_slots => {
                    return Err(ModelError::SlotOutsideAdapter { slot, n_slots });
                }
                _ => (),
            }
        }
        Ok(())
    }
}
