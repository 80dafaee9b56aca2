//! A row plan as kernels read it, and the room that the operations of a pass share.

use gpu::{ADAPTIVE, AttentionSizes, Buffer, Device, ROW_WORDS};
use speculate::{Layout, RowInput, RowPlan};

use super::{Gpu, attention_sizes};
use crate::ModelError;
use crate::architecture::Architecture;

/// Largest rank of a delta that room is made for.
const MAX_RANK: usize = crate::adapter::MAX_RANK;

/// Widths of what a pass works on.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    pub(super) attention: AttentionSizes,
    pub(super) feed_forward: usize,
}

/// A row plan on the device, and room that its operations share.
pub(crate) struct DevicePlan {
    pub(super) widths: Widths,
    words: Vec<u32>,
    /// As [`gpu::ROW_WORDS`] says; then the rows whose logits are wanted.
    pub(super) buffer: Buffer,
    /// Where the wanted rows begin.
    pub(super) wanted_at: usize,
    /// Rotated queries.
    pub(super) rotated: Buffer,
    /// What the feed-forward layer widens, before it is packed.
    pub(super) gate: Buffer,
    pub(super) up: Buffer,
    /// What attention found in each chunk of a long context.
    pub(super) chunks: Buffer,
    /// What attention gives, before it is packed.
    pub(super) attended: Buffer,
    /// Adaptive rows between the two factors of their delta, for each layer of one input.
    pub(super) inner: [Buffer; 3],
}

impl DevicePlan {
    /// Without rows: its buffers grow to what a pass needs.
    pub(super) fn new(device: &Device, architecture: &Architecture) -> Result<Self, ModelError> {
        let none = || device.empty(0);
        Ok(Self {
            widths: Widths {
                attention: attention_sizes(architecture.attention_shape()),
                feed_forward: architecture.feed_forward,
            },
            words: Vec::new(),
            buffer: none()?,
            wanted_at: 0,
            rotated: none()?,
            gate: none()?,
            up: none()?,
            chunks: none()?,
            attended: none()?,
            inner: [none()?, none()?, none()?],
        })
    }

    /// Brings `plan` to the device, and makes room for its rows.
    pub(super) fn set(&mut self, gpu: &Gpu, plan: &RowPlan, layout: &Layout) -> Result<(), ModelError> {
        let DevicePlan { widths, words, buffer, wanted_at, rotated, gate, up, chunks, attended, inner } =
            self;
        let n_rows = plan.rows().len();
        words.clear();
        words.resize(n_rows * ROW_WORDS as usize, 0);
        let mut visible = Vec::new();
        for (idx, row) in plan.rows().iter().enumerate() {
            plan.visible_into(idx, &mut visible);
            let hidden = match layout.hides(plan.n_committed()) {
                true => layout.hidden_from(row),
                false => 0..0,
            };
            let input = match row.input {
                RowInput::Token(token) => token,
                RowInput::Adaptive(slot) => ADAPTIVE + slot as u32,
            };
            let of_row = [input as usize, row.position, hidden.start, hidden.end, words.len(), visible.len()];
            let at = idx * ROW_WORDS as usize;
            words[at..at + of_row.len()]
                .iter_mut()
                .zip(of_row)
                .for_each(|(word, value)| *word = value as u32);
            words.extend(visible.iter().map(|&slot| (plan.n_committed() + slot) as u32));
        }
        *wanted_at = words.len();
        words.extend(plan.logit_rows().iter().map(|&row| row as u32));
        *buffer = gpu.device.upload_u32(words)?;
        gpu.reserve(rotated, n_rows * widths.attention.width())?;
        gpu.reserve(chunks, gpu.device.attention_room(widths.attention, n_rows, plan.n_committed()))?;
        gpu.reserve(up, n_rows * widths.feed_forward)?;
        if gpu.packs() {
            gpu.reserve(gate, n_rows * widths.feed_forward)?;
            gpu.reserve(attended, n_rows * widths.attention.width())?;
        }
        let n_adaptive = n_rows - plan.n_token_rows();
        inner.iter_mut().try_for_each(|inner| gpu.reserve(inner, n_adaptive * MAX_RANK))
    }
}
