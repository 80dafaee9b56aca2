//! How each way of decoding drafts, and what the drafters have learnt.

use model::TokenizerError;
use speculate::{
    CorpusDrafter, Drafter, OrdinaryDecoding, PassCosts, PhrasePool, PromptLookup, PublishedTree, Router,
    RouterConfig, SemanticDrafter, SharedDrafter, SuffixDrafter, TokenRecycling, TwoPassSdsat,
};

use crate::Speculation;

/// What a row costs on a device that was not measured, as a share of a pass over one row.
const UNMEASURED_ROW_SHARE: f64 = 0.08;

/// The drafters of a session. What is learnt from one request serves the next, in any mode.
pub(crate) struct Drafting {
    n_slots: usize,
    /// The documents of the corpus.
    texts: Vec<String>,
    corpus: SharedDrafter<CorpusDrafter>,
    recycling: SharedDrafter<TokenRecycling>,
    ordinary: OrdinaryDecoding,
    two_pass: TwoPassSdsat,
    lookup: PromptLookup,
    fused: Router,
    free: Router,
    auto: Router,
}

impl Drafting {
    /// For a target with `n_slots` semantic adaptive tokens in a group.
    pub(crate) fn new(n_slots: usize, costs: Option<PassCosts>, recycling: TokenRecycling) -> Self {
        let corpus = SharedDrafter::default();
        let recycling = SharedDrafter::new(recycling);
        let phrases: SharedDrafter<PhrasePool> = SharedDrafter::default();
        let costs = costs.unwrap_or_else(|| PassCosts::linear(UNMEASURED_ROW_SHARE));
        let router =
            |n_slots: usize, drafters| Router::new(RouterConfig { costs: costs.clone(), n_slots }, drafters);
        let semantic = || -> Box<dyn Drafter> { Box::new(SemanticDrafter::default()) };
        let free = || -> Vec<Box<dyn Drafter>> {
            vec![
                Box::new(SuffixDrafter::default()),
                Box::new(corpus.clone()),
                Box::new(recycling.clone()),
                Box::new(phrases.clone()),
            ]
        };
        let mut all = free();
        if n_slots > 0 {
            all.push(semantic());
        }
        Self {
            n_slots,
            texts: Vec::new(),
            ordinary: OrdinaryDecoding,
            two_pass: TwoPassSdsat::default(),
            lookup: PromptLookup::default(),
            fused: router(n_slots, vec![semantic()]),
            free: router(0, free()),
            auto: router(n_slots, all),
            corpus,
            recycling,
        }
    }

    /// How two-pass SDSAT drafts.
    pub(crate) fn set_two_pass(&mut self, max_slots: Option<usize>, tree: Option<PublishedTree>) {
        self.two_pass.max_slots = max_slots;
        self.two_pass.tree = tree;
    }

    /// The texts of other files to draft from. Only texts that have changed are tokenized.
    pub(crate) fn set_documents(
        &mut self,
        texts: &[String],
        encode: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    ) -> Result<(), TokenizerError> {
        if texts != self.texts {
            let documents: Result<_, _> = texts.iter().map(|text| encode(text)).collect();
            self.corpus.lock().set_documents(documents?);
            self.texts = texts.to_vec();
        }
        Ok(())
    }

    pub(crate) fn recycling(&self) -> &SharedDrafter<TokenRecycling> {
        &self.recycling
    }

    /// The drafter of a way of decoding. Without semantic adaptive tokens SDSAT is ordinary decoding.
    pub(crate) fn of(&mut self, speculation: Speculation) -> &mut dyn Drafter {
        match speculation {
            Speculation::Off => &mut self.ordinary,
            Speculation::Sdsat | Speculation::Fused if self.n_slots == 0 => &mut self.ordinary,
            Speculation::Sdsat if self.two_pass.max_slots == Some(0) => &mut self.ordinary,
            Speculation::Sdsat => &mut self.two_pass,
            Speculation::Fused => &mut self.fused,
            Speculation::Lookup => &mut self.lookup,
            Speculation::Free => &mut self.free,
            Speculation::Auto => &mut self.auto,
        }
    }
}
