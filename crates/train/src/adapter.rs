//! The adapter that is trained: embeddings of the slots, a low-rank delta on each linear layer, and a Markov head.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use model::{AdapterTensors, SatAdapter};
use speculate::MarkovHead;

use crate::TrainError;
use crate::base::Base;
use crate::tensor_file::{EightBits, NamedTensor, write_tensors};

/// How large an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AdapterShape {
    /// Slots of a group, from 1 to 32.
    pub n_slots: usize,
    /// Rank of the deltas, up to 1,024; 0 for none.
    pub rank: usize,
    /// Rank of the Markov head, up to 1,024; 0 for none.
    pub markov_rank: usize,
}

/// What of an adapter learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AdapterPart {
    /// All of it.
    #[default]
    Whole,
    /// Its Markov head only: the rest stays as it is, and no gradient runs through the model.
    MarkovHead,
}

impl AdapterShape {
    fn check(self) -> Result<(), TrainError> {
        let refuse = |field, bound, got: usize| TrainError::OutOfRange { field, bound, got: got.to_string() };
        if !(1..=SatAdapter::MAX_SLOTS).contains(&self.n_slots) {
            return Err(refuse("slots", "from 1 to 32", self.n_slots));
        }
        for (field, rank) in [("rank", self.rank), ("rank of the Markov head", self.markov_rank)] {
            if rank > SatAdapter::MAX_RANK {
                return Err(refuse(field, "from 0 to 1024", rank));
            }
        }
        Ok(())
    }
}

/// An adapter whose numbers change.
pub struct TrainedAdapter {
    shape: AdapterShape,
    /// `[n_slots, hidden]`
    pub(crate) embedding: Var,
    /// Of the linear layers.
    names: [&'static str; 7],
    /// By layer, in the order of the linear layers: `[n_in, rank]` and `[rank, n_out]`; no layer's where the rank is 0.
    layers: Vec<[[Var; 2]; 7]>,
    /// What makes a Markov head's factors of the embedding of the token before, and of the output row of the token that is
    /// drafted: `[hidden, markov_rank]` each. So what is learnt of a token holds for those that are like it.
    markov: Option<[Var; 2]>,
    learns: AdapterPart,
}

/// Rows of a delta's factors that share a scale: what the engine packs together.
const DELTA_BLOCK: usize = 32;

fn names_of(base: &Base) -> [&'static str; 7] {
    SatAdapter::linears(base.architecture()).map(|(name, ..)| name)
}

impl TrainedAdapter {
    /// One that changes nothing yet: embeddings are the mean of the table's, and deltas zero (LoRA, arXiv 2106.09685).
    ///
    /// # Errors
    /// [`TrainError::OutOfRange`].
    pub fn new(base: &Base, shape: AdapterShape, seed: u64) -> Result<Self, TrainError> {
        shape.check()?;
        let mut random = fastrand::Rng::with_seed(seed);
        let mean = base.embedding.mean_keepdim(0)?;
        let embedding = Var::from_tensor(&mean.repeat((shape.n_slots, 1))?)?;
        let delta = |n_in: usize, n_out: usize, random: &mut fastrand::Rng| -> Result<[Var; 2], TrainError> {
            let bound = (3.0 / n_in as f32).sqrt();
            let a: Vec<f32> = (0..n_in * shape.rank).map(|_| (2.0 * random.f32() - 1.0) * bound).collect();
            let a = Var::from_vec(a, (n_in, shape.rank), &base.device)?;
            Ok([a, Var::zeros((shape.rank, n_out), DType::F32, &base.device)?])
        };
        let mut layers = Vec::new();
        for _ in base.layers.iter().filter(|_| shape.rank > 0) {
            let mut of_layer = Vec::new();
            for (_, n_in, n_out) in SatAdapter::linears(base.architecture()) {
                of_layer.push(delta(n_in, n_out, &mut random)?);
            }
            layers.extend(<[[Var; 2]; 7]>::try_from(of_layer));
        }
        let adapter = Self {
            shape: AdapterShape { markov_rank: 0, ..shape },
            embedding,
            names: names_of(base),
            layers,
            markov: None,
            learns: AdapterPart::Whole,
        };
        adapter.with_markov_head(base, shape.markov_rank, seed)
    }

