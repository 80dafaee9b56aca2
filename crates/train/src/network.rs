//! The forward pass of a frozen model, token rows without gradient and rows of adaptive tokens with it, and of one that learns.

use candle_core::{D, Result, Tensor};

use crate::adapter::TrainedAdapter;
use crate::attention::{KeysAndValues, attend};
use crate::base::{Base, Layer, Learns, Linear};
use crate::batch::Batch;
use crate::delta::delta_product;
use crate::frozen::frozen_product;
use crate::norm::{frozen_norm, norm};
use crate::rotation::Rotation;
use crate::softmax::{Visible, visible_softmax};
use crate::swiglu::swiglu;

/// What rows of adaptive tokens see of a text, and what the model makes of it.
pub(crate) struct TokenPass {
    /// Keys, rotated, and values, by layer.
    layers: Vec<KeysAndValues>,
    /// After the last norm: `[n_tokens, hidden]`.
    pub(crate) hidden: Tensor,
}

/// What rows of adaptive tokens behind a text are to every layer.
pub(crate) struct DraftRows<'a> {
    /// Whose deltas they have.
    adapter: Option<&'a TrainedAdapter>,
    text: &'a TokenPass,
    /// Of slots: `[n_slots, hidden]`.
    embedding: Tensor,
    rotation: Rotation,
    visible: Visible,
    /// Slot of each.
    slots: Tensor,
}

/// `x * factor`, where that is not `x`.
fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    if factor == 1.0 { Ok(x) } else { x * f64::from(factor) }
}

