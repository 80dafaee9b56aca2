//! Noticing that a model goes round in circles.

/// Longest text that is looked for again and again, in characters.
const MAX_PERIOD: usize = 100;
/// How often it must come in a row, and how many characters that must be: rulers and tables repeat themselves too.
const MIN_TIMES: usize = 5;
const MIN_CHARACTERS: usize = 120;

/// For each period, how many characters at the end are those that stand so far before them.
#[derive(Clone, Debug)]
pub(super) struct Repetition {
    n_alike: [usize; MAX_PERIOD + 1],
}

impl Default for Repetition {
    fn default() -> Self {
        Self { n_alike: [0; MAX_PERIOD + 1] }
    }
}

impl Repetition {
    /// Takes the last character of `text`. Says whether the text goes round in circles by now.
    pub(super) fn push(&mut self, text: &[char]) -> bool {
        let Some((last, before)) = text.split_last() else { return false };
        let mut is_repeated = false;
        for (period, n_alike) in self.n_alike.iter_mut().enumerate().skip(1) {
            let is_alike = before.len().checked_sub(period).is_some_and(|at| before[at] == *last);
            *n_alike = if is_alike { *n_alike + 1 } else { 0 };
            // The first time is alike to nothing.
            is_repeated |= *n_alike + period >= (MIN_TIMES * period).max(MIN_CHARACTERS);
        }
        is_repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends_at(text: &str) -> Option<usize> {
        let text: Vec<char> = text.chars().collect();
        let mut repetition = Repetition::default();
        (1..=text.len()).find(|&n| repetition.push(&text[..n]))
    }

    #[test]
    fn circles_are_noticed_and_rulers_are_not() {
        let line = "    print(value, end='')\n";
        assert_eq!(ends_at(&line.repeat(9)), Some(5 * line.len()));
        assert_eq!(ends_at(&format!("x = f({}", "a, ".repeat(90))), Some(6 + 120));
        assert_eq!(ends_at(&format!("# {}\n", "-".repeat(78))), None);
        assert_eq!(ends_at(&format!("{}done\n", line.repeat(4))), None);
        let table: String = (0..40).map(|n| format!("    {n}: '{}',\n", n * 7919 % 1013)).collect();
        assert_eq!(ends_at(&table), None);
    }
}
