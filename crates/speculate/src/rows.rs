//! The row plan: what one forward pass computes, for every decoding mode.

/// What a row feeds into the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowInput {
    /// A token of the vocabulary.
    Token(u32),
    /// A semantic adaptive token: the slot (0-based) within its group.
    Adaptive(usize),
}

/// One row of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The row's input.
    pub input: RowInput,
    /// The row it follows; `None` follows the last committed row of the cache.
    pub parent: Option<usize>,
    /// Absolute position, the parent's plus one.
    pub position: usize,
}

/// The rows of one forward pass, in the order in which they are written to the cache.
///
/// A row sees all committed rows, its ancestors in the plan, and itself. The builder keeps three
/// invariants, on which losslessness rests: parents come before children, token rows come before
/// adaptive rows, and no token row has an adaptive ancestor.
#[derive(Clone, Debug, Default)]
pub struct RowPlan {
    n_committed: usize,
    rows: Vec<Row>,
    n_token_rows: usize,
    logit_rows: Vec<usize>,
    wanted: Vec<Wanted>,
}

/// What of a row's logits is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them, and the likeliest tokens.
    All,
    /// The likeliest tokens.
    Ranked,
    /// Likely tokens to draft: a target may look among the commonest tokens only.
    Drafts,
}

impl RowPlan {
    /// An empty plan on top of `n_committed` rows of the cache.
    pub fn new(n_committed: usize) -> Self {
        Self { n_committed, ..Self::default() }
    }

    /// A plan that only fills the cache with `tokens`, one after the other.
    pub fn prefill(n_committed: usize, tokens: &[u32]) -> Self {
        let mut plan = Self::new(n_committed);
        let mut parent = None;
        for &token in tokens {
            parent = Some(plan.push_token(token, parent));
        }
        plan
    }

    /// Adds a token row after `parent` and returns its index.
    ///
    /// # Panics
    /// When the plan already holds adaptive rows, or `parent` is not a row of the plan.
    pub fn push_token(&mut self, token: u32, parent: Option<usize>) -> usize {
        assert_eq!(self.n_token_rows, self.rows.len(), "token rows come before adaptive rows");
        self.n_token_rows += 1;
        self.push(RowInput::Token(token), parent)
    }

    /// Adds a group of `n_slots` adaptive rows, a chain that hangs off the token row `anchor`.
    /// Returns the index of the first.
    ///
    /// # Panics
    /// When `anchor` is not a token row of the plan.
    pub fn push_adaptive_group(&mut self, anchor: usize, n_slots: usize) -> usize {
        assert!(anchor < self.n_token_rows, "an adaptive group hangs off a token row");
        let first = self.rows.len();
        let mut parent = anchor;
        for slot in 0..n_slots {
            parent = self.push(RowInput::Adaptive(slot), Some(parent));
        }
        first
    }

    fn push(&mut self, input: RowInput, parent: Option<usize>) -> usize {
        let position = match parent {
            Some(parent) => self.rows[parent].position + 1,
            None => self.n_committed,
        };
        self.rows.push(Row { input, parent, position });
        self.rows.len() - 1
    }

    /// Asks for all logits of `row`. Logits come back in the order in which they were asked for.
    /// Returns the index among them.
    pub fn want_logits(&mut self, row: usize) -> usize {
        self.want(row, Wanted::All)
    }

    /// Asks for the likeliest tokens after `row` only, which costs a target less.
    pub fn want_ranked(&mut self, row: usize) -> usize {
        self.want(row, Wanted::Ranked)
    }

    /// Asks for tokens to draft after `row`, which costs a target least.
    pub fn want_drafts(&mut self, row: usize) -> usize {
        self.want(row, Wanted::Drafts)
    }

    fn want(&mut self, row: usize, wanted: Wanted) -> usize {
        assert!(row < self.rows.len(), "logits of a row outside the plan");
        self.logit_rows.push(row);
        self.wanted.push(wanted);
        self.logit_rows.len() - 1
    }

    /// Number of rows in the cache that every row of this plan sees.
    pub fn n_committed(&self) -> usize {
        self.n_committed
    }

    /// All rows, token rows first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Number of token rows; the rows from this index on are adaptive.
    pub fn n_token_rows(&self) -> usize {
        self.n_token_rows
    }

    /// Rows whose logits are wanted, in the order of the answer.
    pub fn logit_rows(&self) -> &[usize] {
        &self.logit_rows
    }

    /// What is wanted of each of [`logit_rows`](Self::logit_rows).
    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// The rows that `row` sees besides the committed ones: its ancestors in order, then itself.
    pub fn visible(&self, row: usize) -> Vec<usize> {
        let mut path = Vec::new();
        self.visible_into(row, &mut path);
        path
    }

    /// [`visible`](Self::visible) into a vector that is kept.
    pub fn visible_into(&self, row: usize, path: &mut Vec<usize>) {
        path.clear();
        path.extend(std::iter::successors(Some(row), |&row| self.rows[row].parent));
        path.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_their_ancestors_only() {
        let mut plan = RowPlan::new(7);
        let root = plan.push_token(1, None);
        let left = plan.push_token(2, Some(root));
        let right = plan.push_token(3, Some(root));
        let group = plan.push_adaptive_group(left, 2);
        assert_eq!(plan.visible(right), [root, right]);
        assert_eq!(plan.visible(group + 1), [root, left, group, group + 1]);
        assert_eq!(plan.rows()[group + 1].position, 10);
        assert_eq!(plan.n_token_rows(), 3);
    }

    #[test]
    #[should_panic(expected = "token rows come before adaptive rows")]
    fn a_token_row_after_an_adaptive_row_is_refused() {
        let mut plan = RowPlan::new(0);
        let root = plan.push_token(1, None);
        plan.push_adaptive_group(root, 1);
        plan.push_token(2, Some(root));
    }

    #[test]
    #[should_panic(expected = "hangs off a token row")]
    fn a_group_after_an_adaptive_row_is_refused() {
        let mut plan = RowPlan::new(0);
        let root = plan.push_token(1, None);
        let group = plan.push_adaptive_group(root, 1);
        plan.push_adaptive_group(group, 1);
    }
}
