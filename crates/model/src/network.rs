//! A model on a device, whichever that is: behind these two traits nobody knows backends.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use kernels::CacheType;
use speculate::Logits;

use crate::ModelError;
use crate::architecture::Architecture;
use crate::backend::{Backend, Buffers};
use crate::forward::{Llama, PassOrder};

/// The weights of a model on its device.
pub(crate) trait Network: Send + Sync {
    fn architecture(&self) -> &Architecture;
    /// Semantic adaptive tokens in a group, trained or not.
    fn n_slots(&self) -> usize;
    /// Whether these were trained.
    fn has_trained_slots(&self) -> bool;
    /// Bytes of weights that a pass reads.
    fn pass_bytes(&self) -> usize;
    /// See [`Backend`] for these four.
    fn describe(&self) -> String;
    fn fingerprint(&self) -> String;
    fn n_threads(&self) -> usize;
    fn roofline(&self) -> Result<(f64, f64), ModelError>;
    /// A cache for `capacity` rows, and buffers.
    fn context(
        self: Arc<Self>,
        capacity: usize,
        cache_type: CacheType,
    ) -> Result<Box<dyn NetworkContext>, ModelError>;
}

/// What one sequence has on the device: keys and values, and buffers.
pub(crate) trait NetworkContext: Send {
    /// Runs a plan: writes its keys and values behind the committed rows of the cache, and the logits that it
    /// asks for to `logits`.
    fn forward(&mut self, order: PassOrder<'_>, logits: &mut Logits) -> Result<(), ModelError>;
    /// Embeds slots without training by the tokens of a prompt.
    fn probe_with(&mut self, prompt: &[u32]) -> Result<(), ModelError>;
    /// Says which slots of the cache hold tokens aside.
    fn set_aside(&mut self, slots: Range<usize>) -> Result<(), ModelError>;
    /// Turns the keys of the tokens aside to the positions from `first` on.
    fn turn(&mut self, first: usize) -> Result<(), ModelError>;
    /// Takes over the first `n` rows of `other`, which is one of the same network.
    fn copy_prefix(&mut self, other: &dyn NetworkContext, n: usize) -> Result<(), ModelError>;
    /// Keeps the first `n_base` rows, and of those behind them the rows `n_base + kept`, in order.
    fn compact(&mut self, n_base: usize, kept: &[usize]) -> Result<(), ModelError>;
    fn as_any(&self) -> &dyn Any;
}

impl<B: Backend> Network for Llama<B> {
    fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    fn n_slots(&self) -> usize {
        Self::n_slots(self)
    }

    fn has_trained_slots(&self) -> bool {
        Self::has_trained_slots(self)
    }

    fn pass_bytes(&self) -> usize {
        self.weights.pass_bytes(&self.backend)
    }

    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn fingerprint(&self) -> String {
        self.backend.fingerprint()
    }

    fn n_threads(&self) -> usize {
        self.backend.n_threads()
    }

    fn roofline(&self) -> Result<(f64, f64), ModelError> {
        self.backend.roofline()
    }

    fn context(
        self: Arc<Self>,
        capacity: usize,
        cache_type: CacheType,
    ) -> Result<Box<dyn NetworkContext>, ModelError> {
        let (n_layers, shape) = (self.architecture.n_layers, self.architecture.attention_shape());
        let cache = self.backend.cache(n_layers, capacity, shape, cache_type)?;
        let buffers = self.backend.buffers(&self.architecture)?;
        Ok(Box::new(LlamaContext { llama: self, cache, buffers, probe: None }))
    }
}

struct LlamaContext<B: Backend> {
    llama: Arc<Llama<B>>,
    cache: B::Cache,
    buffers: Buffers<B>,
    /// Embeddings of slots without training.
    probe: Option<B::Vector>,
}

impl<B: Backend> NetworkContext for LlamaContext<B> {
    fn forward(&mut self, order: PassOrder<'_>, logits: &mut Logits) -> Result<(), ModelError> {
        let Self { llama, cache, buffers, probe } = self;
        llama.forward(order, probe.as_ref(), cache, buffers, logits)
    }

    fn probe_with(&mut self, prompt: &[u32]) -> Result<(), ModelError> {
        self.probe = self.llama.probe_embedding(prompt)?;
        Ok(())
    }

    fn set_aside(&mut self, slots: Range<usize>) -> Result<(), ModelError> {
        self.llama.backend.set_aside(&mut self.cache, slots)
    }

    fn turn(&mut self, first: usize) -> Result<(), ModelError> {
        self.llama.backend.turn(&mut self.cache, &self.llama.rope, first)
    }

    fn copy_prefix(&mut self, other: &dyn NetworkContext, n: usize) -> Result<(), ModelError> {
        let other = other.as_any().downcast_ref::<Self>().ok_or(ModelError::OtherModel)?;
        self.llama.backend.copy_prefix(&other.cache, n, &mut self.cache)
    }

    fn compact(&mut self, n_base: usize, kept: &[usize]) -> Result<(), ModelError> {
        self.llama.backend.compact(&mut self.cache, n_base, kept)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
