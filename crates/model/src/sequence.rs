//! A model with a cache: what `speculate` decodes on.

use std::sync::Arc;

use speculate::{Logits, RowPlan, Target};

use crate::backend::{Backend, Cpu};
use crate::forward::{Buffers, MARGIN_ROWS};
use crate::{Model, ModelError};

/// One sequence of tokens on a model, with keys and values of those committed.
pub struct Sequence {
    model: Arc<Model>,
    cache: <Cpu as Backend>::Cache,
    buffers: Buffers<Cpu>,
    logits: Logits,
    n_committed: usize,
    /// Embeddings of the slots of a model without adapter.
    probe: Vec<f32>,
}

impl Sequence {
    pub(crate) fn new(model: Arc<Model>) -> Self {
        let architecture = model.architecture();
        let capacity = model.context_length() + MARGIN_ROWS;
        let backend = &model.llama().backend;
        let cache = backend.cache(architecture.n_layers, capacity, architecture.attention_shape());
        Self {
            model,
            cache,
            buffers: Buffers::default(),
            logits: Logits::default(),
            n_committed: 0,
            probe: Vec::new(),
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tells a model without adapter what its adaptive tokens are about: they are embedded as the mean of
    /// the prompt's tokens. Models with an adapter do not need it.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn probe_with(&mut self, prompt: &[u32]) -> Result<(), ModelError> {
        self.probe = self.model.llama().probe_embedding(prompt)?;
        Ok(())
    }

    /// Forgets all committed rows but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.n_committed = self.n_committed.min(len);
    }

    /// Commits `tokens` without asking for logits.
    ///
    /// # Errors
    /// See [`Target::forward`].
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<(), ModelError> {
        let plan = RowPlan::prefill(self.n_committed, tokens);
        self.forward(&plan)?;
        self.n_committed += tokens.len();
        Ok(())
    }
}

impl Target for Sequence {
    type Error = ModelError;

    fn n_committed(&self) -> usize {
        self.n_committed
    }

    fn n_adaptive_tokens(&self) -> usize {
        self.model.n_adaptive_tokens()
    }

    fn forward(&mut self, plan: &RowPlan) -> Result<&Logits, ModelError> {
        if plan.n_committed() != self.n_committed {
            let (planned, committed) = (plan.n_committed(), self.n_committed);
            return Err(ModelError::PlanOutOfStep { planned, committed });
        }
        let capacity = self.model.context_length() + MARGIN_ROWS;
        let needed = self.n_committed + plan.rows().len();
        if needed > capacity {
            return Err(ModelError::ContextFull { capacity, needed });
        }
        self.model.llama().forward(
            plan,
            &self.probe,
            &mut self.cache,
            &mut self.buffers,
            &mut self.logits,
        )?;
        Ok(&self.logits)
    }

    fn commit(&mut self, rows: &[usize]) {
        self.model.llama().backend.compact(&mut self.cache, self.n_committed, rows);
        self.n_committed += rows.len();
    }
}
