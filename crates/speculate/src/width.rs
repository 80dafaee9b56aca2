//! How wide a pass should be: what its rows cost, and what they are expected to bring.

/// No pass takes as long, in milliseconds; what is said to is no measurement.
const DAY_MS: f64 = 86_400_000.0;

/// What a forward pass costs, against its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct PassCosts {
    /// Rows and milliseconds, ascending in both.
    points: Vec<(usize, f64)>,
    /// Milliseconds that adaptive rows add to a pass, whatever their number: their deltas are read.
    adaptive_ms: f64,
    /// Whether they are another device's, which times of passes here say nothing of.
    is_given: bool,
}

impl PassCosts {
    /// From measurements: rows and milliseconds. More rows never cost less: where a measurement says so,
    /// that is noise. `None` when there is none, or one is not a positive number of less than a day.
    pub fn new(mut points: Vec<(usize, f64)>) -> Option<Self> {
        points.sort_by_key(|&(n_rows, _)| n_rows);
        points.dedup_by_key(|&mut (n_rows, _)| n_rows);
        let is_sound = |&(n_rows, ms): &(usize, f64)| n_rows > 0 && ms > 0.0 && ms < DAY_MS;
        if points.is_empty() || !points.iter().all(is_sound) {
            return None;
        }
        let mut largest = 0.0f64;
        for (_, ms) in &mut points {
            largest = largest.max(*ms);
            *ms = largest;
        }
        Some(Self { points, adaptive_ms: 0.0, is_given: false })
    }

    /// The same, and what adaptive rows add to a pass in milliseconds: from the measured cost of a pass
    /// with `n_rows` rows, adaptive ones among them.
    pub fn with_adaptive(mut self, n_rows: usize, ms: f64) -> Self {
        let more = ms - self.of(n_rows);
        self.adaptive_ms = if more.is_finite() { more.max(0.0) } else { 0.0 };
        self
    }

    /// The same as costs of another device, which stay as they are however long passes take here.
    pub fn given(self) -> Self {
        Self { is_given: true, ..self }
    }

    /// Milliseconds that adaptive rows add to a pass.
    pub fn adaptive_ms(&self) -> f64 {
        self.adaptive_ms
    }

    /// A device on which rows cost nothing: what a wide GPU comes near to.
    pub fn flat() -> Self {
        Self { points: vec![(1, 1.0)], adaptive_ms: 0.0, is_given: true }
    }

    /// A device on which each row beyond the first costs `share` of a pass over one.
    pub fn linear(share: f64) -> Self {
        let points = vec![(1, 1.0), (1001, 1.0 + 1000.0 * share.max(0.0))];
        Self { points, adaptive_ms: 0.0, is_given: false }
    }

    /// Milliseconds of a pass over `n_rows` rows: between two measurements along a line, beyond the last
    /// along the line through the last two, or through the first and the last where that is steeper: devices that
    /// compute rows by the tile have measurements beside each other that are alike.
    pub fn of(&self, n_rows: usize) -> f64 {
        let n_rows = n_rows.max(1);
        let above = self.points.partition_point(|&(n, _)| n < n_rows);
        let line = match (above, self.points.len()) {
            (_, 1) => return self.points[0].1,
            (0, _) => return self.points[0].1,
            (above, len) if above == len => {
                let last = self.points[len - 1];
                let slope = |from: (usize, f64)| (last.1 - from.1) / (last.0 - from.0) as f64;
                let (before, first) = (self.points[len - 2], self.points[0]);
                [if slope(before) >= slope(first) { before } else { first }, last]
            }
            (above, _) => [self.points[above - 1], self.points[above]],
        };
        let [(n0, ms0), (n1, ms1)] = line;
        ms0 + (ms1 - ms0) * (n_rows as f64 - n0 as f64) / (n1 - n0) as f64
    }

