//! One step: a forward pass that verifies drafts, emits at least one token, and may draft ahead.

use crate::{DraftTree, Logits, Proposal, RowPlan, Sampler, SamplingError, sample_match};

/// The model whose distribution must be preserved, with its cache.
pub trait Target {
    /// What can go wrong in a forward pass.
    type Error: std::error::Error;

    /// Number of committed rows in the cache.
    fn n_committed(&self) -> usize;

    /// Number of semantic adaptive tokens in a group; 0 when the model has none.
    fn n_adaptive_tokens(&self) -> usize;

    /// Runs the rows of `plan` on top of the committed rows, which stay as they are.
    ///
    /// # Errors
    /// When the plan does not fit the model or the device fails.
    fn forward(&mut self, plan: &RowPlan) -> Result<&Logits, Self::Error>;

    /// Commits these rows of the last plan, in this order, and forgets its other rows.
    fn commit(&mut self, rows: &[usize]);
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepOutcome {
    /// Emitted tokens: the accepted drafts, then the target's own next token. The last one is
    /// not in the cache yet; it is the next step's pending token.
    pub tokens: Vec<u32>,
    /// Nodes of the draft tree that were accepted, in order.
    pub accepted_path: Vec<usize>,
    /// The drafts that were verified.
    pub drafts: DraftTree,
    /// What the adaptive group after the last accepted token drafts. Slot j stands j + 2 tokens
    /// after that token, hence the first drafts the token after the last of `tokens`.
    pub adaptive_drafts: Option<Vec<u32>>,
    /// Rows of the forward pass.
    pub n_rows: usize,
}

/// Why a step failed. The committed rows are unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StepError<E> {
    /// The forward pass failed.
    #[error(transparent)]
    Target(E),
    /// No token could be chosen.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

/// Runs one forward pass over `pending` (tokens that are decided but not in the cache yet, at
/// least one) and `proposal`, and commits what the target confirms.
///
/// # Errors
/// [`StepError`].
///
/// # Panics
/// When `pending` is empty.
pub fn step<T: Target>(
    target: &mut T,
    pending: &[u32],
    proposal: Proposal,
    sampler: &Sampler,
) -> Result<StepOutcome, StepError<T::Error>> {
    assert!(!pending.is_empty(), "a step needs a token to start from");
    let Proposal { drafts, adaptive_groups } = proposal;
    let n_slots = target.n_adaptive_tokens();

    let mut plan = RowPlan::prefill(target.n_committed(), pending);
    let root_row = pending.len() - 1;
    let row_of = |node: Option<usize>| node.map_or(root_row, |node| root_row + 1 + node);
    for node in drafts.nodes() {
        plan.push_token(node.token, Some(row_of(node.parent)));
    }
    for row in root_row..plan.n_token_rows() {
        match sampler.needs_all_logits() {
            true => plan.want_logits(row),
            false => plan.want_ranked(row),
        };
    }
    let mut groups = Vec::new();
    if n_slots > 0 {
        for &anchor in &adaptive_groups {
            let first_row = plan.push_adaptive_group(row_of(anchor), n_slots);
            let first_logits = plan.logit_rows().len();
            (first_row..first_row + n_slots).for_each(|row| {
                plan.want_ranked(row);
            });
            groups.push((anchor, first_logits));
        }
    }

    let n_rows = plan.rows().len();
    let logits = target.forward(&plan).map_err(StepError::Target)?;
    let logits_of = |node: Option<usize>| logits.row(row_of(node) - root_row);
    let verified =
        sample_match(&drafts, |node| sampler.draw(logits_of(node), plan.rows()[row_of(node)].position + 1))?;

    let stop = verified.path.last().copied();
    let group = groups.iter().find(|(anchor, _)| *anchor == stop);
    let adaptive_drafts = group.and_then(|&(_, first_logits)| {
        // A slot without a finite logit ends the drafts; verification never depends on them.
        let slots = (first_logits..first_logits + n_slots).map_while(|idx| logits.row(idx).argmax());
        let tokens: Vec<u32> = slots.collect();
        (!tokens.is_empty()).then_some(tokens)
    });

    let mut committed: Vec<usize> = (0..=root_row).collect();
    committed.extend(verified.path.iter().map(|&node| row_of(Some(node))));
    target.commit(&committed);

    let mut tokens: Vec<u32> = verified.path.iter().map(|&node| drafts.nodes()[node].token).collect();
    tokens.push(verified.next);
    Ok(StepOutcome { tokens, accepted_path: verified.path, drafts, adaptive_drafts, n_rows })
}
