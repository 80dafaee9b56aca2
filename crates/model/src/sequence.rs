//! A model with a cache: what `speculate` decodes on.

use std::sync::Arc;

use speculate::{Layout, Logits, MarkovHead, RowPlan, Target};

use crate::forward::{MARGIN_ROWS, PassOrder};
use crate::network::NetworkContext;
use crate::{Model, ModelError};

/// One sequence of tokens on a model, with keys and values of those committed.
pub struct Sequence {
    model: Arc<Model>,
    context: Box<dyn NetworkContext>,
    logits: Logits,
    n_committed: usize,
    layout: Layout,
}

impl Sequence {
    pub(crate) fn new(model: Arc<Model>) -> Result<Self, ModelError> {
        let capacity = model.context_length() + MARGIN_ROWS;
        let context = model.network().clone().context(capacity, model.cache_type())?;
        Ok(Self { model, context, logits: Logits::default(), n_committed: 0, layout: Layout::default() })
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
        self.context.probe_with(prompt)
    }

    /// Forgets all committed rows but the first `len`. When those go that follow tokens aside, the layout
    /// stays; when such a token goes, it goes too.
    pub fn truncate(&mut self, len: usize) {
        self.n_committed = self.n_committed.min(len);
        if self.n_committed < self.layout.aside.end {
            self.n_committed = self.n_committed.min(self.layout.aside.start);
            self.layout = Layout::default();
        }
    }

    /// Where tokens stand from now on. Committed tokens aside stay, and take their new positions.
    ///
    /// # Errors
    /// [`ModelError::LayoutOutOfStep`] when committed rows contradict it, and [`ModelError::ContextFull`].
    pub fn set_layout(&mut self, layout: Layout) -> Result<(), ModelError> {
        let Layout { aside, n_line, n_inner } = &layout;
        debug_assert!(n_inner <= n_line || aside.is_empty(), "the line has its own mark");
        let capacity = self.model.context_length() + MARGIN_ROWS;
        if aside.end + n_line > capacity {
            return Err(ModelError::ContextFull { capacity, needed: aside.end + n_line });
        }
        if layout == self.layout {
            return Ok(());
        }
        let n_committed = self.n_committed;
        if aside.is_empty() && self.layout.aside.is_empty() {
            // Nothing is aside, so nothing changes.
        } else if *aside == self.layout.aside && n_committed >= aside.end {
            // Rows of the line see no token aside; rows behind it stand at positions that have changed.
            if n_committed > aside.end + self.layout.n_line.min(*n_line) {
                return Err(ModelError::LayoutOutOfStep { committed: n_committed });
            }
            self.context.turn(layout.position(aside.start))?;
        } else if self.layout.aside.is_empty() && n_committed <= aside.start {
            self.context.set_aside(aside.clone())?;
        } else {
            return Err(ModelError::LayoutOutOfStep { committed: n_committed });
        }
        self.layout = layout;
        Ok(())
    }

    /// Takes over the first `len` rows of `other`, a sequence on the same model, which must not reach into
    /// its tokens aside.
    ///
    /// # Errors
    /// [`ModelError::OtherModel`], and what the device says.
    pub fn copy_prefix(&mut self, other: &Self, len: usize) -> Result<(), ModelError> {
        let len = len.min(other.n_committed);
        let len = if other.layout.aside.is_empty() { len } else { len.min(other.layout.aside.start) };
        self.truncate(0);
        self.context.copy_prefix(other.context.as_ref(), len)?;
        self.n_committed = len;
        Ok(())
    }

    /// Commits `tokens` without asking for logits. Tokens aside come in calls of their own.
    ///
    /// # Errors
    /// See [`Target::forward`].
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<(), ModelError> {
        let aside = self.layout.aside.clone();
        if aside.contains(&self.n_committed) {
            let plan = RowPlan::laid_out(self.n_committed, tokens, &self.layout.without_line());
            self.forward(&plan)?;
            self.n_committed += tokens.len();
            if self.n_committed == aside.end {
                self.context.turn(self.layout.position(aside.start))?;
            }
            return Ok(());
        }
        let plan = self.lay_out(tokens);
        self.forward(&plan)?;
        self.n_committed += tokens.len();
        Ok(())
    }

    /// The sequence for passes that are given up, with [`ModelError::Cancelled`], once `is_cancelled` says so:
    /// it is asked before every layer. What was committed stays.
    pub fn unless<'a>(&'a mut self, is_cancelled: &'a dyn Fn() -> bool) -> CancellableSequence<'a> {
        CancellableSequence { sequence: self, is_cancelled }
    }

    fn run(&mut self, plan: &RowPlan, is_cancelled: &dyn Fn() -> bool) -> Result<&Logits, ModelError> {
        if plan.n_committed() != self.n_committed {
            let (planned, committed) = (plan.n_committed(), self.n_committed);
            return Err(ModelError::PlanOutOfStep { planned, committed });
        }
        let capacity = self.model.context_length() + MARGIN_ROWS;
        let needed = self.n_committed + plan.rows().len();
        if needed > capacity {
            return Err(ModelError::ContextFull { capacity, needed });
        }
        let aside = &self.layout.aside;
        let crosses = |at: usize| self.n_committed < at && at < needed;
        if !aside.is_empty() && (crosses(aside.start) || crosses(aside.end)) {
            return Err(ModelError::LayoutOutOfStep { committed: self.n_committed });
        }
        let order = PassOrder { plan, layout: &self.layout, is_cancelled };
        self.context.forward(order, &mut self.logits)?;
        Ok(&self.logits)
    }
}

/// A sequence whose passes can be given up; see [`Sequence::unless`].
pub struct CancellableSequence<'a> {
    sequence: &'a mut Sequence,
    is_cancelled: &'a dyn Fn() -> bool,
}

impl Target for CancellableSequence<'_> {
    type Error = ModelError;

    fn n_committed(&self) -> usize {
        self.sequence.n_committed()
    }

    fn n_adaptive_tokens(&self) -> usize {
        self.sequence.n_adaptive_tokens()
    }

    fn markov_head(&self) -> Option<Arc<MarkovHead>> {
        self.sequence.markov_head()
    }

    fn lay_out(&self, tokens: &[u32]) -> RowPlan {
        self.sequence.lay_out(tokens)
    }

    fn forward(&mut self, plan: &RowPlan) -> Result<&Logits, ModelError> {
        self.sequence.run(plan, self.is_cancelled)
    }

    fn commit(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        self.sequence.commit(rows)
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

    fn markov_head(&self) -> Option<Arc<MarkovHead>> {
        self.model.markov_head().cloned()
    }

    fn lay_out(&self, tokens: &[u32]) -> RowPlan {
        RowPlan::laid_out(self.n_committed, tokens, &self.layout)
    }

    fn forward(&mut self, plan: &RowPlan) -> Result<&Logits, ModelError> {
        self.run(plan, &|| false)
    }

    fn commit(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        self.context.compact(self.n_committed, rows)?;
        self.n_committed += rows.len();
        Ok(())
    }
}
