//! Draft trees: what a drafter proposes.

/// One drafted token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftNode {
    /// The drafted token.
    pub token: u32,
    /// The node it follows; `None` follows the last committed token.
    pub parent: Option<usize>,
    /// 1 for a node that follows the last committed token.
    pub depth: usize,
}

/// A trie of drafts that continue the committed tokens. Parents come before children, and the
/// children of a node differ in their token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
        if let Some(existing) = self.child(parent, token) {
            return existing;
        }
        let depth = parent.map_or(1, |parent| self.nodes[parent].depth + 1);
        self.nodes.push(DraftNode { token, parent, depth });
        self.nodes.len() - 1
    }

    /// The child of `parent` that carries `token`.
    pub fn child(&self, parent: Option<usize>, token: u32) -> Option<usize> {
        self.nodes.iter().position(|node| node.parent == parent && node.token == token)
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
