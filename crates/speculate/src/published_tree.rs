//! The fixed trees of the SDSAT paper, for reproduction.

use crate::{DraftSource, DraftTree, Slots};

/// A tree whose shape does not depend on what the slots say: which ranks of each slot are drafted, for
/// groups of 5, 7, 9, 11 or 13 (arXiv 2403.18647; the widths of the levels are those of its code).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedTree {
    /// Nodes at each depth.
    widths: &'static [usize],
}

/// The ranks at the last three depths of the nodes of a level, in the order in which a level is filled;
/// before them all ranks are 0.
const TAILS: [[usize; 3]; 8] =
    [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1], [1, 0, 0]];

impl PublishedTree {
    /// Depths of the trees there are.
    pub const DEPTHS: [usize; 5] = [5, 7, 9, 11, 13];

    /// The tree for groups of `depth`.
    pub fn of_depth(depth: usize) -> Option<Self> {
        let widths: &[usize] = match depth {
            5 => &[4, 8, 8, 5, 3],
            7 => &[4, 8, 8, 6, 5, 3, 2],
            9 => &[4, 8, 8, 6, 6, 5, 4, 3, 2],
            11 => &[4, 8, 8, 8, 6, 6, 6, 5, 4, 3, 2],
            13 => &[4, 8, 8, 8, 8, 8, 6, 6, 6, 5, 4, 3, 2],
            _ => return None,
        };
        Some(Self { widths })
    }

    /// The ranks along the path to each node, level by level.
    fn paths(self) -> Vec<Vec<usize>> {
        let mut paths = Vec::new();
        for (depth, &width) in (1..).zip(self.widths) {
            for idx in 0..width {
                paths.push(match (depth, idx) {
                    (1, rank) => vec![rank],
                    // The second level has no room for the last of the tails.
                    (2, 7) => vec![3, 0],
                    (2, idx) => TAILS[idx][1..].to_vec(),
                    (_, idx) => [&vec![0; depth - 3][..], &TAILS[idx]].concat(),
                });
            }
        }
        paths
    }

    /// The tree over what the slots of a group say; as deep as there are slots.
    pub(crate) fn over(self, slots: &Slots) -> DraftTree {
        let mut tree = DraftTree::default();
        for path in self.paths().into_iter().filter(|path| path.len() <= slots.len()) {
            let (mut parent, mut before) = (None, 0);
            for (slot, rank) in path.into_iter().enumerate() {
                let Some(ranked) = slots.behind(slot, before) else { break };
                let (token, logit) = ranked[rank];
                // A slot that is not sure of so many tokens leaves the place out, and all behind it.
                if !logit.is_finite() {
                    break;
                }
                parent = Some(tree.push_from(DraftSource::Semantic, token, parent, 1.0));
                before = token;
            }
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank;

    #[test]
    fn levels_have_the_published_widths_and_every_parent_is_there() {
        for depth in PublishedTree::DEPTHS {
            let tree = PublishedTree::of_depth(depth).expect("published");
            let paths = tree.paths();
            assert_eq!(tree.widths.len(), depth);
            for (idx, path) in paths.iter().enumerate() {
                assert!(!paths[..idx].contains(path), "{path:?} twice");
                let is_there = path.len() == 1 || paths[..idx].contains(&path[..path.len() - 1].to_vec());
                assert!(is_there, "{path:?} has no parent");
            }
            let slots = |n: usize| Slots::new(vec![rank(&[3.0, 2.0, 1.0, 0.5, 0.1]); n], 0, None);
            assert_eq!(tree.over(&slots(depth)).nodes().len(), tree.widths.iter().sum::<usize>());
            assert!(tree.over(&slots(2)).nodes().iter().all(|node| node.depth <= 2));
        }
        assert_eq!(PublishedTree::of_depth(6), None);
        let few = Slots::new(vec![rank(&[1.0, 0.0]); 5], 0, None);
        let tree = PublishedTree::of_depth(5).expect("published").over(&few);
        assert!(tree.nodes().iter().all(|node| node.token < 2));
    }
}
