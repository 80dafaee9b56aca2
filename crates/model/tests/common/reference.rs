//! The family in the plainest way: weights as candle reads them, all numbers f32, every token at once. Nothing of it
//! is shared with the forward pass that ships.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};

struct Reference {
    content: Content,
    file: File,
    family: String,
}

impl Reference {
    fn number(&self, key: &str) -> Option<f64> {
        let number = |value: &Value| match value {
            Value::F32(value) => Some(f64::from(*value)),
            value => value.to_u32().ok().map(f64::from),
        };
        self.content.metadata.get(&format!("{}.{key}", self.family)).and_then(number)
    }

    fn size(&self, key: &str) -> usize {
        self.number(key).unwrap_or_else(|| panic!("`{key}` is not in the file")) as usize
    }

    fn tensor(&mut self, name: &str) -> Option<Tensor> {
        self.content.tensor_infos.get(name)?;
        let tensor = self.content.tensor(&mut self.file, name, &Device::Cpu).expect("the tensor");
        Some(tensor.dequantize(&Device::Cpu).expect("f32"))
    }

    fn vector(&mut self, name: &str) -> Option<Vec<f32>> {
        self.tensor(name).map(|tensor| tensor.to_vec1().expect("a vector"))
    }

    /// `x Wᵀ + bias`, `x [n_rows, n_in]`.
    fn linear(&mut self, name: &str, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let weight = self.tensor(&format!("{name}.weight")).expect("the weight");
        let mut out = product(&weight, x);
        if let Some(bias) = self.vector(&format!("{name}.bias")) {
            out.iter_mut().for_each(|row| row.iter_mut().zip(&bias).for_each(|(value, bias)| *value += bias));
        }
        out
    }

    fn norm(&mut self, name: &str, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let weight = self.vector(name).expect("the norm");
        let epsilon = self.number("attention.layer_norm_rms_epsilon").expect("the epsilon");
        let norm = |values: &[f32]| {
            let mean = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / weight.len() as f64;
            let factor = 1.0 / (mean + epsilon).sqrt();
            values.iter().zip(&weight).map(|(x, w)| (f64::from(*x) * factor) as f32 * w).collect::<Vec<_>>()
        };
        // Each head for itself, where the weight has the width of one.
        x.iter().map(|row| row.chunks_exact(weight.len()).flat_map(norm).collect()).collect()
    }
}

fn product(weight: &Tensor, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let x = Tensor::new(x.to_vec(), &Device::Cpu).expect("rows");
    weight.t().and_then(|w| x.matmul(&w)).and_then(|y| y.to_vec2()).expect("a product")
}

/// Turns pair `i` of each head by `position / base^(2i / dim)`.
fn rotate(row: &mut [f32], position: f64, head_dim: usize, base: f64, interleaved: bool) {
    for head in row.chunks_exact_mut(head_dim) {
        for i in 0..head_dim / 2 {
            let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + head_dim / 2) };
            let angle = position * base.powf(-2.0 * i as f64 / head_dim as f64);
            let (x, y) = (f64::from(head[a]), f64::from(head[b]));
            head[a] = (x * angle.cos() - y * angle.sin()) as f32;
            head[b] = (x * angle.sin() + y * angle.cos()) as f32;
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Logits of every token, `[n_tokens * vocabulary]`.
pub(crate) fn logits(path: &Path, tokens: &[u32]) -> Vec<f32> {
    let mut file = File::open(path).expect("the file");
    let content = Content::read(&mut file).expect("a GGUF file");
    let family = content.metadata["general.architecture"].to_string().expect("a name").clone();
    let mut model = Reference { content, file, family };
    let (n_layers, hidden) = (model.size("block_count"), model.size("embedding_length"));
    let n_heads = model.size("attention.head_count");
    let n_kv_heads = model.size("attention.head_count_kv");
    let head_dim = model.number("attention.key_length").map_or(hidden / n_heads, |n| n as usize);
    let base = model.number("rope.freq_base").unwrap_or(10_000.0);
    let scaling =
        model.number("rope.scaling.factor").or_else(|| model.number("rope.scale_linear")).unwrap_or(1.0);
    let interleaved = ["llama", "granite"].contains(&model.family.as_str());
    let multiplier = |key: &str, default: f64| model.number(key).unwrap_or(default) as f32;
    let of_embedding = multiplier("embedding_scale", 1.0);
    let of_residual = multiplier("residual_scale", 1.0);
    let of_scores = f64::from(multiplier("attention.scale", 1.0 / (head_dim as f64).sqrt()));
    let of_logits = multiplier("logit_scale", 1.0);

    let table = model.tensor("token_embd.weight").expect("embeddings");
    let ids = Tensor::new(tokens, &Device::Cpu).expect("ids");
    let mut x: Vec<Vec<f32>> = table.index_select(&ids, 0).and_then(|x| x.to_vec2()).expect("rows");
    x.iter_mut().flatten().for_each(|value| *value *= of_embedding);
    for layer in 0..n_layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let normed = model.norm(&name("attn_norm.weight"), &x);
        let mut by_name: HashMap<&str, Vec<Vec<f32>>> = HashMap::new();
        for part in ["attn_q", "attn_k", "attn_v"] {
            by_name.insert(part, model.linear(&name(part), &normed));
        }
        for part in ["attn_q", "attn_k"] {
            let norm = name(&format!("{part}_norm.weight"));
            if model.content.tensor_infos.contains_key(&norm) {
                by_name.insert(part, model.norm(&norm, &by_name[part]));
            }
            let rows = by_name.get_mut(part).expect("there");
            rows.iter_mut()
                .enumerate()
                .for_each(|(at, row)| rotate(row, at as f64 / scaling, head_dim, base, interleaved));
        }
        let (q, k, v) = (&by_name["attn_q"], &by_name["attn_k"], &by_name["attn_v"]);
        let attend = |row: usize, head: usize| -> Vec<f32> {
            let kv = head / (n_heads / n_kv_heads) * head_dim;
            let query = &q[row][head * head_dim..][..head_dim];
            let scores: Vec<f64> =
                (0..=row).map(|at| of_scores * dot(query, &k[at][kv..][..head_dim])).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let value = |i: usize| weights.iter().zip(v).map(|(w, v)| w * f64::from(v[kv + i])).sum::<f64>();
            (0..head_dim).map(|i| (value(i) / sum) as f32).collect()
        };
        let attended: Vec<Vec<f32>> =
            (0..x.len()).map(|row| (0..n_heads).flat_map(|head| attend(row, head)).collect()).collect();
        let add = |x: &mut [Vec<f32>], y: Vec<Vec<f32>>| {
            x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y * of_residual);
        };
        add(&mut x, model.linear(&name("attn_output"), &attended));
        let normed = model.norm(&name("ffn_norm.weight"), &x);
        let mut gate = model.linear(&name("ffn_gate"), &normed);
        let up = model.linear(&name("ffn_up"), &normed);
        for (gate, up) in gate.iter_mut().flatten().zip(up.iter().flatten()) {
            *gate *= up / (1.0 + (-*gate).exp());
        }
        add(&mut x, model.linear(&name("ffn_down"), &gate));
    }
    let normed = model.norm("output_norm.weight", &x);
    let head = model.tensor("output.weight").unwrap_or(table);
    product(&head, &normed).into_iter().flatten().map(|logit| logit / of_logits).collect()
}
