//! The row plan: what one forward pass computes, for every decoding mode.

use std::ops::Range;

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
    /// Whether it does not see the tokens that its layout sets aside. Rows that follow see them.
    pub is_blind: bool,
}

/// Where the tokens of a context stand.
///
/// Text after the cursor comes before the cursor's line in the cache, so that what is typed changes the end of
/// the cache only. Its tokens are **aside**: they neither see that line nor are seen by it, and the tokens
/// behind the line, which see everything, find them at the positions behind it. The first of them may be there
/// for the others aside only. Without tokens aside every token stands where it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Tokens aside, as indices into the context.
    pub aside: Range<usize>,
    /// Tokens of the line, which come right behind them.
    pub n_line: usize,
    /// Tokens at the beginning of those aside that no other token sees; they take no position from others.
    pub n_inner: usize,
}

impl Layout {
    /// The position of the token at `idx` of the context.
    pub fn position(&self, idx: usize) -> usize {
        let Self { aside, n_line, n_inner } = self;
        match idx {
            _ if aside.is_empty() || idx < aside.start => idx,
            _ if idx < aside.end => idx + n_line - n_inner,
            _ if idx < aside.end + n_line => idx - aside.len(),
            _ => idx - n_inner,
        }
    }

    /// The layout that tokens aside are computed in: as if the line were empty, so that nothing of what was
    /// typed enters.
    pub fn without_line(&self) -> Self {
        Self { n_line: self.n_inner, ..self.clone() }
    }

    /// Whether rows behind `n_committed` ones may have tokens hidden from them.
    pub fn hides(&self, n_committed: usize) -> bool {
        !self.aside.is_empty() && n_committed >= self.aside.end
    }

    /// The tokens that a row behind those aside does not see.
    pub fn hidden_from(&self, row: &Row) -> Range<usize> {
        let end = if row.is_blind { self.aside.end } else { self.aside.start + self.n_inner };
        self.aside.start..end
    }

    /// Whether the token at `idx` does not see those aside.
    pub fn is_blind(&self, idx: usize) -> bool {
        !self.aside.is_empty() && (self.aside.end..self.aside.end + self.n_line).contains(&idx)
    }
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
        Self::laid_out(n_committed, tokens, &Layout::default())
    }

    /// A plan that fills the cache with `tokens`, one after the other, where `layout` has them.
    pub fn laid_out(n_committed: usize, tokens: &[u32], layout: &Layout) -> Self {
        let mut plan = Self::new(n_committed);
        let mut parent = None;
        for (idx, &token) in tokens.iter().enumerate() {
            let row = plan.push_token(token, parent);
            plan.rows[row].position = layout.position(n_committed + idx);
            plan.rows[row].is_blind = layout.is_blind(n_committed + idx);
            parent = Some(row);
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
        self.rows.push(Row { input, parent, position, is_blind: false });
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
    fn tokens_aside_stand_behind_the_line() {
        // Two tokens, a mark for those aside, three aside, a line of three with its own mark, and what follows.
        let layout = Layout { aside: 2..6, n_line: 3, n_inner: 1 };
        let positions: Vec<usize> = (0..11).map(|idx| layout.position(idx)).collect();
        assert_eq!(positions, [0, 1, 4, 5, 6, 7, 2, 3, 4, 8, 9]);
        let alone: Vec<usize> = (2..6).map(|idx| layout.without_line().position(idx)).collect();
        assert_eq!(alone, [2, 3, 4, 5]);
        let blind: Vec<usize> = (0..11).filter(|&idx| layout.is_blind(idx)).collect();
        assert_eq!(blind, [6, 7, 8]);
        let mut plan = RowPlan::laid_out(7, &[1, 2, 3], &layout);
        let draft = plan.push_token(4, Some(2));
        assert_eq!(
            plan.rows().iter().map(|row| layout.hidden_from(row)).collect::<Vec<_>>(),
            [2..6, 2..6, 2..3, 2..3]
        );
        let rows: Vec<_> = plan.rows().iter().map(|row| (row.position, row.is_blind)).collect();
        assert_eq!((rows, draft), (vec![(3, true), (4, true), (8, false), (9, false)], 3));
    }

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
