//! AdamW (arXiv 1711.05101), with a bound on the gradient and a schedule. Its state can be written down, which candle's
//! own cannot.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::TrainError;

/// Constants of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamWConfig {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Decay of what learns, for each step at the full rate.
    pub weight_decay: f64,
    /// Gradients whose norm over all that learns is larger are scaled down to it.
    pub max_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta1: 0.9, beta2: 0.98, weight_decay: 0.0, max_norm: 1.0 }
    }
}

/// Learning rates: a line up, then a cosine down to a tenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Steps of the line.
    pub n_warm_up: usize,
    /// Steps in all.
    pub n_steps: usize,
}

impl Schedule {
    /// Share of the highest rate at `step`, from 0.
    pub fn at(self, step: usize) -> f64 {
        if step < self.n_warm_up {
            return (step + 1) as f64 / self.n_warm_up as f64;
        }
        let n = self.n_steps.saturating_sub(self.n_warm_up).max(1);
        let done = ((step - self.n_warm_up) as f64 / n as f64).min(1.0);
        0.1 + 0.9 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

/// The optimizer and its state.
pub struct AdamW {
    config: AdamWConfig,
    variables: Vec<Var>,
    /// Means of gradients and of their squares, `[n]` each: all that learns in a row, so that a GPU has few launches.
    mean: Tensor,
    square: Tensor,
    pub(crate) n_steps: usize,
}

impl AdamW {
    /// One of `variables`, by name, that has not begun.
    ///
    /// # Errors
    /// Those of memory.
    pub fn new(config: AdamWConfig, variables: &[(String, Var)]) -> Result<Self, TrainError> {
        let variables: Vec<Var> = variables.iter().map(|(_, variable)| variable.clone()).collect();
        let zeros = in_a_row(variables.iter().map(|variable| variable.zeros_like()))?;
        Ok(Self { config, variables, mean: zeros.clone(), square: zeros, n_steps: 0 })
    }

    /// Of each variable: means of gradients and of their squares.
    pub(crate) fn moments(&self) -> Result<Vec<[Tensor; 2]>, TrainError> {
        let means = self.apart(&self.mean)?;
        Ok(means.into_iter().zip(self.apart(&self.square)?).map(<[Tensor; 2]>::from).collect())
    }

    /// Goes on behind step `n_steps` from what [`moments`](Self::moments) were then.
    pub(crate) fn resume(&mut self, moments: &[[Tensor; 2]], n_steps: usize) -> Result<(), TrainError> {
        self.mean = in_a_row(moments.iter().map(|[mean, _]| Ok(mean.clone())))?;
        self.square = in_a_row(moments.iter().map(|[_, square]| Ok(square.clone())))?;
        self.n_steps = n_steps;
        Ok(())
    }

    /// The parts of `row` that are of each variable, in its shape.
    fn apart(&self, row: &Tensor) -> Result<Vec<Tensor>, TrainError> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.variables.len());
        for variable in &self.variables {
            let n = variable.elem_count();
            parts.push(row.narrow(0, start, n)?.reshape(variable.shape())?);
            start += n;
        }
        Ok(parts)
    }

    /// Goes a step along `gradients`, at `share` of the highest rate. The norm of the gradients before they were bounded.
    ///
    /// # Errors
    /// [`TrainError::NotANumber`], and then nothing has changed.
    pub fn step(&mut self, gradients: &GradStore, share: f64) -> Result<f64, TrainError> {
        let gradients = in_a_row(self.variables.iter().map(|variable| {
            gradients
                .get(variable.as_tensor())
                .map_or_else(|| variable.zeros_like(), |found| Ok(found.clone()))
        }))?;
        let mut squares = 0.0;
        for of_variable in Tensor::stack(&sums_of_squares(&self.apart(&gradients)?)?, 0)?.to_vec1::<f32>()? {
            squares += f64::from(of_variable);
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Err(TrainError::NotANumber { step: self.n_steps });
        }
        let AdamWConfig { learning_rate, beta1, beta2, weight_decay, max_norm } = self.config;
        let bound = if norm > max_norm { max_norm / norm } else { 1.0 };
        self.n_steps += 1;
        let n = self.n_steps as i32;
        let (first_scale, second_scale) = (1.0 - beta1.powi(n), 1.0 - beta2.powi(n));
        let rate = learning_rate * share;
        let gradients = (gradients * bound)?;
        self.mean = ((&self.mean * beta1)? + (&gradients * (1.0 - beta1))?)?.detach();
        self.square = ((&self.square * beta2)? + (gradients.sqr()? * (1.0 - beta2))?)?.detach();
        let steps = ((&self.mean / first_scale)? / ((&self.square / second_scale)?.sqrt()? + 1e-8)?)?;
        let steps = (steps * rate)?;
        for (variable, step) in self.variables.iter().zip(self.apart(&steps)?) {
            let kept = if weight_decay == 0.0 {
                variable.as_tensor().clone()
            } else {
                (variable.as_tensor() * (1.0 - rate * weight_decay))?
            };
            variable.set(&(kept - step)?.detach())?;
        }
        Ok(norm)
    }
}

fn in_a_row(tensors: impl Iterator<Item = candle_core::Result<Tensor>>) -> Result<Tensor, TrainError> {
    let flat = tensors.map(|tensor| tensor?.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&flat, 0)?)
}

fn sums_of_squares(tensors: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
    tensors.iter().map(|tensor| tensor.sqr()?.sum_all()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn it_finds_the_least() {
        let variable = Var::new(&[3.0f32, -2.0], &Device::Cpu).expect("a variable");
        let config = AdamWConfig { learning_rate: 0.1, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, &[("it".to_owned(), variable.clone())]).expect("an optimizer");
        for _ in 0..300 {
            let loss =
                (variable.as_tensor() - 1.0).and_then(|x| x.sqr()).and_then(|x| x.sum_all()).expect("a loss");
            optimizer.step(&loss.backward().expect("gradients"), 1.0).expect("a step");
        }
        let values = variable.to_vec1::<f32>().expect("values");
        assert!(values.iter().all(|value| (value - 1.0).abs() < 0.05), "{values:?}");
    }

    #[test]
    fn rates_rise_and_fall() {
        let schedule = Schedule { n_warm_up: 4, n_steps: 104 };
        assert_eq!((schedule.at(0), schedule.at(3), schedule.at(4)), (0.25, 1.0, 1.0));
        assert!((schedule.at(54) - 0.55).abs() < 1e-9 && (schedule.at(200) - 0.1).abs() < 1e-9);
    }
}
