//! Draft trees: what a drafter proposes.

/// Where a draft comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DraftSource {
    /// A drafter that does not say.
    #[default]
    Other,
    /// Semantic adaptive tokens.
    Semantic,
    /// Text of the prompt that continued the same way before.
    Suffix,
    /// Other open files and recent completions.
    Corpus,
    /// Successors that the target named for the same tokens before.
    Recycling,
    /// Phrases from rejected drafts.
    Phrases,
    /// Prompt lookup.
    Lookup,
}

impl DraftSource {
    /// All sources.
    pub const ALL: [Self; 7] = [
        Self::Other,
        Self::Semantic,
        Self::Suffix,
        Self::Corpus,
        Self::Recycling,
        Self::Phrases,
        Self::Lookup,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Semantic => "sat",
            Self::Suffix => "suffix",
            Self::Corpus => "corpus",
            Self::Recycling => "recycling",
            Self::Phrases => "phrases",
            Self::Lookup => "lookup",
        }
    }
}

/// One drafted token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DraftNode {
    /// The drafted token.
    pub token: u32,
    /// The node it follows; `None` follows the last committed token.
    pub parent: Option<usize>,
    /// 1 for a node that follows the last committed token.
    pub depth: usize,
    /// The drafter's guess at how likely the target agrees, given that it agreed with the parent.
    pub confidence: f32,
    /// Where it comes from.
    pub source: DraftSource,
}

/// A trie of drafts that continue the committed tokens. Parents come before children, and the
/// children of a node differ in their token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftTree {
    nodes: Vec<DraftNode>,
}

impl DraftTree {
    /// A tree without branches.
    pub fn chain(tokens: &[u32]) -> Self {
        let mut tree = Self::default();
        let mut parent = None;
        for &token in tokens {
            parent = Some(tree.push(token, parent));
        }
        tree
    }

    /// Adds `token` after `parent`, or finds it when it is there. Returns its index.
    ///
    /// # Panics
    /// When `parent` is not a node of the tree.
    pub fn push(&mut self, token: u32, parent: Option<usize>) -> usize {
        self.push_from(DraftSource::Other, token, parent, 1.0)
    }

    /// [`push`](Self::push) with what is known of the draft; an existing node keeps what it has.
    ///
    /// # Panics
    /// When `parent` is not a node of the tree.
    pub fn push_from(
        &mut self,
        source: DraftSource,
        token: u32,
        parent: Option<usize>,
        confidence: f32,
    ) -> usize {
        if let Some(existing) = self.child(parent, token) {
            return existing;
        }
        let depth = parent.map_or(1, |parent| self.nodes[parent].depth + 1);
        self.nodes.push(DraftNode { token, parent, depth, confidence, source });
        self.nodes.len() - 1
    }

    /// The child of `parent` that carries `token`.
    pub fn child(&self, parent: Option<usize>, token: u32) -> Option<usize> {
        self.nodes.iter().position(|node| node.parent == parent && node.token == token)
    }

    /// The tokens from the first draft to `node`, in order.
    pub fn path_to(&self, node: Option<usize>) -> Vec<u32> {
        let mut path: Vec<u32> = std::iter::successors(node, |&node| self.nodes[node].parent)
            .map(|node| self.nodes[node].token)
            .collect();
        path.reverse();
        path
    }

    /// All nodes, parents before children.
    pub fn nodes(&self) -> &[DraftNode] {
        &self.nodes
    }

    /// Drops the nodes that are deeper than `max_depth`.
    pub fn truncate_depth(&mut self, max_depth: usize) {
        let mut new_idx = vec![None; self.nodes.len()];
        let mut kept: Vec<DraftNode> = Vec::with_capacity(self.nodes.len());
        for (node_idx, node) in self.nodes.iter().enumerate() {
            if node.depth <= max_depth {
                new_idx[node_idx] = Some(kept.len());
                kept.push(DraftNode { parent: node.parent.and_then(|parent| new_idx[parent]), ..*node });
            }
        }
        self.nodes = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushing_a_token_twice_finds_it() {
        let mut tree = DraftTree::chain(&[1, 2]);
        assert_eq!(tree.push(1, None), 0);
        assert_eq!(tree.push(3, Some(0)), 2);
        assert_eq!(tree.nodes()[2].depth, 2);
    }

    #[test]
    fn truncating_keeps_parents_right() {
        let mut tree = DraftTree::default();
        let a = tree.push(1, None);
        let deep = tree.push(2, Some(a));
        tree.push(3, Some(deep));
        let b = tree.push(4, None);
        tree.push(5, Some(b));
        tree.truncate_depth(2);
        let tokens: Vec<_> = tree.nodes().iter().map(|node| (node.token, node.parent)).collect();
        assert_eq!(tokens, [(1, None), (2, Some(0)), (4, None), (5, Some(2))]);
    }
}