    /// The adapter with a Markov head of `rank` that changes nothing yet, where it has none and `rank` is not 0.
    ///
    /// # Errors
    /// [`TrainError::OutOfRange`].
    pub fn with_markov_head(mut self, base: &Base, rank: usize, seed: u64) -> Result<Self, TrainError> {
        if self.markov.is_some() || rank == 0 {
            return Ok(self);
        }
        self.shape.markov_rank = rank;
        self.shape.check()?;
        let mut random = fastrand::Rng::with_seed(seed ^ 0x4d);
        let shape = (base.architecture().hidden, rank);
        // Embeddings are normalised, so that factors begin with a mean square of 1.
        let bound = (3.0 / shape.0 as f32).sqrt();
        let before: Vec<f32> = (0..shape.0 * rank).map(|_| (2.0 * random.f32() - 1.0) * bound).collect();
        let before = Var::from_vec(before, shape, &base.device)?;
        self.markov = Some([before, Var::zeros(shape, DType::F32, &base.device)?]);
        Ok(self)
    }

    /// The adapter of which only `part` learns.
    pub fn learning(self, part: AdapterPart) -> Self {
        Self { learns: part, ..self }
    }

    /// Goes on from the adapter at `path`.
    ///
    /// # Errors
    /// What is wrong with the file; [`TrainError::OtherBase`].
    pub fn load(base: &Base, path: &Path) -> Result<Self, TrainError> {
        // Whose it is comes first: what does not fit another model says little of why.
        let bytes = SatAdapter::read(path)?;
        let of_other = SatAdapter::base_of(&bytes).filter(|sha256| sha256 != base.sha256());
        if let Some(got) = of_other {
            let expected = base.sha256().to_owned();
            return Err(TrainError::OtherBase { path: path.to_owned(), expected, got });
        }
        let checked = SatAdapter::parse(&bytes, path, base.architecture())?;
        let tensors = AdapterTensors::new(&bytes, path)?;
        let var = |name: &str| -> Result<Var, TrainError> {
            Ok(Var::from_vec(tensors.values(name)?, tensors.shape(name)?, &base.device)?)
        };
        let names = names_of(base);
        let embedding = var("sat.embedding")?;
        let mut layers = Vec::new();
        for layer in (0..base.layers.len()).filter(|_| checked.has_deltas()) {
            let mut of_layer = Vec::new();
            for name in &names {
                let name = format!("layers.{layer}.{name}");
                of_layer.push([var(&format!("{name}.lora_a"))?, var(&format!("{name}.lora_b"))?]);
            }
            layers.extend(<[[Var; 2]; 7]>::try_from(of_layer));
        }
        let rank = layers.first().map_or(0, |layer| layer[0][0].dims()[1]);
        let [before, after] = SatAdapter::MARKOV_PROJECTIONS;
        let markov = match tensors.has(SatAdapter::MARKOV[0]) {
            true => Some([var(before)?, var(after)?]),
            false => None,
        };
        let markov_rank = markov.as_ref().map_or(0, |[before, _]| before.dims()[1]);
        let shape = AdapterShape { n_slots: checked.n_slots(), rank, markov_rank };
        Ok(Self { shape, embedding, names, layers, markov, learns: AdapterPart::Whole })
    }

    /// What of it learns.
    pub fn learns(&self) -> AdapterPart {
        self.learns
    }

    /// How large it is.
    pub fn shape(&self) -> AdapterShape {
        self.shape
    }

    pub(crate) fn deltas_of(&self, layer: usize) -> Option<[[Tensor; 2]; 7]> {
        let of_layer = self.layers.get(layer)?;
        Some(of_layer.each_ref().map(|[a, b]| [self.of_the_whole(a), self.of_the_whole(b)]))
    }

    /// Of the slots: `[n_slots, hidden]`.
    pub(crate) fn slot_embedding(&self) -> Tensor {
        self.of_the_whole(&self.embedding)
    }

    /// What learns only where the whole adapter does.
    fn of_the_whole(&self, variable: &Var) -> Tensor {
        match self.learns {
            AdapterPart::Whole => variable.as_tensor().clone(),
            AdapterPart::MarkovHead => variable.as_detached_tensor(),
        }
    }

