//! One step: a forward pass that verifies drafts, emits at least one token, and may draft ahead.

use std::sync::Arc;

use crate::{
    Decision, DraftTree, Logits, MarkovHead, PENALTY_WINDOW, Proposal, Ranked, RowLogits, RowPlan, Sampler,
    SamplingError, Slots, rank, sample_match,
};

/// The model whose distribution must be preserved, with its cache.
pub trait Target {
    /// What can go wrong in a forward pass.
    type Error: std::error::Error;

    /// Number of committed rows in the cache.
    fn n_committed(&self) -> usize;

    /// Number of semantic adaptive tokens in a group; 0 when the model has none.
    fn n_adaptive_tokens(&self) -> usize;

    /// What says how drafts of adaptive tokens depend on each other, where something does.
    fn markov_head(&self) -> Option<Arc<MarkovHead>> {
        None
    }

    /// Runs the rows of `plan` on top of the committed rows, which stay as they are.
    ///
    /// # Errors
    /// When the plan does not fit the model or the device fails.
    fn forward(&mut self, plan: &RowPlan) -> Result<&Logits, Self::Error>;

    /// A plan for `tokens`, one after the other behind the committed rows.
    fn lay_out(&self, tokens: &[u32]) -> RowPlan {
        RowPlan::prefill(self.n_committed(), tokens)
    }

    /// Commits these rows of the last plan, in this order, and forgets its other rows.
    ///
    /// # Errors
    /// When the device fails.
    fn commit(&mut self, rows: &[usize]) -> Result<(), Self::Error>;
}

