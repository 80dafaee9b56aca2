//! Logits of the rows that want them, ranked on the device, and what of them is read back.

use gpu::{Buffer, Device, LinearLayer, ProductExtent, Ranking, RowRange};
use speculate::{Logits, N_RANKED, RowPlan, Wanted, rank_beside};

use super::{Gpu, LinearInput};
use crate::ModelError;
use crate::architecture::Architecture;
use crate::backend::{DRAFT_VOCABULARY, Linear, VocabularyHead};

/// What the vocabulary projection works on.
pub(crate) struct WantedRows {
    pub(super) normed: LinearInput,
    logits: Buffer,
    ranking: Ranking,
    n_ranked_rows: usize,
    /// Logits of the end of a text.
    ends: Buffer,
}

impl WantedRows {
    /// Room for one row.
    pub(super) fn new(device: &Device, architecture: &Architecture) -> Result<Self, ModelError> {
        Ok(Self {
            normed: LinearInput { rows: device.empty(0)?, epsilon: None },
            logits: device.empty(0)?,
            ranking: device.ranking(1, architecture.vocabulary)?,
            n_ranked_rows: 1,
            ends: device.empty(0)?,
        })
    }

    /// The logits that `plan` wants, of the rows in `normed`.
    pub(super) fn project(
        &mut self,
        gpu: &Gpu,
        plan: &RowPlan,
        head: VocabularyHead<'_, Gpu>,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        let wanted = plan.wanted();
        let (n_rows, vocabulary) = (wanted.len(), head.matrix.n_out());
        gpu.reserve(&mut self.logits, n_rows * vocabulary)?;
        if self.n_ranked_rows < n_rows {
            self.n_ranked_rows = n_rows.next_power_of_two();
            self.ranking = gpu.device.ranking(self.n_ranked_rows, vocabulary)?;
        }
        let end = head.end.filter(|_| wanted.last() == Some(&Wanted::Drafts));
        gpu.reserve(&mut self.ends, if end.is_some() { n_rows } else { 0 })?;
        let WantedRows { normed, logits: all, ranking, ends, .. } = self;
        // Behind the last row that must be exact, in whatever order they were asked for.
        let first_draft =
            wanted.iter().rposition(|&wanted| wanted != Wanted::Drafts).map_or(0, |last| last + 1);
        let exact = RowRange { first: 0, n: first_draft };
        let drafts = RowRange { first: first_draft, n: n_rows - first_draft };
        for (rows, n) in [(exact, vocabulary), (drafts, vocabulary.min(DRAFT_VOCABULARY))] {
            let extent = ProductExtent { n_outputs: n, first_row: rows.first };
            let layer = LinearLayer { matrix: head.matrix, bias: head.bias, delta: None, out: all };
            gpu.device.product(layer, gpu.activations(normed), rows, extent);
            gpu.device.rank(all, vocabulary, n, rows, ranking);
        }
        if let Some(end) = end {
            let extent = ProductExtent { first_row: drafts.first, ..ProductExtent::default() };
            let Linear { matrix, bias } = &end.linear;
            let layer = LinearLayer { matrix, bias: bias.as_ref(), delta: None, out: ends };
            gpu.device.product(layer, gpu.activations(normed), drafts, extent);
        }
        let n_ranked = n_rows * N_RANKED;
        let has_full = wanted.contains(&Wanted::All);
        let mut parts = vec![(&ranking.logits, n_ranked), (&ranking.tokens, n_ranked)];
        parts.extend(end.map(|_| (&*ends, n_rows)));
        parts.extend(has_full.then_some((&*all, n_rows * vocabulary)));
        let read = gpu.device.read(&parts)?;
        let words = |part: usize| read[part].as_chunks::<4>().0;
        logits.ranked.clear();
        let entries = words(0).iter().zip(words(1));
        let entries: Vec<(u32, f32)> =
            entries.map(|(logit, token)| (u32::from_le_bytes(*token), f32::from_le_bytes(*logit))).collect();
        logits.ranked.extend(entries.as_chunks::<N_RANKED>().0);
        if let Some(end) = end {
            let drafts = logits.ranked.iter_mut().zip(words(2)).skip(drafts.first);
            drafts.for_each(|(ranked, word)| rank_beside(ranked, end.token, f32::from_le_bytes(*word)));
        }
        logits.is_full.clear();
        logits.is_full.extend(wanted.iter().map(|&wanted| wanted == Wanted::All));
        logits.full.clear();
        if has_full {
            let rows = words(2 + usize::from(end.is_some())).chunks_exact(vocabulary).zip(&logits.is_full);
            let full = rows.filter(|(_, is_full)| **is_full).flat_map(|(row, _)| row);
            logits.full.extend(full.map(|&word| f32::from_le_bytes(word)));
        }
        Ok(())
    }
}
