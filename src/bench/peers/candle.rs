//! candle's own quantized models. They give the logits of the last row only, so passes of several rows are
//! cheaper for them than what verification needs.

use std::path::Path;

use engine::PassTimer;

use super::Peer;

/// Larger passes take it seconds.
const MAX_CANDLE_ROWS: usize = 8;

pub(super) struct Candle {
    model: CandleModel,
    vocabulary: usize,
}

enum CandleModel {
    Llama(candle_transformers::models::quantized_llama::ModelWeights),
    Qwen2(candle_transformers::models::quantized_qwen2::ModelWeights),
}

impl Candle {
    pub(super) fn load(weights: &Path, vocabulary: usize) -> anyhow::Result<Self> {
        use candle_core::{Device, quantized::gguf_file::Content};
        use candle_transformers::models::{quantized_llama, quantized_qwen2};
        let mut file = std::fs::File::open(weights)?;
        let content = Content::read(&mut file)?;
        let architecture = content.metadata.get("general.architecture").map(|value| value.to_string());
        let model = match architecture.transpose()?.map(String::as_str) {
            Some("qwen2") => CandleModel::Qwen2(quantized_qwen2::ModelWeights::from_gguf(
                content,
                &mut file,
                &Device::Cpu,
            )?),
            _ => CandleModel::Llama(quantized_llama::ModelWeights::from_gguf(
                content,
                &mut file,
                &Device::Cpu,
            )?),
        };
        Ok(Self { model, vocabulary })
    }

    fn run(&mut self, n_tokens: usize, first: usize) -> anyhow::Result<f64> {
        let tokens: Vec<u32> = (0..n_tokens).map(|i| (i * 7919 % self.vocabulary) as u32).collect();
        let input = candle_core::Tensor::new(&tokens[..], &candle_core::Device::Cpu)?.unsqueeze(0)?;
        let started = std::time::Instant::now();
        match &mut self.model {
            CandleModel::Llama(model) => model.forward(&input, first)?,
            CandleModel::Qwen2(model) => model.forward(&input, first)?,
        };
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    }
}

impl Peer for Candle {
    fn name(&self) -> String {
        "candle 0.11.1 (last row's logits)".to_owned()
    }

    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>> {
        if n_rows > MAX_CANDLE_ROWS {
            return Ok(Vec::new());
        }
        // It cannot forget rows, so each pass starts anew behind a short prompt.
        self.run(PassTimer::N_COMMITTED, 0)?;
        let mut first = PassTimer::N_COMMITTED;
        let mut times = Vec::new();
        for _ in 0..repetitions {
            times.push(self.run(n_rows, first)?);
            first += n_rows;
        }
        Ok(times)
    }

    fn max_turns(&self) -> usize {
        1
    }

    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64> {
        if n_tokens > PassTimer::N_COMMITTED { Ok(f64::INFINITY) } else { self.run(n_tokens, 0) }
    }
}