/// A row whose logits were looked at, with what the target says after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VerifiedRow {
    /// The token before the row's.
    pub before: Option<u32>,
    /// The row's token.
    pub token: u32,
    /// The likeliest tokens after it.
    pub ranked: Ranked,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutcome {
    /// Emitted tokens: the accepted drafts, then the target's own next token. The last one is
    /// not in the cache yet; it is the next step's pending token.
    pub tokens: Vec<u32>,
    /// Nodes of the draft tree that were accepted, in order.
    pub accepted_path: Vec<usize>,
    /// The drafts that were verified.
    pub drafts: DraftTree,
    /// What the nearest adaptive group on the way says, slot by slot, from the first that stands behind the last of
    /// `tokens` on. Slot j of a group stands j + 2 tokens after the token that the group comes after.
    pub slots: Option<Slots>,
    /// Slots of that group that the accepted tokens behind it have passed: 0 where it comes after the last of them.
    pub n_slots_passed: usize,
    /// The last pending token's row, then those of all drafts, accepted or not.
    pub rows: Vec<VerifiedRow>,
    /// Rows of the forward pass.
    pub n_rows: usize,
    /// How the proposal came about, from drafters that weigh costs.
    pub decision: Option<Decision>,
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

/// Runs one forward pass over the last `n_pending` tokens of `context` (decided but not in the cache
/// yet) and `proposal`, and commits what the target confirms.
///
/// # Errors
/// [`StepError`].
///
/// # Panics
/// When there are no pending tokens, or more than the context has.
pub fn step<T: Target>(
    target: &mut T,
    context: &[u32],
    n_pending: usize,
    proposal: Proposal,
    sampler: &Sampler,
) -> Result<StepOutcome, StepError<T::Error>> {
    assert!(n_pending > 0, "a step needs a token to start from");
    let pending = &context[context.len() - n_pending..];
    let Proposal { drafts, adaptive_groups, decision } = proposal;

    let mut plan = target.lay_out(pending);
    let root_row = n_pending - 1;
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
    for group in &adaptive_groups {
        let n_slots = group.n_slots.min(target.n_adaptive_tokens());
        if n_slots > 0 {
            let first_row = plan.push_adaptive_group(row_of(group.after), n_slots);
            let logits: Vec<usize> =
                (first_row..first_row + n_slots).map(|row| plan.want_drafts(row)).collect();
            groups.push((group.after, logits));
        }
    }

    let n_rows = plan.rows().len();
    let logits = target.forward(&plan).map_err(StepError::Target)?;
    let logits_of = |node: Option<usize>| logits.row(row_of(node) - root_row);
    let verified = sample_match(&drafts, |node| {
        let position = plan.rows()[row_of(node)].position + 1;
        if !sampler.has_penalty() {
            return sampler.draw(logits_of(node), position, &[]);
        }
        let mut recent = context[context.len().saturating_sub(PENALTY_WINDOW)..].to_vec();
        recent.extend(drafts.path_to(node));
        sampler.draw(logits_of(node), position, &recent)
    })?;

    // The nearest group on the way; what its first slots say has been decided where it is not after the stop itself.
    let mut way = verified.path.iter().rev().map(|&node| Some(node)).chain([None]).enumerate();
    let nearest = way.find_map(|(n_passed, node)| {
        let (_, logits_idx) = groups.iter().find(|(after, _)| *after == node)?;
        Some((n_passed, logits_idx.get(n_passed..).filter(|left| !left.is_empty())?))
    });
    let n_slots_passed = nearest.map_or(0, |(n_passed, _)| n_passed);
    let slots: Option<Vec<Ranked>> =
        nearest.map(|(_, logits_idx)| logits_idx.iter().map(|&idx| *logits.row(idx).ranked).collect());
    let before_root = context.len().checked_sub(2).map(|idx| context[idx]);
    let root = VerifiedRow { before: before_root, token: pending[root_row], ranked: *logits_of(None).ranked };
    let mut rows = vec![root];
    for (idx, node) in drafts.nodes().iter().enumerate() {
        let before = node.parent.map_or(pending[root_row], |parent| drafts.nodes()[parent].token);
        rows.push(VerifiedRow {
            before: Some(before),
            token: node.token,
            ranked: *logits_of(Some(idx)).ranked,
        });
    }

    let mut committed: Vec<usize> = (0..=root_row).collect();
    committed.extend(verified.path.iter().map(|&node| row_of(Some(node))));
    target.commit(&committed).map_err(StepError::Target)?;

    let mut tokens: Vec<u32> = verified.path.iter().map(|&node| drafts.nodes()[node].token).collect();
    tokens.push(verified.next);
    let slots = slots.map(|ranked| Slots::new(ranked, verified.next, target.markov_head()));
    Ok(StepOutcome {
        tokens,
        accepted_path: verified.path,
        drafts,
        slots,
        n_slots_passed,
        rows,
        n_rows,
        decision,
    })
}

/// Runs one forward pass over the last `n_pending` tokens of `context` and draws the token after them among
/// those of which `is_allowed` says so. No drafts: what is allowed changes with every token.
///
/// # Errors
/// [`StepError`]; [`SamplingError::NoFiniteLogit`] when nothing is allowed.
///
/// # Panics
/// When there are no pending tokens, or more than the context has.
pub fn step_among<T: Target>(
    target: &mut T,
    context: &[u32],
    n_pending: usize,
    sampler: &Sampler,
    is_allowed: impl Fn(u32) -> bool,
) -> Result<StepOutcome, StepError<T::Error>> {
    assert!(n_pending > 0, "a step needs a token to start from");
    let pending = &context[context.len() - n_pending..];
    let mut plan = target.lay_out(pending);
    let root_row = n_pending - 1;
    plan.want_logits(root_row);
    let position = plan.rows()[root_row].position + 1;
    let logits = target.forward(&plan).map_err(StepError::Target)?;
    let row = logits.row(0);
    let all = row.full.ok_or(SamplingError::LogitsNotAskedFor { position })?;
    let allow = |(token, &logit): (usize, &f32)| match is_allowed(token as u32) {
        true => logit,
        false => f32::NEG_INFINITY,
    };
    let allowed: Vec<f32> = all.iter().enumerate().map(allow).collect();
    let ranked = rank(&allowed);
    let token = sampler.draw(RowLogits { ranked: &ranked, full: Some(&allowed) }, position, context)?;
    target.commit(&(0..n_pending).collect::<Vec<_>>()).map_err(StepError::Target)?;
    let before = context.len().checked_sub(2).map(|idx| context[idx]);
    let rows = vec![VerifiedRow { before, token: pending[root_row], ranked }];
    Ok(StepOutcome { tokens: vec![token], rows, n_rows: n_pending, ..StepOutcome::default() })
}