impl Base {
    /// Logits of the tokens that are drafted: `[n_rows, n_outputs]` from `[n_rows, hidden]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.product(hidden, &self.head)
    }

    /// What is known of tokens before any context, of the first of the vocabulary without `tokens`: embeddings, each with a mean
    /// square of 1, `[n_tokens, hidden]`.
    pub(crate) fn token_features(&self, tokens: Option<&[u32]>) -> Result<Tensor> {
        let embedding = match tokens {
            Some(tokens) => self.embedding.index_select(&Tensor::new(tokens, &self.device)?, 0)?,
            None => self.embedding.narrow(0, 0, self.n_first())?,
        };
        // Of zeros, as padding may be, nothing is known.
        let mean = embedding.sqr()?.mean_keepdim(D::Minus1)?;
        embedding.broadcast_div(&(mean + 1e-9)?.sqrt()?)
    }

    /// Logits that the model has at `positions` of a text.
    pub(crate) fn logits_at(&self, pass: &TokenPass, positions: &[u32]) -> Result<Tensor> {
        let positions = Tensor::new(positions, &self.device)?;
        frozen_product(&pass.hidden.index_select(&positions, 0)?, &self.head)
    }

    /// How heads turn at `positions [n_rows]`.
    fn rotation(&self, positions: &Tensor) -> Result<Rotation> {
        Rotation::new(self.architecture.rope_layout, [&self.cos, &self.sin], positions)
    }

    fn normalise(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let epsilon = self.architecture.norm_epsilon;
        match self.learns {
            Learns::Nothing => frozen_norm(x, weight, epsilon),
            Learns::Everything => norm(x, weight, epsilon),
        }
    }

    /// After the last layer, `[n_rows, hidden]`.
    pub(crate) fn normalise_output(&self, x: &Tensor) -> Result<Tensor> {
        self.normalise(x, &self.output_norm)
    }

    /// `[n_rows, n * head_dim]` as heads of their own, normalised where the family does.
    fn heads(&self, x: &Tensor, n: usize, norm: Option<&Tensor>) -> Result<Tensor> {
        let x = x.reshape((x.dims()[0], n, self.architecture.head_dim))?;
        norm.map_or(Ok(x.clone()), |weight| self.normalise(&x, weight))
    }

    /// Queries, by the keys that they share, and keys and values of rows. `linear` multiplies with the linear layer of an index.
    fn queries_and_keys(
        &self,
        layer: &Layer,
        normed: &Tensor,
        rotation: &Rotation,
        linear: impl Fn(usize, &Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, KeysAndValues)> {
        let a = &self.architecture;
        let norms = layer.head_norms.as_ref();
        let queries = self.heads(&linear(0, normed)?, a.n_heads, norms.map(|norms| &norms[0]))?;
        let keys = self.heads(&linear(1, normed)?, a.n_kv_heads, norms.map(|norms| &norms[1]))?;
        let values = self.heads(&linear(2, normed)?, a.n_kv_heads, None)?;
        let queries = self.grouped(&rotation.turn(&queries)?)?;
        let keys = rotation.turn(&keys)?.transpose(0, 1)?.contiguous()?;
        Ok((queries, KeysAndValues { keys, values: values.transpose(0, 1)?.contiguous()? }))
    }

    /// What comes behind attention: its output and the feed-forward network, each added to `x`.
    fn behind_attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        attended: &Tensor,
        linear: impl Fn(usize, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let residual = self.architecture.multipliers.residual;
        let attended = self.ungrouped(attended, x.dims()[0])?;
        let x = (x + scaled(linear(3, &attended)?, residual)?)?;
        let normed = self.normalise(&x, &layer.feed_forward_norm)?;
        let activated = swiglu(&linear(4, &normed)?, &linear(5, &normed)?)?;
        x + scaled(linear(6, &activated)?, residual)?
    }

    /// Queries by the keys that they share: `[n_kv_heads, n_rows * group, head_dim]` from `[n_rows, n_heads, head_dim]`.
    fn grouped(&self, queries: &Tensor) -> Result<Tensor> {
        let a = &self.architecture;
        let (n_rows, group) = (queries.dims()[0], a.n_heads / a.n_kv_heads);
        let queries = queries.reshape((n_rows, a.n_kv_heads, group, a.head_dim))?;
        queries.permute((1, 2, 0, 3))?.contiguous()?.reshape((a.n_kv_heads, group * n_rows, a.head_dim))
    }

    fn ungrouped(&self, attended: &Tensor, n_rows: usize) -> Result<Tensor> {
        let a = &self.architecture;
        let group = a.n_heads / a.n_kv_heads;
        let attended = attended.reshape((a.n_kv_heads, group, n_rows, a.head_dim))?;
        attended.permute((2, 0, 1, 3))?.contiguous()?.reshape((n_rows, a.n_heads * a.head_dim))
    }

    fn score_scale(&self) -> f64 {
        let own = self.architecture.multipliers.attention.map(f64::from);
        own.unwrap_or(1.0 / (self.architecture.head_dim as f64).sqrt())
    }

    /// Runs the token rows of a text, each behind those before it.
    pub(crate) fn read(&self, tokens: &[u32]) -> Result<TokenPass> {
        let n = tokens.len();
        let ids = Tensor::new(tokens, &self.device)?;
        let positions = Tensor::arange(0u32, n as u32, &self.device)?;
        let visible = Visible::new((0..n).map(|row| [0..row + 1, 0..0]).collect(), n, &self.device)?;
        self.run(&self.embedding.index_select(&ids, 0)?, &positions, &visible)
    }

    /// Runs the tokens of a text and, in the same pass, the rows of `batch` behind them, embedded as `slot [1, hidden]` each:
    /// what a model does whose own weights learn. The rows of the pass are the tokens', then those.
    pub(crate) fn read_with_slots(&self, tokens: &[u32], slot: &Tensor, batch: &Batch) -> Result<TokenPass> {
        let (n, n_rows) = (tokens.len(), batch.len());
        let ids = Tensor::new(tokens, &self.device)?;
        let slots = slot.broadcast_as((n_rows, self.architecture.hidden))?;
        let embedded = Tensor::cat(&[self.embedding.index_select(&ids, 0)?, slots.contiguous()?], 0)?;
        let positions: Vec<u32> = (0..n as u32).chain(batch.positions.iter().copied()).collect();
        let positions = Tensor::new(positions, &self.device)?;
        let mut visible: Vec<_> = (0..n).map(|row| [0..row + 1, 0..0]).collect();
        visible.extend(batch.visible(n));
        self.run(&embedded, &positions, &Visible::new(visible, n + n_rows, &self.device)?)
    }

    fn linear(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let y = self.product(x, &linear.weight)?;
        linear.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
    }

    /// Runs rows that are embedded, `[n_rows, hidden]`, and see each other as `visible` says.
    fn run(&self, embedded: &Tensor, positions: &Tensor, visible: &Visible) -> Result<TokenPass> {
        let rotation = self.rotation(positions)?;
        let mut x = scaled(embedded.clone(), self.architecture.multipliers.embedding)?;
        let mut layers = Vec::new();
        for layer in &self.layers {
            let linear = |idx: usize, x: &Tensor| self.linear(&layer.linears[idx], x);
            let normed = self.normalise(&x, &layer.attention_norm)?;
            let (queries, rows) = self.queries_and_keys(layer, &normed, &rotation, linear)?;
            let attended = match self.learns {
                Learns::Nothing => {
                    let scores = queries.matmul(&rows.keys.t()?)?;
                    visible_softmax(&scores, visible, self.score_scale())?.matmul(&rows.values)?
                }
                Learns::Everything => attend(&queries, &rows, None, visible, self.score_scale())?,
            };
            x = self.behind_attention(layer, &x, &attended, linear)?;
            layers.push(rows);
        }
        Ok(TokenPass { layers, hidden: self.normalise_output(&x)? })
    }

    /// The rows of `batch` behind `text`.
    pub(crate) fn draft_rows<'a>(
        &self,
        adapter: &'a TrainedAdapter,
        text: &'a TokenPass,
        batch: &Batch,
    ) -> Result<DraftRows<'a>> {
        Ok(DraftRows { adapter: Some(adapter), ..self.bare_rows(adapter.slot_embedding(), text, batch)? })
    }

    /// The same without deltas, `embedding [n_slots, hidden]` being all that slots are.
    pub(crate) fn bare_rows<'a>(
        &self,
        embedding: Tensor,
        text: &'a TokenPass,
        batch: &Batch,
    ) -> Result<DraftRows<'a>> {
        let n_tokens = text.hidden.dims()[0];
        Ok(DraftRows {
            adapter: None,
            text,
            embedding,
            rotation: self.rotation(&Tensor::new(&batch.positions[..], &self.device)?)?,
            visible: Visible::new(batch.visible(n_tokens), n_tokens + batch.len(), &self.device)?,
            slots: Tensor::new(&batch.slots[..], &self.device)?,
        })
    }

    /// Before the first layer: `[n_rows, hidden]`.
    pub(crate) fn embed(&self, rows: &DraftRows<'_>) -> Result<Tensor> {
        let embedded = rows.embedding.index_select(&rows.slots, 0)?;
        scaled(embedded, self.architecture.multipliers.embedding)
    }

    /// Behind the layer of index `idx`, from `x` before it: `[n_rows, hidden]` each.
    pub(crate) fn draft_layer(&self, rows: &DraftRows<'_>, idx: usize, x: &Tensor) -> Result<Tensor> {
        let layer = &self.layers[idx];
        let deltas = rows.adapter.and_then(|adapter| adapter.deltas_of(idx));
        let linear = |idx: usize, x: &Tensor| match &deltas {
            Some(deltas) => delta_product(x, &layer.linears[idx], &deltas[idx]),
            None => self.linear(&layer.linears[idx], x),
        };
        let normed = self.normalise(x, &layer.attention_norm)?;
        let (queries, own) = self.queries_and_keys(layer, &normed, &rows.rotation, linear)?;
        let text = Some(&rows.text.layers[idx]);
        let attended = attend(&queries, &own, text, &rows.visible, self.score_scale())?;
        self.behind_attention(layer, x, &attended, linear)
    }

    /// Runs rows through all layers: `[n_rows, hidden]` after the last norm.
    pub(crate) fn draft(&self, rows: &DraftRows<'_>) -> Result<Tensor> {
        let x =
            (0..self.layers.len()).try_fold(self.embed(rows)?, |x, idx| self.draft_layer(rows, idx, &x))?;
        self.normalise_output(&x)
    }

    /// The same without a graph and before the last norm. `on_input` is given what comes before each layer.
    pub(crate) fn draft_detached(
        &self,
        rows: &DraftRows<'_>,
        mut on_input: impl FnMut(Tensor),
    ) -> Result<Tensor> {
        let mut x = self.embed(rows)?.detach();
        for idx in 0..self.layers.len() {
            let output = self.draft_layer(rows, idx, &x)?.detach();
            on_input(std::mem::replace(&mut x, output));
        }
        Ok(x)
    }

    /// What the rows of `batch` say behind `text`, without a graph and without a Markov head: `[n_rows, n_outputs]`.
    pub(crate) fn slot_logits(
        &self,
        adapter: &TrainedAdapter,
        text: &TokenPass,
        batch: &Batch,
    ) -> Result<Tensor> {
        let output = self.draft_detached(&self.draft_rows(adapter, text, batch)?, |_| ())?;
        self.logits(&self.normalise_output(&output)?)
    }
}
