//! A suffix automaton over tokens, built online (Blumer et al. 1985).

use std::collections::HashMap;

/// How far up the suffix links a count is carried. Text that repeats one token would else make
/// every step as long as the repetition.
const MAX_COUNTED_LINKS: usize = 48;
const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct State {
    /// Length of the longest string of the state.
    len: u32,
    link: u32,
    /// How often its strings occur, roughly.
    count: u32,
    /// Most states have one edge, so a list beats a map; the root has a map.
    first_edge: u32,
}

#[derive(Clone, Debug)]
struct Edge {
    token: u32,
    target: u32,
    next: u32,
}

/// Where a text stands in the automaton: its longest suffix that occurs there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    state: u32,
    /// Length of that suffix in tokens.
    pub(crate) len: u32,
}

/// All substrings of a growing text.
#[derive(Clone, Debug)]
pub(crate) struct SuffixAutomaton {
    states: Vec<State>,
    edges: Vec<Edge>,
    root_edges: HashMap<u32, u32>,
    last: u32,
}

impl Default for SuffixAutomaton {
    fn default() -> Self {
        let root = State { len: 0, link: NONE, count: 0, first_edge: NONE };
        Self { states: vec![root], edges: Vec::new(), root_edges: HashMap::new(), last: 0 }
    }
}

impl SuffixAutomaton {
    /// Tokens so far.
    pub(crate) fn len(&self) -> usize {
        self.states[self.last as usize].len as usize
    }

    /// Adds a token to the text.
    pub(crate) fn push(&mut self, token: u32) {
        let len = self.states[self.last as usize].len + 1;
        let new = self.add(State { len, link: 0, count: 0, first_edge: NONE });
        let mut state = self.last;
        while state != NONE && self.target(state, token).is_none() {
            self.set_edge(state, token, new);
            state = self.states[state as usize].link;
        }
        if state != NONE
            && let Some(next) = self.target(state, token)
        {
            let next_len = self.states[state as usize].len + 1;
            if self.states[next as usize].len == next_len {
                self.states[new as usize].link = next;
            } else {
                let clone = self.clone_of(next, next_len);
                while state != NONE && self.target(state, token) == Some(next) {
                    self.set_edge(state, token, clone);
                    state = self.states[state as usize].link;
                }
                self.states[next as usize].link = clone;
                self.states[new as usize].link = clone;
            }
        }
        self.last = new;
        let link = |&state: &u32| Some(self.states[state as usize].link).filter(|&link| link != NONE);
        let counted: Vec<u32> = std::iter::successors(Some(new), link).take(MAX_COUNTED_LINKS).collect();
        counted.iter().for_each(|&state| self.states[state as usize].count += 1);
    }

    /// `place` after one more token of the text that stands there.
    pub(crate) fn advance(&self, mut place: Place, token: u32) -> Place {
        loop {
            if let Some(target) = self.target(place.state, token) {
                return Place { state: target, len: place.len + 1 };
            }
            match self.shorter(place) {
                Some(shorter) => place = shorter,
                None => return Place::default(),
            }
        }
    }

    /// A place again after [`push`](Self::push), which may have split its state.
    pub(crate) fn settle(&self, mut place: Place) -> Place {
        while place.state != 0
            && self.states[self.states[place.state as usize].link as usize].len >= place.len
        {
            place.state = self.states[place.state as usize].link;
        }
        place
    }

    /// The longest shorter suffix that occurs in other surroundings too.
    pub(crate) fn shorter(&self, place: Place) -> Option<Place> {
        let link = self.states[place.state as usize].link;
        (link != NONE).then(|| Place { state: link, len: self.states[link as usize].len })
    }

    /// What followed, with how often, at a place other than the root.
    pub(crate) fn continuations(&self, place: Place) -> impl Iterator<Item = (u32, u32, Place)> {
        let first = self.states[place.state as usize].first_edge;
        let edges =
            std::iter::successors(self.edges.get(first as usize), |edge| self.edges.get(edge.next as usize));
        edges.map(move |edge| {
            let next = Place { state: edge.target, len: place.len + 1 };
            (edge.token, self.states[edge.target as usize].count, next)
        })
    }

