//! A toy target whose logits are a hash of everything before a row, and drafters of every temper.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::sync::Arc;

use speculate::{
    AdaptiveGroup, DraftTree, Drafter, Logits, MarkovHead, Proposal, RowInput, RowPlan, Target, Wanted,
};

/// Splitmix64 finaliser: a cheap hash with good diffusion.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub fn hash_of(seed: u64, tokens: impl IntoIterator<Item = u64>) -> u64 {
    tokens.into_iter().fold(mix(seed ^ 0x9e37_79b9_7f4a_7c15), |hash, token| mix(hash ^ mix(token + 1)))
}

#[derive(Debug, thiserror::Error)]
#[error("toy target failed")]
pub struct ToyError;

pub struct ToyTarget {
    pub seed: u64,
    pub vocabulary: usize,
    pub n_slots: usize,
    /// Logits are integers below this, so that ties are as common as we like.
    pub n_levels: u64,
    /// How far back a logit looks; small orders make text that repeats.
    pub order: usize,
    pub committed: Vec<u32>,
    pub last_plan: RowPlan,
    pub logits: Logits,
    pub markov_head: Option<Arc<MarkovHead>>,
}

impl ToyTarget {
    /// Every other seed has a Markov head, of all tokens but the last.
    pub fn new(seed: u64, vocabulary: usize) -> Self {
        let number = |at: u64| (hash_of(seed, [at]) % 9) as f32 - 4.0;
        let factors =
            |salt: u64| -> Vec<f32> { (0..2 * vocabulary as u64 - 2).map(|at| number(salt + at)).collect() };
        let markov_head =
            seed.is_multiple_of(2).then(|| Arc::new(MarkovHead::new(2, &factors(0), &factors(1000), None)));
        Self {
            seed,
            vocabulary,
            n_slots: 4,
            n_levels: 1 << 20,
            order: 3,
            committed: vec![],
            last_plan: RowPlan::default(),
            logits: Logits::default(),
            markov_head,
        }
    }

    /// Logits after `context`; `slot` is set for an adaptive row that ends it.
    pub fn logits_after(&self, context: &[u32], slot: Option<usize>) -> Vec<f32> {
        let recent = &context[context.len().saturating_sub(self.order)..];
        let salt = slot.map_or(0, |slot| 1000 + slot as u64);
        let hash = hash_of(self.seed ^ salt, recent.iter().map(|&token| u64::from(token)));
        let levels = self.n_levels;
        let logit = |token: u64| (mix(hash ^ mix(token)) % levels) as f32 * 6.0 / levels as f32;
        (0..self.vocabulary as u64).map(logit).collect()
    }
}

impl Target for ToyTarget {
    type Error = ToyError;

    fn n_committed(&self) -> usize {
        self.committed.len()
    }

    fn n_adaptive_tokens(&self) -> usize {
        self.n_slots
    }

    fn markov_head(&self) -> Option<Arc<MarkovHead>> {
        self.markov_head.clone()
    }

    fn forward(&mut self, plan: &RowPlan) -> Result<&Logits, ToyError> {
        assert_eq!(plan.n_committed(), self.committed.len());
        let mut values = Vec::new();
        for &row in plan.logit_rows() {
            let mut context = self.committed.clone();
            let mut slot = None;
            for ancestor in plan.visible(row) {
                match plan.rows()[ancestor].input {
                    RowInput::Token(token) => {
                        assert_eq!(slot, None, "a token row sees an adaptive row");
                        assert_eq!(plan.rows()[ancestor].position, context.len());
                        context.push(token);
                    }
                    RowInput::Adaptive(idx) => slot = Some(idx),
                }
            }
            values.extend(self.logits_after(&context, slot));
        }
        self.last_plan = plan.clone();
        self.logits = Logits::from_rows(values, self.vocabulary);
        // Only what was asked for.
        let in_full: Vec<bool> = plan.wanted().iter().map(|&wanted| wanted == Wanted::All).collect();
        let rows = std::mem::take(&mut self.logits.full);
        let kept = rows.chunks_exact(self.vocabulary).zip(&in_full).filter(|(_, in_full)| **in_full);
        self.logits.full = kept.flat_map(|(row, _)| row.to_vec()).collect();
        self.logits.is_full = in_full;
        Ok(&self.logits)
    }

    fn commit(&mut self, rows: &[usize]) -> Result<(), Self::Error> {
        let mut parent = None;
        for &row in rows {
            let plan_row = self.last_plan.rows()[row];
            assert_eq!(plan_row.parent, parent, "committed rows form one path");
            let RowInput::Token(token) = plan_row.input else { panic!("an adaptive row was committed") };
            self.committed.push(token);
            parent = Some(row);
        }
        Ok(())
    }
}

/// Drafters from perfect to hostile.
#[derive(Clone, Debug)]
pub enum ToyDrafter {
    Empty,
    /// Knows the ordinary output and drafts the next `n` of it.
    Oracle {
        continuation: Vec<u32>,
        n_prompt: usize,
        n: usize,
    },
    /// Knows it, and is right except for one token.
    NearMiss {
        continuation: Vec<u32>,
        n_prompt: usize,
        n: usize,
        wrong_at: usize,
    },
    /// Random trees with random adaptive groups.
    Random {
        seed: u64,
        vocabulary: usize,
        n_nodes: usize,
    },
}

impl Drafter for ToyDrafter {
    fn propose(&mut self, context: &[u32], _n_pending: usize) -> Proposal {
        match self {
            Self::Empty => Proposal::default(),
            Self::Oracle { continuation, n_prompt, n } => {
                let rest = continuation.iter().skip(context.len() - *n_prompt).take(*n);
                let tokens: Vec<u32> = rest.copied().collect();
                Proposal { drafts: DraftTree::chain(&tokens), ..Proposal::default() }
            }
            Self::NearMiss { continuation, n_prompt, n, wrong_at } => {
                let rest = continuation.iter().skip(context.len() - *n_prompt).take(*n);
                let mut tokens: Vec<u32> = rest.copied().collect();
                if let Some(token) = tokens.get_mut(*wrong_at) {
                    *token ^= 1;
                }
                let adaptive_groups = vec![AdaptiveGroup::whole(None)];
                Proposal { drafts: DraftTree::chain(&tokens), adaptive_groups, decision: None }
            }
            Self::Random { seed, vocabulary, n_nodes } => {
                let mut state = hash_of(*seed, [context.len() as u64]);
                let mut next = |bound: usize| {
                    state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
                    (state % bound as u64) as usize
                };
                let mut drafts = DraftTree::default();
                let mut adaptive_groups = vec![];
                for _ in 0..*n_nodes {
                    let parent = match next(drafts.nodes().len() + 1) {
                        0 => None,
                        node => Some(node - 1),
                    };
                    drafts.push(next(*vocabulary) as u32, parent);
                }
                for node in 0..drafts.nodes().len() {
                    if next(3) == 0 {
                        adaptive_groups.push(AdaptiveGroup { after: Some(node), n_slots: 1 + next(3) });
                    }
                }
                Proposal { drafts, adaptive_groups, decision: None }
            }
        }
    }
}
