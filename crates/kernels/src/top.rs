//! The largest logits of a row, found while they are computed.

/// How many are kept.
pub const N_TOP: usize = 8;

/// Index and logit of the largest logits of a row, largest first; of equal ones the lowest index first.
/// Unused places hold the highest index and the lowest logit. When any logit of the row is NaN, the
/// first entry's is.
pub type TopLogits = [(u32, f32); N_TOP];

/// [`TopLogits`] in the making. Logits arrive in any order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Top {
    entries: TopLogits,
    has_nan: bool,
}

impl Default for Top {
    fn default() -> Self {
        Self { entries: [(u32::MAX, f32::NEG_INFINITY); N_TOP], has_nan: false }
    }
}

/// Whether `a` comes before `b`.
fn comes_first(a: (u32, f32), b: (u32, f32)) -> bool {
    a.1 > b.1 || (a.1 == b.1 && a.0 < b.0)
}

impl Top {
    /// Takes the logits of the indices from `first` on.
    #[inline]
    pub(crate) fn push_tile(&mut self, first: u32, logits: &[f32]) {
        // Almost always nothing gets in, and one look at the whole tile says so. NaN compares as
        // neither, hence the form of the test.
        let last = self.entries[N_TOP - 1].1;
        let is_in = |logit: &f32| (*logit < last) as u32;
        if logits.iter().map(is_in).sum::<u32>() == logits.len() as u32 {
            return;
        }
        for (idx, &logit) in logits.iter().enumerate() {
            self.push((first + idx as u32, logit));
        }
    }

    fn push(&mut self, entry: (u32, f32)) {
        self.has_nan |= entry.1.is_nan();
        if !comes_first(entry, self.entries[N_TOP - 1]) {
            return;
        }
        let place = self.entries.iter().position(|&other| comes_first(entry, other)).unwrap_or(N_TOP - 1);
        self.entries.copy_within(place..N_TOP - 1, place + 1);
        self.entries[place] = entry;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.has_nan |= other.has_nan;
        other.entries.iter().for_each(|&entry| self.push(entry));
    }

    pub(crate) fn finish(mut self) -> TopLogits {
        if self.has_nan {
            self.entries[0].1 = f32::NAN;
        }
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_found_in_order_with_ties_to_the_lowest_index() {
        let mut state = 1u32;
        for len in [1, 3, 8, 16, 17, 300] {
            let logits: Vec<f32> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((state >> 24) % 40) as f32
                })
                .collect();
            let mut expected: Vec<(u32, f32)> =
                logits.iter().enumerate().map(|(i, &logit)| (i as u32, logit)).collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            expected.resize(expected.len().max(N_TOP), (u32::MAX, f32::NEG_INFINITY));
            expected.truncate(N_TOP);
            let mut whole = Top::default();
            for (idx, tile) in logits.chunks(16).enumerate() {
                whole.push_tile((idx * 16) as u32, tile);
            }
            assert_eq!(whole.finish()[..], expected);
            // Merged from halves in the other order.
            let mut halves = [Top::default(); 2];
            for (idx, &logit) in logits.iter().enumerate() {
                halves[usize::from(idx < len / 2)].push_tile(idx as u32, &[logit]);
            }
            let [mut high, low] = halves;
            high.merge(&low);
            assert_eq!(high.finish()[..], expected);
        }
    }

    #[test]
    fn a_nan_anywhere_is_seen() {
        for at in [0, 7, 40, 63] {
            let mut logits = [5.0f32; 64];
            logits[at] = f32::NAN;
            let mut top = Top::default();
            logits.chunks(16).enumerate().for_each(|(idx, tile)| top.push_tile((idx * 16) as u32, tile));
            let mut merged = Top::default();
            merged.merge(&top);
            assert!(merged.finish()[0].1.is_nan());
        }
    }
}
