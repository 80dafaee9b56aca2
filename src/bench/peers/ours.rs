//! This engine, as one among others.

use std::sync::Arc;

use engine::{
    CompletionRequest, Extent, Model, PassTimer, Session, SessionConfig, Speculation, measure_pass_costs,
};

use super::{DecodeTime, Peer};
use crate::bench::prompts::Prompt;

const WAYS: [Speculation; 3] = [Speculation::Off, Speculation::Lookup, Speculation::Auto];

pub(super) struct Ours {
    model: Arc<Model>,
    session: Session,
}

impl Ours {
    pub(super) fn new(model: Arc<Model>) -> anyhow::Result<Self> {
        let config =
            SessionConfig { costs: Some(measure_pass_costs(&model, &|| false)?), ..SessionConfig::default() };
        let session = Session::with(&model, config);
        Ok(Self { model, session })
    }
}

impl Peer for Ours {
    fn name(&self) -> String {
        "sateen".to_owned()
    }

    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>> {
        let mut timer = PassTimer::new(&self.model)?;
        (0..repetitions).map(|_| Ok(timer.tokens(n_rows)?)).collect()
    }

    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64> {
        Ok(PassTimer::prefill(&self.model, n_tokens)?)
    }

    fn ways(&self) -> Vec<String> {
        WAYS.map(|way| if way == Speculation::Off { "ordinary" } else { way.name() }.to_owned()).to_vec()
    }

    fn decode(&mut self, way: usize, prompt: &Prompt, max_tokens: usize) -> anyhow::Result<DecodeTime> {
        let speculation = WAYS[way];
        let request = CompletionRequest {
            max_tokens,
            speculation,
            extent: Extent::Raw,
            ..CompletionRequest::new(prompt.prefix.as_str(), "")
        };
        let completion = self.session.complete(&request)?;
        let ms = completion.total_ms - completion.ttft_ms;
        Ok(DecodeTime { n_tokens: (completion.tokens_per_s * ms / 1000.0).round() as usize, ms })
    }
}
