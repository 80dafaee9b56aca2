//! The Llama family, once: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

use std::ops::ControlFlow;

use speculate::{Layout, Logits, RowInput, RowPlan};

use crate::ModelError;
use crate::adapter::{LINEARS, MAX_SLOTS, NativeSat, SatAdapter};
use crate::architecture::Architecture;
use crate::backend::{Backend, Buffers, Norm, Pass, Projection, RopeTables, VocabularyHead};
use crate::gguf::GgufFile;
use crate::weights::Weights;

/// A pass that is wanted.
#[derive(Clone, Copy)]
pub(crate) struct PassOrder<'a> {
    pub(crate) plan: &'a RowPlan,
    /// Which tokens are aside.
    pub(crate) layout: &'a Layout,
    /// Asked before every layer. When it says so the pass is given up, with [`ModelError::Cancelled`]: committed
    /// rows are as they were.
    pub(crate) is_cancelled: &'a dyn Fn() -> bool,
}

/// Rows a pass may place behind the context: drafts and adaptive groups of the last step.
pub(crate) const MARGIN_ROWS: usize = 256;

/// Slots that were trained: by an adapter, or with the model.
struct TrainedSlots<B: Backend> {
    /// `[n_slots, hidden]`
    embedding: B::Vector,
    /// Of an adapter; none where the model's own weights were trained with them.
    deltas: Vec<[B::LowRank; LINEARS.len()]>,
    n_slots: usize,
    /// What they are in the vocabulary, and never in a text.
    native: Option<NativeSat>,
}

impl<B: Backend> TrainedSlots<B> {
    fn of_adapter(backend: &B, adapter: SatAdapter) -> Result<Self, ModelError> {
        let (n_slots, rank) = (adapter.n_slots(), adapter.rank);
        let mut deltas = Vec::with_capacity(adapter.layers.len());
        for of_layer in adapter.layers {
            let [q, k, v, o, gate, up, down] = of_layer.map(|delta| backend.low_rank(delta.a, delta.b, rank));
            deltas.push([q?, k?, v?, o?, gate?, up?, down?]);
        }
        Ok(Self { embedding: backend.vector(adapter.embedding)?, deltas, n_slots, native: None })
    }

    fn of_checkpoint(backend: &B, weights: &Weights<B>, native: NativeSat) -> Result<Self, ModelError> {
        let ids: Vec<[(u32, f32); 1]> = native.tokens().map(|token| [(token, 1.0)]).collect();
        let rows: Vec<&[(u32, f32)]> = ids.iter().map(|id| &id[..]).collect();
        let n_copies = native.n_slots / rows.len();
        let embedding = backend.weighted_embedding(&weights.embedding, &rows, n_copies)?;
        Ok(Self { embedding, deltas: Vec::new(), n_slots: native.n_slots, native: Some(native) })
    }
}

/// A model of the family on a device.
pub(crate) struct Llama<B: Backend> {
    pub(crate) backend: B,
    pub(crate) architecture: Architecture,
    pub(crate) weights: Weights<B>,
    pub(crate) rope: B::Rope,
    trained: Option<TrainedSlots<B>>,
    /// Slots without training, where there are no others.
    probe_slots: usize,
}

impl<B: Backend> Llama<B> {
    /// Brings the weights of `file` to the device, with tables for a context of `context_length` tokens.
    pub(crate) fn load(
        backend: B,
        file: &GgufFile,
        architecture: Architecture,
        adapter: Option<SatAdapter>,
        probe_slots: usize,
        context_length: usize,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        // First, so that its form on the host is gone when the weights come.
        let end = adapter.as_ref().and_then(|adapter| adapter.end);
        let of_adapter = adapter.map(|adapter| TrainedSlots::of_adapter(&backend, adapter)).transpose()?;
        let native = NativeSat::from_gguf(file, &architecture)?.filter(|_| of_adapter.is_none());
        let (weights, rope_divisors) = Weights::load(&backend, file, &architecture, end, progress)?;
        let tables = RopeTables::new(&architecture, &rope_divisors, context_length + MARGIN_ROWS);
        let rope = backend.rope(tables)?;
        let trained = match native {
            Some(native) => Some(TrainedSlots::of_checkpoint(&backend, &weights, native)?),
            None => of_adapter,
        };
        let probe_slots = if trained.is_some() { 0 } else { probe_slots.min(MAX_SLOTS) };
        Ok(Self { backend, architecture, weights, rope, trained, probe_slots })
    }

    pub(crate) fn n_slots(&self) -> usize {
        self.trained.as_ref().map_or(self.probe_slots, |trained| trained.n_slots)
    }

    pub(crate) fn has_trained_slots(&self) -> bool {
        self.trained.is_some()
    }

    /// What slots without training are embedded as behind a prompt: the mean of its tokens'
    /// embeddings, once for each slot, `[n_slots, hidden]`. Nothing for a model with trained ones.
    pub(crate) fn probe_embedding(&self, prompt: &[u32]) -> Result<Option<B::Vector>, ModelError> {
        if self.probe_slots == 0 || prompt.is_empty() {
            return Ok(None);
        }
        let mut weights = std::collections::BTreeMap::<u32, f32>::new();
        prompt.iter().for_each(|&token| *weights.entry(token).or_default() += 1.0 / prompt.len() as f32);
        let tokens: Vec<(u32, f32)> = weights.into_iter().collect();
        tokens.iter().try_for_each(|&(token, _)| self.check_input(RowInput::Token(token)))?;
        self.backend.weighted_embedding(&self.weights.embedding, &[&tokens], self.probe_slots).map(Some)
    }

