//! How each way of decoding drafts, and what the drafters have learnt.

use std::collections::{BTreeMap, HashMap};

use model::TokenizerError;
use speculate::{
    Corpus, CorpusDrafter, Drafter, OrdinaryDecoding, PassCosts, PhrasePool, PromptLookup, PublishedTree,
    Router, RouterConfig, SemanticDrafter, SharedDrafter, SuffixDrafter, TokenRecycling, TwoPassSdsat,
};

use crate::{ContextFile, Speculation};

/// What a row costs on a device that was not measured, as a share of a pass over one row.
const UNMEASURED_ROW_SHARE: f64 = 0.08;
/// Bytes of documents that are tokenized; those that come last are left out.
const MAX_DOCUMENT_BYTES: usize = 192 << 10;

/// The drafters of a session. What is learnt from one request serves the next, in any mode.
pub(crate) struct Drafting {
    n_slots: usize,
    costs: PassCosts,
    corpus: SharedDrafter<Corpus>,
    recycling: SharedDrafter<TokenRecycling>,
    phrases: SharedDrafter<PhrasePool>,
    two_pass: TwoPassSdsat,
    /// The tokens of documents, by their text.
    encoded: HashMap<String, Vec<u32>>,
    /// Drafters that no completion uses, with what they have learnt of themselves; the last used last.
    free: BTreeMap<&'static str, Vec<Box<dyn Drafter>>>,
}

impl Drafting {
    /// For a target with `n_slots` semantic adaptive tokens in a group.
    pub(crate) fn new(n_slots: usize, costs: Option<PassCosts>, recycling: TokenRecycling) -> Self {
        Self {
            n_slots,
            costs: costs.unwrap_or_else(|| PassCosts::linear(UNMEASURED_ROW_SHARE)),
            corpus: SharedDrafter::default(),
            recycling: SharedDrafter::new(recycling),
            phrases: SharedDrafter::default(),
            two_pass: TwoPassSdsat::default(),
            encoded: HashMap::new(),
            free: BTreeMap::new(),
        }
    }

    /// How two-pass SDSAT drafts.
    pub(crate) fn set_two_pass(&mut self, max_slots: Option<usize>, tree: Option<PublishedTree>) {
        self.two_pass = TwoPassSdsat::new(max_slots, tree);
        self.free.remove(Speculation::Sdsat.name());
    }

    /// The other files to draft from. Only texts that have changed are tokenized.
    pub(crate) fn set_documents(
        &mut self,
        files: &[ContextFile],
        encode: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let mut n_bytes = 0;
        let fits = |file: &&ContextFile| {
            n_bytes += file.text.len();
            n_bytes <= MAX_DOCUMENT_BYTES
        };
        let texts: Vec<&str> = files.iter().take_while(fits).map(|file| file.text.as_str()).collect();
        let mut known = std::mem::take(&mut self.encoded);
        let mut documents = Vec::with_capacity(texts.len());
        for text in texts {
            let tokens = match known.remove(text) {
                Some(tokens) => tokens,
                None => encode(text)?,
            };
            documents.push(tokens.clone());
            self.encoded.insert(text.to_owned(), tokens);
        }
        self.corpus.lock().set_documents(documents);
        Ok(())
    }

    pub(crate) fn recycling(&self) -> &SharedDrafter<TokenRecycling> {
        &self.recycling
    }

    /// A drafter for one completion.
    pub(crate) fn take(&mut self, speculation: Speculation) -> Box<dyn Drafter> {
        let free = self.free.get_mut(speculation.name()).and_then(Vec::pop);
        free.unwrap_or_else(|| self.new_drafter(speculation))
    }

    /// Gives a drafter back.
    pub(crate) fn give_back(&mut self, speculation: Speculation, drafter: Box<dyn Drafter>) {
        self.free.entry(speculation.name()).or_default().push(drafter);
    }

    /// Without semantic adaptive tokens SDSAT is ordinary decoding.
    fn new_drafter(&self, speculation: Speculation) -> Box<dyn Drafter> {
        let semantic = || -> Box<dyn Drafter> { Box::new(SemanticDrafter::default()) };
        let free = || -> Vec<Box<dyn Drafter>> {
            vec![
                Box::new(SuffixDrafter::default()),
                Box::new(CorpusDrafter::new(self.corpus.clone())),
                Box::new(self.recycling.clone()),
                Box::new(self.phrases.clone()),
            ]
        };
        let router = |n_slots: usize, drafters| -> Box<dyn Drafter> {
            Box::new(Router::new(RouterConfig { costs: self.costs.clone(), n_slots }, drafters))
        };
        match speculation {
            Speculation::Off => Box::new(OrdinaryDecoding),
            Speculation::Sdsat | Speculation::Fused if self.n_slots == 0 => Box::new(OrdinaryDecoding),
            Speculation::Sdsat if self.two_pass.max_slots == Some(0) => Box::new(OrdinaryDecoding),
            Speculation::Sdsat => Box::new(self.two_pass.clone()),
            Speculation::Fused => router(self.n_slots, vec![semantic()]),
            Speculation::Lookup => Box::new(PromptLookup::default()),
            Speculation::Free => router(0, free()),
            Speculation::Auto if self.n_slots == 0 => router(0, free()),
            Speculation::Auto => {
                let all = free().into_iter().chain([semantic()]).collect();
                router(self.n_slots, all)
            }
        }
    }
}