    /// A pass over `n_rows` rows took `ms`: what is known of passes of about that size follows, and of others
    /// less. Machines change their pace, and not for all widths alike: memory and arithmetic have a
    /// pace of their own.
    pub fn observe(&mut self, n_rows: usize, ms: f64) {
        let ratio = ms / self.of(n_rows);
        if self.is_given || !ratio.is_finite() || self.points.len() < 2 {
            return;
        }
        // One pass that was held up says little.
        let change = ratio.clamp(0.67, 1.5) - 1.0;
        for (n, ms) in &mut self.points {
            let distance = ((n_rows.max(1) as f64) / *n as f64).ln().abs();
            *ms *= 1.0 + 0.05 * (-distance).exp() * change;
        }
        let mut largest = 0.0f64;
        for (_, ms) in &mut self.points {
            largest = largest.max(*ms);
            *ms = largest;
        }
    }

    /// Rows and milliseconds.
    pub fn points(&self) -> &[(usize, f64)] {
        &self.points
    }
}

/// What a width was chosen for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Drafts to verify.
    pub n_drafts: usize,
    /// Drafts that the drafters offered.
    pub n_offered: usize,
    /// Adaptive groups.
    pub n_groups: usize,
    /// Slots of each group.
    pub n_slots: usize,
    /// Tokens that the pass is expected to emit.
    pub expected_tokens: f64,
    /// What the groups are expected to add to the next pass, in tokens.
    pub expected_ahead: f64,
    /// What the pass costs, in passes over the pending tokens alone.
    pub relative_cost: f64,
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { n_drafts, n_offered, n_groups, n_slots, expected_tokens, expected_ahead, relative_cost } =
            self;
        if *n_drafts == 0 && *n_groups == 0 {
            return write!(f, "ordinary: none of {n_offered} drafts is worth its row");
        }
        write!(f, "{n_drafts} of {n_offered} drafts, {n_groups} groups of {n_slots}: ")?;
        write!(f, "{expected_tokens:.2} tokens and {expected_ahead:.2} ahead for {relative_cost:.2} passes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_run_along_the_measurements() {
        let costs = PassCosts::new(vec![(8, 20.0), (1, 10.0), (2, 9.0), (4, 12.0)]).expect("sound");
        let at = [0, 1, 2, 3, 4, 6, 8, 16].map(|n| costs.of(n));
        assert_eq!(at, [10.0, 10.0, 10.0, 11.0, 12.0, 16.0, 20.0, 36.0]);
        assert_eq!(PassCosts::flat().of(1), PassCosts::flat().of(64));
        assert!((PassCosts::linear(0.1).of(11) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn rows_beyond_the_last_measurement_are_not_free() {
        let tiles = PassCosts::new(vec![(1, 10.0), (16, 20.0), (24, 41.0), (32, 41.0)]).expect("sound");
        assert_eq!([tiles.of(32), tiles.of(63)], [41.0, 72.0]);
        let steeper = PassCosts::new(vec![(1, 10.0), (16, 10.0), (32, 42.0)]).expect("sound");
        assert_eq!(steeper.of(64), 106.0);
    }

    #[test]
    fn costs_follow_the_pace_of_the_machine() {
        let mut costs = PassCosts::new(vec![(1, 10.0), (8, 15.0), (32, 40.0)]).expect("sound");
        for _ in 0..300 {
            costs.observe(1, 7.0);
            costs.observe(8, 15.0);
        }
        assert!((costs.of(1) - 7.0).abs() < 0.5 && (costs.of(8) - 15.0).abs() < 0.7, "{costs:?}");
        costs.observe(1, 1e9);
        costs.observe(1, f64::NAN);
        assert!(costs.of(1) < 8.0, "{costs:?}");
    }

    #[test]
    fn costs_of_another_device_stay() {
        let measured = PassCosts::new(vec![(1, 10.0), (8, 15.0)]).expect("sound");
        for costs in [PassCosts::flat(), measured.given()] {
            let mut observed = costs.clone();
            observed.observe(4, 100.0);
            assert_eq!(observed, costs);
        }
    }

    #[test]
    fn unsound_measurements_are_refused() {
        for points in [vec![], vec![(0, 1.0)], vec![(1, f64::NAN)], vec![(1, 0.0)], vec![(1, 1.0), (2, -1.0)]]
        {
            assert_eq!(PassCosts::new(points), None);
        }
    }
}