    fn add(&mut self, state: State) -> u32 {
        self.states.push(state);
        (self.states.len() - 1) as u32
    }

    fn clone_of(&mut self, state: u32, len: u32) -> u32 {
        let State { link, count, first_edge, .. } = self.states[state as usize];
        let clone = self.add(State { len, link, count, first_edge: NONE });
        let mut edge = first_edge;
        while edge != NONE {
            let Edge { token, target, next } = self.edges[edge as usize];
            self.set_edge(clone, token, target);
            edge = next;
        }
        clone
    }

    fn edge(&self, state: u32, token: u32) -> Option<usize> {
        let mut edge = self.states[state as usize].first_edge;
        while edge != NONE {
            if self.edges[edge as usize].token == token {
                return Some(edge as usize);
            }
            edge = self.edges[edge as usize].next;
        }
        None
    }

    fn target(&self, state: u32, token: u32) -> Option<u32> {
        match state {
            0 => self.root_edges.get(&token).copied(),
            _ => self.edge(state, token).map(|edge| self.edges[edge].target),
        }
    }

    fn set_edge(&mut self, state: u32, token: u32, target: u32) {
        if state == 0 {
            self.root_edges.insert(token, target);
        } else if let Some(edge) = self.edge(state, token) {
            self.edges[edge].target = target;
        } else {
            let next =
                std::mem::replace(&mut self.states[state as usize].first_edge, self.edges.len() as u32);
            self.edges.push(Edge { token, target, next });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a search through the text: the longest suffix that occurred before, and what
        /// followed it there.
        #[test]
        fn places_are_the_longest_repeated_suffixes(text in prop::collection::vec(0u32..3, 1..60)) {
            let mut automaton = SuffixAutomaton::default();
            let mut place = Place::default();
            for (n, &token) in text.iter().enumerate() {
                place = automaton.advance(place, token);
                automaton.push(token);
                place = automaton.settle(place);
                let seen = &text[..=n];
                let occurs = |len: usize| {
                    let suffix = &seen[seen.len() - len..];
                    (0..seen.len() - len).filter(|&at| &seen[at..at + len] == suffix).count()
                };
                let longest = (0..=n).rev().find(|&len| occurs(len) > 0).unwrap_or(0);
                prop_assert_eq!(place.len as usize, longest);
                if longest > 0 {
                    let suffix = &seen[seen.len() - longest..];
                    let mut expected: Vec<u32> = (0..seen.len() - longest)
                        .filter(|&at| &seen[at..at + longest] == suffix)
                        .map(|at| seen[at + longest])
                        .collect();
                    expected.sort_unstable();
                    expected.dedup();
                    let mut got: Vec<u32> = automaton.continuations(place).map(|(token, ..)| token).collect();
                    got.sort_unstable();
                    prop_assert_eq!(got, expected);
                }
            }
            prop_assert_eq!(automaton.len(), text.len());
        }
    }

    #[test]
    fn counts_say_how_often() {
        let mut automaton = SuffixAutomaton::default();
        [1, 2, 3, 9, 1, 2, 3, 9, 1, 2, 4].into_iter().for_each(|token| automaton.push(token));
        let place = [1, 2].into_iter().fold(Place::default(), |place, token| automaton.advance(place, token));
        let mut continuations: Vec<_> =
            automaton.continuations(place).map(|(token, count, _)| (token, count)).collect();
        continuations.sort_unstable();
        assert_eq!(continuations, [(3, 2), (4, 1)]);
    }

    #[test]
    fn a_long_repetition_stays_cheap() {
        let mut automaton = SuffixAutomaton::default();
        (0..100_000).for_each(|_| automaton.push(7));
        assert_eq!(automaton.len(), 100_000);
    }
}
