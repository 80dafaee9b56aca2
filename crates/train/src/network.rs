//! The forward pass of a frozen model, token rows without gradient and rows of adaptive tokens with it, and of one that learns.

use candle_core::{D, Result, Tensor};
use model::RopeLayout;

use crate::adapter::TrainedAdapter;
use crate::attention::{KeysAndValues, attend};
use crate::base::{Base, Learns, Linear};
use crate::batch::Batch;
use crate::frozen::frozen_product;
use crate::softmax::{Visible, visible_softmax};
use crate::swiglu::swiglu;

/// What rows of adaptive tokens see of a text, and what the model makes of it.
pub(crate) struct TokenPass {
    /// Keys, rotated, and values, by layer.
    layers: Vec<KeysAndValues>,
    /// After the last norm: `[n_tokens, hidden]`.
    pub(crate) hidden: Tensor,
}

fn normalise(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(weight)
}

impl Base {
    /// Logits of the first [`Self::n_outputs`] tokens: `[n_rows, n_outputs]` from `[n_rows, hidden]`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.product(hidden, &self.head)
    }

    /// What is known of tokens before any context, of all that are drafted without `tokens`: embeddings, each with a mean
    /// square of 1, `[n_tokens, hidden]`.
    pub(crate) fn token_features(&self, tokens: Option<&[u32]>) -> Result<Tensor> {
        let embedding = match tokens {
            Some(tokens) => self.embedding.index_select(&Tensor::new(tokens, &self.device)?, 0)?,
            None => self.embedding.narrow(0, 0, self.n_outputs())?,
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

    /// `x [n_rows, n_heads, head_dim]`, turned to `positions [n_rows]`.
    fn rotate(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let (n_rows, n_heads, head_dim) = x.dims3()?;
        let rope_dim = self.architecture.rope_dim;
        let half = rope_dim / 2;
        let turn = |table: &Tensor| table.index_select(positions, 0)?.reshape((n_rows, 1, half));
        let (cos, sin) = (turn(&self.cos)?, turn(&self.sin)?);
        let turning = x.narrow(D::Minus1, 0, rope_dim)?;
        let pairs = |a: &Tensor, b: &Tensor| -> Result<(Tensor, Tensor)> {
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
            Ok((first, second))
        };
        let turned = match self.architecture.rope_layout {
            RopeLayout::Half => {
                let (a, b) =
                    pairs(&turning.narrow(D::Minus1, 0, half)?, &turning.narrow(D::Minus1, half, half)?)?;
                Tensor::cat(&[a, b], D::Minus1)?
            }
            RopeLayout::Interleaved => {
                let both = turning.reshape((n_rows, n_heads, half, 2))?;
                let part = |i| both.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
                let (a, b) = pairs(&part(0)?, &part(1)?)?;
                Tensor::stack(&[a, b], D::Minus1)?.reshape((n_rows, n_heads, rope_dim))?
            }
        };
        match rope_dim == head_dim {
            true => Ok(turned),
            false => {
                let rest = x.narrow(D::Minus1, rope_dim, head_dim - rope_dim)?;
                Tensor::cat(&[turned, rest], D::Minus1)
            }
        }
    }

    /// `[n_rows, n * head_dim]` as heads of their own, normalised where the family does.
    fn heads(&self, x: &Tensor, n: usize, norm: Option<&Tensor>) -> Result<Tensor> {
        let x = x.reshape((x.dims()[0], n, self.architecture.head_dim))?;
        match norm {
            Some(weight) => normalise(&x, weight, self.architecture.norm_epsilon),
            None => Ok(x),
        }
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

    /// Runs rows that are embedded, `[n_rows, hidden]`, and see each other as `visible` says.
    fn run(&self, embedded: &Tensor, positions: &Tensor, visible: &Visible) -> Result<TokenPass> {
        let a = &self.architecture;
        let n = embedded.dims()[0];
        let linear = |linear: &Linear, x: &Tensor| -> Result<Tensor> {
            let y = self.product(x, &linear.weight)?;
            linear.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
        };
        let residual = f64::from(a.multipliers.residual);
        let mut x = (embedded * f64::from(a.multipliers.embedding))?;
        let mut layers = Vec::new();
        for layer in &self.layers {
            let [q, k, v, o, gate, up, down] = &layer.linears;
            let normed = normalise(&x, &layer.attention_norm, a.norm_epsilon)?;
            let norms = layer.head_norms.as_ref();
            let queries = self.heads(&linear(q, &normed)?, a.n_heads, norms.map(|norms| &norms[0]))?;
            let key = self.heads(&linear(k, &normed)?, a.n_kv_heads, norms.map(|norms| &norms[1]))?;
            let value = self.heads(&linear(v, &normed)?, a.n_kv_heads, None)?;
            let queries = self.grouped(&self.rotate(&queries, positions)?)?;
            let key = self.rotate(&key, positions)?.transpose(0, 1)?.contiguous()?;
            let value = value.transpose(0, 1)?.contiguous()?;
            let rows = KeysAndValues { keys: key, values: value };
            let attended = match self.learns {
                Learns::Nothing => {
                    let scores = queries.matmul(&rows.keys.t()?)?;
                    visible_softmax(&scores, visible, self.score_scale())?.matmul(&rows.values)?
                }
                Learns::Everything => attend(&queries, &rows, None, visible, self.score_scale())?,
            };
            let attended = self.ungrouped(&attended, n)?;
            x = (x + (linear(o, &attended)? * residual)?)?;
            let normed = normalise(&x, &layer.feed_forward_norm, a.norm_epsilon)?;
            let activated = swiglu(&linear(gate, &normed)?, &linear(up, &normed)?)?;
            x = (x + (linear(down, &activated)? * residual)?)?;
            layers.push(rows);
        }
        let hidden = normalise(&x, &self.output_norm, a.norm_epsilon)?;
        Ok(TokenPass { layers, hidden })
    }

    /// Runs the rows of adaptive tokens of `batch` behind a text: `[n_rows, hidden]` after the last norm.
    pub(crate) fn draft(&self, adapter: &TrainedAdapter, pass: &TokenPass, batch: &Batch) -> Result<Tensor> {
        let a = &self.architecture;
        let n_rows = batch.slots.len();
        let n_tokens = pass.hidden.dims()[0];
        let slots = Tensor::new(&batch.slots[..], &self.device)?;
        let positions = Tensor::new(&batch.positions[..], &self.device)?;
        let visible = Visible::new(batch.visible(n_tokens), n_tokens + n_rows, &self.device)?;
        let linear = |linear: &Linear, x: &Tensor, delta: &[Tensor; 2]| -> Result<Tensor> {
            let y = (frozen_product(x, &linear.weight)? + x.matmul(&delta[0])?.matmul(&delta[1])?)?;
            linear.bias.as_ref().map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
        };
        let residual = f64::from(a.multipliers.residual);
        let mut x = (adapter.slot_embedding().index_select(&slots, 0)? * f64::from(a.multipliers.embedding))?;
        for (idx, layer) in self.layers.iter().enumerate() {
            let [q, k, v, o, gate, up, down] = &layer.linears;
            let [dq, dk, dv, d_o, d_gate, d_up, d_down] = adapter.deltas_of(idx);
            let normed = normalise(&x, &layer.attention_norm, a.norm_epsilon)?;
            let norms = layer.head_norms.as_ref();
            let queries = self.heads(&linear(q, &normed, &dq)?, a.n_heads, norms.map(|norms| &norms[0]))?;
            let keys = self.heads(&linear(k, &normed, &dk)?, a.n_kv_heads, norms.map(|norms| &norms[1]))?;
            let values = self.heads(&linear(v, &normed, &dv)?, a.n_kv_heads, None)?;
            let queries = self.grouped(&self.rotate(&queries, &positions)?)?;
            let keys = self.rotate(&keys, &positions)?.transpose(0, 1)?.contiguous()?;
            let values = values.transpose(0, 1)?.contiguous()?;
            let rows = KeysAndValues { keys, values };
            let attended = attend(&queries, &rows, Some(&pass.layers[idx]), &visible, self.score_scale())?;
            let attended = self.ungrouped(&attended, n_rows)?;
            x = (x + (linear(o, &attended, &d_o)? * residual)?)?;
            let normed = normalise(&x, &layer.feed_forward_norm, a.norm_epsilon)?;
            let activated = swiglu(&linear(gate, &normed, &d_gate)?, &linear(up, &normed, &d_up)?)?;
            x = (x + (linear(down, &activated, &d_down)? * residual)?)?;
        }
        normalise(&x, &self.output_norm, a.norm_epsilon)
    }
}