    /// Runs a plan: writes its keys and values behind the committed rows of `cache`, and the logits that it asks
    /// for to `logits`. `probe` embeds slots without training.
    pub(crate) fn forward(
        &self,
        PassOrder { plan, layout, is_cancelled }: PassOrder<'_>,
        probe: Option<&B::Vector>,
        cache: &mut B::Cache,
        buffers: &mut Buffers<B>,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        plan.rows().iter().try_for_each(|row| self.check_input(row.input))?;
        let has_adaptive_rows = plan.rows().len() > plan.n_token_rows();
        let slots = self.trained.as_ref().map(|trained| &trained.embedding).or(probe);
        if has_adaptive_rows && slots.is_none() {
            return Err(ModelError::SlotOutsideAdapter { slot: 0, n_slots: 0 });
        }
        let Self { backend, architecture, weights, .. } = self;
        let shape = architecture.attention_shape();
        let Buffers {
            plan: on_device,
            hidden,
            normed,
            queries,
            keys,
            values,
            attended,
            activated,
            projected,
            vocabulary,
        } = buffers;
        let trained = self.trained.as_ref().filter(|_| has_adaptive_rows);
        let norm = |weight| Norm { weight, epsilon: architecture.stream_epsilon() };

        backend.set_plan(on_device, plan, layout)?;
        let is_aside = layout.aside.contains(&plan.n_committed());
        let pass = Pass { plan, on_device, is_aside };
        backend.embed(pass, &weights.embedding, slots, hidden)?;
        if architecture.embedding_multiplier() != 1.0 {
            backend.scale(hidden, architecture.embedding_multiplier())?;
        }
        let layers = weights.layers.as_slice();
        if let Some(first) = layers.first() {
            backend.normalise(pass, None, hidden, norm(&first.attention_norm), normed)?;
        }
        for (layer_idx, layer) in layers.iter().enumerate() {
            if is_cancelled() {
                return Err(ModelError::Cancelled);
            }
            let deltas = trained.and_then(|trained| trained.deltas.get(layer_idx));
            let with_delta =
                |linear, idx: usize| Projection { linear, delta: deltas.map(|deltas| &deltas[idx]) };
            let of_attention = [with_delta(&layer.q, 0), with_delta(&layer.k, 1), with_delta(&layer.v, 2)];
            backend.project(pass, of_attention, normed, [&mut *queries, &mut *keys, &mut *values])?;
            if let Some([of_queries, of_keys]) = &layer.head_norms {
                let norm = |weight| Norm { weight, epsilon: architecture.norm_epsilon };
                backend.normalise_heads(pass, architecture.n_heads, queries, norm(of_queries))?;
                backend.normalise_heads(pass, architecture.n_kv_heads, keys, norm(of_keys))?;
            }
            backend.rotate_and_store(pass, &self.rope, queries, keys, values, cache, layer_idx)?;
            backend.attend(pass, cache, layer_idx, shape, queries, attended)?;
            let o = with_delta(&layer.o, 3);
            let feed_forward_norm = norm(&layer.feed_forward_norm);
            backend.project_residual(pass, o, attended, projected, hidden, feed_forward_norm, normed)?;
            let [gate, up] = [with_delta(&layer.gate, 4), with_delta(&layer.up, 5)];
            backend.project_swiglu(pass, gate, up, normed, activated)?;
            let down = with_delta(&layer.down, 6);
            match layers.get(layer_idx + 1) {
                Some(next) => {
                    let norm = norm(&next.attention_norm);
                    backend.project_residual(pass, down, activated, projected, hidden, norm, normed)?;
                }
                // Of the last, only the rows that are wanted go on.
                None => backend.project(pass, [down], activated, [&mut *projected])?,
            }
        }
        logits.vocabulary = architecture.vocabulary;
        if plan.logit_rows().is_empty() {
            logits.ranked.clear();
            logits.is_full.clear();
            logits.full.clear();
            return Ok(());
        }
        backend.normalise_wanted(pass, projected, hidden, norm(&weights.output_norm), vocabulary)?;
        let end = weights.end.as_ref();
        let head = match &weights.output {
            Some(output) => VocabularyHead { matrix: &output.matrix, bias: output.bias.as_ref(), end },
            None => VocabularyHead { matrix: &weights.embedding, bias: None, end },
        };
        backend.project_vocabulary(pass, head, vocabulary, logits)?;
        if let Some(native) = self.trained.as_ref().and_then(|trained| trained.native) {
            native.tokens().for_each(|token| logits.exclude(token));
        }
        Ok(())
    }

    fn check_input(&self, input: RowInput) -> Result<(), ModelError> {
        let vocabulary = self.architecture.vocabulary;
        let n_slots = self.n_slots();
        match input {
            RowInput::Token(token) if token as usize >= vocabulary => {
                Err(ModelError::TokenOutsideVocabulary { token, vocabulary })
            }
            RowInput::Adaptive(slot) if slot >= n_slots => {
                Err(ModelError::SlotOutsideAdapter { slot, n_slots })
            }
            _ => Ok(()),
        }
    }
}
