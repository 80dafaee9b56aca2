//! llama.cpp, through the package llama-cpp-python.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use engine::PassTimer;
use serde::Deserialize;

use super::{DecodeTime, Peer};
use crate::bench::prompts::Prompt;

/// Drafts of the package's prompt lookup: what its documentation names for processors and for GPUs.
const N_DRAFTS: [usize; 2] = [2, 10];

/// llama.cpp, in a Python process.
pub(in crate::bench) struct LlamaCpp {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    vocabulary: usize,
    version: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ms: Vec<f64>,
    /// Tokens that were decoded in the time.
    #[serde(default)]
    n_tokens: usize,
    #[serde(default)]
    tokens: Vec<u32>,
    error: Option<String>,
    version: Option<String>,
}

impl LlamaCpp {
    pub(in crate::bench) fn start(
        python: &Path,
        weights: &Path,
        n_threads: usize,
        vocabulary: usize,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", include_str!("llama_cpp_peer.py")])
            .arg(weights)
            .arg(n_threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(requests), Some(answers)) = (requests, answers) else { bail!("no pipes to Python") };
        let answers = BufReader::new(answers);
        let mut peer = Self { child, requests, answers, vocabulary, version: String::new() };
        let hello =
            peer.read().context("llama-cpp-python is not installed there, or cannot load the model")?;
        peer.version = hello.version.unwrap_or_default();
        Ok(peer)
    }

    fn read(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("Python ended");
        }
        let answer: Answer = serde_json::from_str(&line).context("an answer that is no JSON")?;
        match answer.error {
            Some(error) => bail!("llama.cpp: {error}"),
            None => Ok(answer),
        }
    }

    fn ask(&mut self, request: &serde_json::Value) -> anyhow::Result<Answer> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        self.read()
    }

    /// The likeliest tokens behind `prompt`, one after the other, and the milliseconds that they took.
    pub(in crate::bench) fn continuation(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
    ) -> anyhow::Result<(Vec<u32>, f64)> {
        let answer = self.ask(&serde_json::json!({
            "operation": "continuation", "tokens": prompt, "max_tokens": max_tokens,
        }))?;
        Ok((answer.tokens, answer.ms.iter().sum()))
    }

    fn tokens(&self, n: usize) -> Vec<usize> {
        (0..n).map(|i| i * 7919 % self.vocabulary).collect()
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        // It has nothing to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer for LlamaCpp {
    fn name(&self) -> String {
        format!("llama.cpp (llama-cpp-python {})", self.version)
    }

    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>> {
        let tokens = self.tokens(PassTimer::N_COMMITTED.max(n_rows));
        let request = serde_json::json!({
            "operation": "passes", "tokens": tokens, "n_committed": PassTimer::N_COMMITTED, "n_rows": n_rows,
            "repetitions": repetitions,
        });
        Ok(self.ask(&request)?.ms)
    }

    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64> {
        let tokens = self.tokens(n_tokens);
        let answer = self.ask(&serde_json::json!({ "operation": "prefill", "tokens": tokens }))?;
        answer.ms.first().copied().context("no time")
    }

    fn ways(&self) -> Vec<String> {
        let speculative = N_DRAFTS.map(|n| format!("prompt lookup, {n} drafts"));
        std::iter::once("ordinary".to_owned()).chain(speculative).collect()
    }

    fn decode(&mut self, way: usize, prompt: &Prompt, max_tokens: usize) -> anyhow::Result<DecodeTime> {
        let n_drafts = way.checked_sub(1).map_or(0, |way| N_DRAFTS[way]);
        let answer = self.ask(&serde_json::json!({
            "operation": "decode", "prompt": prompt.prefix, "n_drafts": n_drafts, "max_tokens": max_tokens,
        }))?;
        Ok(DecodeTime { n_tokens: answer.n_tokens, ms: answer.ms.iter().sum() })
    }
}
