//! Attention of rows over a text, which does not learn, where there is one, and over each other, as one node of the graph: what is
//! between scores and values is many times larger than what comes in and goes out, and candle would keep and add gradients of
//! every step of it.

use candle_core::{D, Result, Tensor};

use crate::outside::computed_outside;
use crate::softmax::{Visible, softmax_gradient, visible_softmax};

/// Keys and values: `[n_kv_heads, n, head_dim]` each.
#[derive(Clone)]
pub(crate) struct KeysAndValues {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// `softmax(scale q Kᵀ) V` over what `visible` says of the columns of `text`, where there is one, and, behind them, of `rows`:
/// `[n_kv_heads, n_queries, head_dim]` as the queries are. Gradients reach the queries and `rows`.
pub(crate) fn attend(
    queries: &Tensor,
    rows: &KeysAndValues,
    text: Option<&KeysAndValues>,
    visible: &Visible,
    scale: f64,
) -> Result<Tensor> {
    let learning = [queries, &rows.keys, &rows.values];
    let argument = Tensor::cat(&in_rows(&learning)?, 0)?;
    let queries = queries.detach();
    let rows = KeysAndValues { keys: rows.keys.detach(), values: rows.values.detach() };
    // What is seen, and the columns that it has.
    let n_tokens = text.map(|text| text.keys.dim(1)).transpose()?.unwrap_or(0);
    let mut seen: Vec<(KeysAndValues, usize)> = text.map(|text| (text.clone(), 0)).into_iter().collect();
    seen.push((rows.clone(), n_tokens));
    let over_seen = |x: &Tensor, of: fn(&KeysAndValues) -> &Tensor, seen: &[(KeysAndValues, usize)]| {
        let parts: Result<Vec<Tensor>> = seen.iter().map(|(part, _)| x.matmul(&of(part).t()?)).collect();
        Tensor::cat(&parts?, D::Minus1)
    };
    let columns = |both: &Tensor, part: &KeysAndValues, start: usize| {
        both.narrow(D::Minus1, start, part.keys.dim(1)?)?.contiguous()
    };
    let sum = move |both: &Tensor, of: fn(&KeysAndValues) -> &Tensor, seen: &[(KeysAndValues, usize)]| {
        let parts = seen.iter().map(|(part, start)| columns(both, part, *start)?.matmul(of(part)));
        parts.reduce(|sum, part| sum? + part?).unwrap_or_else(|| both.zeros_like())
    };
    let shares = visible_softmax(&over_seen(&queries, |part| &part.keys, &seen)?, visible, scale)?;
    let attended = sum(&shares, |part| &part.values, &seen)?;
    let visible = visible.clone();
    computed_outside(&argument, &attended, move |_, gradient| {
        let gradient = gradient.contiguous()?;
        let of_shares = over_seen(&gradient, |part| &part.values, &seen)?;
        let of_scores = softmax_gradient(&shares, &of_shares, &visible, scale)?;
        let of_queries = sum(&of_scores, |part| &part.keys, &seen)?;
        let of_keys = columns(&of_scores, &rows, n_tokens)?.t()?.matmul(&queries)?;
        let of_values = columns(&shares, &rows, n_tokens)?.t()?.matmul(&gradient)?;
        Tensor::cat(&in_rows(&[&of_queries, &of_keys, &of_values])?, 0)
    })
}

/// Each as numbers in a row.
fn in_rows(tensors: &[&Tensor; 3]) -> Result<Vec<Tensor>> {
    tensors.iter().map(|tensor| tensor.flatten_all()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::outside::value_and_gradients;

    /// Against candle's own operations, forward and backward.
    #[test]
    fn it_is_what_its_parts_are() {
        let (n_kv, group, n_tokens, n_rows, dim) = (2, 3, 5, 4, 8);
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = |shape: (usize, usize, usize)| {
            let numbers: Vec<f32> = (0..shape.0 * shape.1 * shape.2).map(|_| random.f32() - 0.5).collect();
            Var::from_vec(numbers, shape, &Device::Cpu).expect("numbers")
        };
        let queries = numbers((n_kv, group * n_rows, dim));
        let (keys, values) = (numbers((n_kv, n_rows, dim)), numbers((n_kv, n_rows, dim)));
        let weight = numbers((n_kv, group * n_rows, dim)).as_detached_tensor();
        let [text_keys, text_values] = [(); 2].map(|()| numbers((n_kv, n_tokens, dim)).as_detached_tensor());
        // Two groups of two rows, behind the second token and the last.
        let ranges = vec![[0..2, 5..6], [0..2, 5..7], [0..5, 7..8], [0..5, 7..9]];
        let visible = Visible::new(ranges.clone(), n_tokens + n_rows, &Device::Cpu).expect("visible");
        let (scale, variables) = (0.6, [&queries, &keys, &values]);
        let of = |attended| value_and_gradients(attended, &weight, &variables);
        let rows = KeysAndValues { keys: keys.as_tensor().clone(), values: values.as_tensor().clone() };
        let text = KeysAndValues { keys: text_keys.clone(), values: text_values.clone() };
        let got = of(attend(queries.as_tensor(), &rows, Some(&text), &visible, scale));
        let by_parts = || -> Result<Tensor> {
            let n_columns = n_tokens + n_rows;
            let hidden = ranges.iter().flat_map(|ranges| {
                (0..n_columns).map(|column| match ranges.iter().any(|range| range.contains(&column)) {
                    true => 0.0f32,
                    false => -1e30,
                })
            });
            let mask = Tensor::from_vec(hidden.collect::<Vec<f32>>(), (1, n_rows, n_columns), &Device::Cpu)?;
            let mask = mask.repeat((1, group, 1))?;
            let all_keys = Tensor::cat(&[&text_keys, keys.as_tensor()], 1)?;
            let all_values = Tensor::cat(&[&text_values, values.as_tensor()], 1)?;
            let scores = (queries.matmul(&all_keys.t()?)? * scale)?.broadcast_add(&mask)?;
            let weights = scores.exp()?;
            weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.matmul(&all_values)
        };
        let expected = of(by_parts());
        for (expected, got) in expected.iter().zip(&got) {
            assert!((expected - got).abs() < 1e-5, "{expected} {got}");
        }
    }
}
