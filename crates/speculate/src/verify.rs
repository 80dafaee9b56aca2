//! Exact verification.

use crate::DraftTree;

/// What of a draft tree the target confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Accepted nodes, from the first draft on.
    pub path: Vec<usize>,
    /// The target's own token after the accepted path.
    pub next: u32,
}

/// Walks down `drafts` along the target's own draws.
///
/// At each visited node `draw` gives the target's token after it (`None` stands for the last
/// committed token). It is called once per node. If a child carries the drawn token the walk
/// descends, otherwise the drawn token is the answer. Every emitted token is therefore the
/// target's own draw, so the rule is exact for any tree whose construction did not look at the
/// draws, and for any sampler.
///
/// # Errors
/// Those of `draw`.
pub fn sample_match<E>(
    drafts: &DraftTree,
    mut draw: impl FnMut(Option<usize>) -> Result<u32, E>,
) -> Result<Verified, E> {
    let mut path = Vec::new();
    loop {
        let stop = path.last().copied();
        let token = draw(stop)?;
        match drafts.child(stop, token) {
            Some(child) => path.push(child),
            None => return Ok(Verified { path, next: token }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_visited_node_is_drawn_once() {
        let mut tree = DraftTree::chain(&[1, 2]);
        tree.push(3, None);
        let mut visited = Vec::new();
        let verified = sample_match(&tree, |node| {
            visited.push(node);
            Ok::<_, ()>(if node.is_none() { 3 } else { 2 })
        });
        assert_eq!(verified, Ok(Verified { path: vec![2], next: 2 }));
        assert_eq!(visited, [None, Some(2)]);
    }

    #[test]
    fn no_drafts_emit_the_targets_token() {
        let verified = sample_match(&DraftTree::default(), |_| Ok::<_, ()>(8));
        assert_eq!(verified, Ok(Verified { path: vec![], next: 8 }));
    }
}