    /// `hidden [n_rows, hidden]` of rows, moved by the token `before` each: its product with the head is what the slots say,
    /// raised by the Markov head.
    pub(crate) fn moved(&self, base: &Base, hidden: Tensor, before: &[u32]) -> candle_core::Result<Tensor> {
        let Some([of_before, of_after]) = &self.markov else { return Ok(hidden) };
        let n_tokens = base.n_first() as u32;
        // Behind tokens that the head does not know nothing is raised.
        let is_known: Vec<f32> = before.iter().map(|&token| f32::from(u8::from(token < n_tokens))).collect();
        let is_known = Tensor::from_vec(is_known, (before.len(), 1), hidden.device())?;
        let features = base.token_features(Some(before))?.broadcast_mul(&is_known)?;
        hidden + features.matmul(of_before)?.matmul(&of_after.t()?)?
    }

    /// Factors of the first tokens, `[n_first, markov_rank]`, and of all that are drafted, `[n_outputs, markov_rank]`.
    fn factors(&self, base: &Base) -> candle_core::Result<Option<[Tensor; 2]>> {
        let Some([before, after]) = &self.markov else { return Ok(None) };
        let [before, after] = [before, after].map(Var::as_detached_tensor);
        let of_before = base.token_features(None)?.matmul(&before)?;
        Ok(Some([of_before, base.head.t()?.matmul(&after)?]))
    }

    /// The Markov head as the engine has it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn markov_head(&self, base: &Base) -> candle_core::Result<Option<Arc<MarkovHead>>> {
        let Some([before, after]) = self.factors(base)? else { return Ok(None) };
        let rank = self.shape.markov_rank;
        // As in the file.
        let numbers =
            |factors: &Tensor| Ok::<_, candle_core::Error>(EightBits::new(factors, [1, rank])?.values());
        Ok(Some(Arc::new(MarkovHead::new(rank, &numbers(&before)?, &numbers(&after)?, base.end()))))
    }

    /// Everything that learns, with its name in the file.
    pub fn variables(&self) -> Vec<(String, Var)> {
        match self.learns {
            AdapterPart::Whole => self.all(),
            AdapterPart::MarkovHead => self.of_markov_head(),
        }
    }

    fn of_markov_head(&self) -> Vec<(String, Var)> {
        let names = SatAdapter::MARKOV_PROJECTIONS.map(str::to_owned).into_iter();
        names.zip(self.markov.clone().into_iter().flatten()).collect()
    }

    fn all(&self) -> Vec<(String, Var)> {
        let mut all = vec![("sat.embedding".to_owned(), self.embedding.clone())];
        for (layer, of_layer) in self.layers.iter().enumerate() {
            for (name, [a, b]) in self.names.iter().zip(of_layer) {
                all.push((format!("layers.{layer}.{name}.lora_a"), a.clone()));
                all.push((format!("layers.{layer}.{name}.lora_b"), b.clone()));
            }
        }
        all.extend(self.of_markov_head());
        all
    }

    /// Writes it to `path` for `base`, whole or not at all: deltas and factors of tokens in eight bits, as the engine has them.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn save(&self, base: &Base, path: &Path) -> Result<(), TrainError> {
        let mut metadata = HashMap::from([
            ("base_sha256".to_owned(), base.sha256().to_owned()),
            ("k".to_owned(), self.shape.n_slots.to_string()),
            ("rank".to_owned(), self.shape.rank.to_string()),
            ("rope".to_owned(), base.rope_name().to_owned()),
        ]);
        if let Some(end) = base.end() {
            metadata.insert(SatAdapter::END.to_owned(), end.to_string());
        }
        let mut tensors =
            vec![NamedTensor::single("sat.embedding".to_owned(), self.embedding.as_tensor().clone())];
        for (layer, of_layer) in self.layers.iter().enumerate() {
            for (name, factors) in self.names.iter().zip(of_layer) {
                for (part, factor) in ["lora_a", "lora_b"].iter().zip(factors) {
                    let name = format!("layers.{layer}.{name}.{part}");
                    tensors.extend(EightBits::new(factor.as_tensor(), [DELTA_BLOCK, 1])?.named(&name));
                }
            }
        }
        for (name, projection) in self.of_markov_head() {
            tensors.push(NamedTensor::single(name, projection.as_tensor().clone()));
        }
        for (name, factors) in SatAdapter::MARKOV.iter().zip(self.factors(base)?.into_iter().flatten()) {
            tensors.extend(EightBits::new(&factors, [1, self.shape.markov_rank])?.named(name));
        }
        write_tensors(path, &tensors, metadata)
    }
}
