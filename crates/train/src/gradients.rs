//! The loss, and its gradients by all that learns.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::adapter::{AdapterPart, TrainedAdapter};
use crate::base::{Activations, Base};
use crate::batch::Batch;
use crate::error::TrainError;
use crate::loss::{LossConfig, slot_loss};
use crate::outside::computed_outside;

/// The loss of the rows of `batch` behind `tokens`, with the graph of all that learns.
///
/// # Errors
/// Those of memory.
pub fn loss_of(
    base: &Base,
    adapter: &TrainedAdapter,
    config: LossConfig,
    tokens: &[u32],
    batch: &Batch,
) -> Result<Tensor, TrainError> {
    let text = base.read(tokens)?;
    let teacher = base.logits_at(&text, &batch.positions)?;
    let hidden = base.draft(&base.draft_rows(adapter, &text, batch)?)?;
    loss_behind(base, adapter, config, hidden, &teacher, batch)
}

/// The loss of rows that are `hidden [n_rows, hidden]` behind the last norm, and are to say what `teacher` says.
fn loss_behind(
    base: &Base,
    adapter: &TrainedAdapter,
    config: LossConfig,
    hidden: Tensor,
    teacher: &Tensor,
    batch: &Batch,
) -> Result<Tensor, TrainError> {
    let labels = base.outputs_of(&batch.labels);
    let loss = |hidden: &Tensor| -> Result<Tensor, TrainError> {
        Ok(slot_loss(config, &base.logits(hidden)?, teacher, batch.loss_rows(&labels))?)
    };
    match (adapter.shape().markov_rank, adapter.learns()) {
        (0, _) => loss(&hidden),
        (_, AdapterPart::MarkovHead) => loss(&adapter.moved(base, hidden, &batch.before)?),
        // A head raises what slots find likely by themselves, so they must be right without it as well.
        (_, AdapterPart::Whole) => {
            let alone = loss(&hidden)?;
            Ok(((alone + loss(&adapter.moved(base, hidden, &batch.before)?)?)? * 0.5)?)
        }
    }
}

/// The value of [`loss_of`] and the gradients of all that learns.
///
/// # Errors
/// Those of memory.
pub fn loss_and_gradients(
    base: &Base,
    adapter: &TrainedAdapter,
    config: LossConfig,
    tokens: &[u32],
    batch: &Batch,
) -> Result<(f64, GradStore), TrainError> {
    let value = |loss: &Tensor| -> Result<f64, TrainError> { Ok(f64::from(loss.to_scalar::<f32>()?)) };
    // Where the head alone learns, there is no graph of layers.
    if base.activations == Activations::Kept || adapter.learns() == AdapterPart::MarkovHead {
        let loss = loss_of(base, adapter, config, tokens, batch)?;
        return Ok((value(&loss)?, loss.backward()?));
    }
    let text = base.read(tokens)?;
    let teacher = base.logits_at(&text, &batch.positions)?;
    let rows = base.draft_rows(adapter, &text, batch)?;
    let mut inputs = Vec::with_capacity(base.layers.len());
    let output = Var::from_tensor(&base.draft_detached(&rows, |input| inputs.push(input))?)?;
    let hidden = base.normalise_output(output.as_tensor())?;
    let loss = loss_behind(base, adapter, config, hidden, &teacher, batch)?;
    let mut gradients = loss.backward()?;
    let mut of_x = taken(&mut gradients, &output)?;
    // From the last layer back, each with a graph of its own.
    for (idx, input) in inputs.into_iter().enumerate().rev() {
        let input = Var::from_tensor(&input)?;
        let mut of_layer = passed_on(&base.draft_layer(&rows, idx, input.as_tensor())?, &of_x)?;
        of_x = taken(&mut of_layer, &input)?;
        gradients.extend(of_layer)?;
    }
    gradients.extend(passed_on(&base.embed(&rows)?, &of_x)?)?;
    Ok((value(&loss)?, gradients))
}

/// Adds to `gradients` those of `others` for `variables`.
pub(crate) fn add(
    gradients: &mut GradStore,
    mut others: GradStore,
    variables: &[(String, Var)],
) -> Result<(), TrainError> {
    for (_, variable) in variables {
        let Some(other) = others.remove(variable.as_tensor()) else { continue };
        let sum = match gradients.remove(variable.as_tensor()) {
            Some(gradient) => (gradient + other)?,
            None => other,
        };
        gradients.insert(variable.as_tensor(), sum);
    }
    Ok(())
}

/// Gradients of what `output` is made of, when its own is `gradient`.
fn passed_on(output: &Tensor, gradient: &Tensor) -> Result<GradStore, TrainError> {
    let (start, gradient) = (Tensor::zeros((), DType::F32, output.device())?, gradient.clone());
    Ok(computed_outside(output, &start, move |_, _| Ok(gradient.clone()))?.backward()?)
}

/// The gradient of `variable`, which nobody else asks for.
fn taken(gradients: &mut GradStore, variable: &Var) -> Result<Tensor, TrainError> {
    Ok(gradients.remove(variable.as_tensor()).map_or_else(|| variable.zeros_like(), Ok)?)
}
