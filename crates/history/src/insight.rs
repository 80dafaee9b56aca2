//! What the history says, as figures and plots.

use std::collections::BTreeMap;

use engine::AcceptedDrafts;
use rusqlite::{Row, params};
use serde::Serialize;
use ts_rs::TS;

use crate::store::{Fate, History, HistoryError};

/// Milliseconds of an hour.
const HOUR_MS: i64 = 3_600_000;
/// Milliseconds of a day.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// What the history says of a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, TS)]
#[ts(export)]
pub struct Insight {
    /// Completions that were shown.
    pub n_shown: usize,
    /// Those that were accepted whole.
    pub n_accepted: usize,
    /// Those of which a part was.
    pub n_partly_accepted: usize,
    /// Those that were put away.
    pub n_dismissed: usize,
    /// Characters that nobody had to type.
    pub n_accepted_chars: usize,
    /// Those since the beginning of today.
    pub n_accepted_chars_today: usize,
    /// From the request to the first text in milliseconds: half were quicker.
    pub first_text_p50_ms: f64,
    /// 95 of 100 were quicker.
    pub first_text_p95_ms: f64,
    /// Tokens per forward pass.
    pub mean_accepted_tokens: f64,
    /// Share of the prompts' tokens that a cache had.
    pub reused_share: f64,
    /// The same by day, or where it is one day by hour, oldest first; those without completions are left out.
    pub periods: Vec<Period>,
    /// Acceptance by place of a draft.
    pub slots: Vec<SlotShare>,
    /// Accepted drafts by drafter, most first.
    pub drafters: Vec<DrafterShare>,
}

/// A day or an hour.
#[derive(Clone, Debug, Default, PartialEq, Serialize, TS)]
#[ts(export)]
pub struct Period {
    /// Its beginning, in milliseconds since 1970.
    #[ts(type = "number")]
    pub start_ms: i64,
    /// Completions that were shown.
    pub n_shown: usize,
    /// Those of which something was accepted.
    pub n_accepted: usize,
    /// Waiting for other requests, in the middle: milliseconds.
    pub queue_ms: f64,
    /// To the first token, in the middle: milliseconds.
    pub prefill_ms: f64,
    /// From there to the end, in the middle: milliseconds.
    pub decode_ms: f64,
    /// From the request to the first text: 95 of 100 were quicker, in milliseconds.
    pub first_text_p95_ms: f64,
    /// Tokens per second, in the middle of those completions that have a speed.
    pub tokens_per_s: f64,
    /// Tokens per forward pass.
    pub mean_accepted_tokens: f64,
}

/// A place of a draft.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
#[ts(export)]
pub struct SlotShare {
    /// Drafts that were verified there.
    pub n_drafted: usize,
    /// Those that were accepted.
    pub n_accepted: usize,
}

/// A drafter.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
#[ts(export)]
pub struct DrafterShare {
    /// Its name.
    pub drafter: String,
    /// Drafts of it that were accepted.
    pub n_accepted: usize,
}

struct Record {
    at_ms: i64,
    fate: i64,
    n_accepted_chars: usize,
    queue_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    tokens_per_s: f64,
    n_tokens: usize,
    n_steps: usize,
    n_prompt_tokens: usize,
    n_reused_tokens: usize,
    slots: String,
    drafters: String,
}

impl Record {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let count = |name: &str| row.get::<_, i64>(name).map(|n| usize::try_from(n).unwrap_or(0));
        Ok(Self {
            at_ms: row.get("at_ms")?,
            fate: row.get("fate")?,
            n_accepted_chars: count("n_accepted_chars")?,
            queue_ms: row.get("queue_ms")?,
            prefill_ms: row.get("prefill_ms")?,
            decode_ms: row.get("decode_ms")?,
            tokens_per_s: row.get("tokens_per_s")?,
            n_tokens: count("n_tokens")?,
            n_steps: count("n_steps")?,
            n_prompt_tokens: count("n_prompt_tokens")?,
            n_reused_tokens: count("n_reused_tokens")?,
            slots: row.get("slots")?,
            drafters: row.get("drafters")?,
        })
    }

    fn first_text_ms(&self) -> f64 {
        self.queue_ms + self.prefill_ms
    }

    fn is_accepted(&self) -> bool {
        self.fate == Fate::Accepted.code() || self.fate == Fate::PartlyAccepted.code()
    }
}

impl History {
    /// What the last `n_days` say. `today_ms` is the beginning of today where the user is.
    ///
    /// # Errors
    /// [`HistoryError::Database`].
    pub fn insight(&self, today_ms: i64, n_days: u32) -> Result<Insight, HistoryError> {
        let since = today_ms - i64::from(n_days.saturating_sub(1)) * DAY_MS;
        let read = || -> rusqlite::Result<Vec<Record>> {
            let mut statement = self.connection.prepare("SELECT * FROM completions WHERE at_ms >= ?1")?;
            let records = statement.query_map(params![since], Record::of)?;
            records.collect()
        };
        let records = read().map_err(|source| self.error(source))?;
        let period_ms = if n_days <= 1 { HOUR_MS } else { DAY_MS };
        Ok(insight_of(&records, today_ms, period_ms))
    }
}

fn insight_of(records: &[Record], today_ms: i64, period_ms: i64) -> Insight {
    let mut periods = BTreeMap::<i64, Vec<&Record>>::new();
    let mut slots: Vec<SlotShare> = Vec::new();
    let mut drafters = BTreeMap::<String, usize>::new();
    for record in records {
        periods.entry((record.at_ms - today_ms).div_euclid(period_ms)).or_default().push(record);
        let of_record: Vec<[f64; 2]> = serde_json::from_str(&record.slots).unwrap_or_default();
        for (idx, [n_drafted, n_accepted]) in of_record.into_iter().enumerate() {
            if idx == slots.len() {
                slots.push(SlotShare { n_drafted: 0, n_accepted: 0 });
            }
            slots[idx].n_drafted += n_drafted as usize;
            slots[idx].n_accepted += n_accepted as usize;
        }
        let of_record: Vec<AcceptedDrafts> = serde_json::from_str(&record.drafters).unwrap_or_default();
        for AcceptedDrafts { drafter, n_accepted } in of_record {
            *drafters.entry(drafter).or_default() += n_accepted;
        }
    }
    let mut drafters: Vec<DrafterShare> =
        drafters.into_iter().map(|(drafter, n_accepted)| DrafterShare { drafter, n_accepted }).collect();
    drafters.sort_by_key(|share| std::cmp::Reverse(share.n_accepted));
    let with = |fate: Fate| records.iter().filter(|record| record.fate == fate.code()).count();
    let sum = |of: fn(&Record) -> usize| records.iter().map(of).sum::<usize>();
    let today = records.iter().filter(|record| record.at_ms >= today_ms);
    Insight {
        n_shown: records.len(),
        n_accepted: with(Fate::Accepted),
        n_partly_accepted: with(Fate::PartlyAccepted),
        n_dismissed: with(Fate::Dismissed),
        n_accepted_chars: sum(|record| record.n_accepted_chars),
        n_accepted_chars_today: today.map(|record| record.n_accepted_chars).sum(),
        first_text_p50_ms: percentile(records.iter().map(Record::first_text_ms), 0.5),
        first_text_p95_ms: percentile(records.iter().map(Record::first_text_ms), 0.95),
        mean_accepted_tokens: ratio(sum(|record| record.n_tokens), sum(|record| record.n_steps)),
        reused_share: ratio(sum(|record| record.n_reused_tokens), sum(|record| record.n_prompt_tokens)),
        periods: periods.into_iter().map(|(n, records)| period(today_ms + n * period_ms, &records)).collect(),
        slots,
        drafters,
    }
}

fn period(start_ms: i64, records: &[&Record]) -> Period {
    let median = |of: fn(&Record) -> f64| percentile(records.iter().map(|record| of(record)), 0.5);
    let sum = |of: fn(&Record) -> usize| records.iter().map(|record| of(record)).sum::<usize>();
    let speeds = records.iter().map(|record| record.tokens_per_s).filter(|&speed| speed > 0.0);
    Period {
        start_ms,
        n_shown: records.len(),
        n_accepted: records.iter().filter(|record| record.is_accepted()).count(),
        queue_ms: median(|record| record.queue_ms),
        prefill_ms: median(|record| record.prefill_ms),
        decode_ms: median(|record| record.decode_ms),
        first_text_p95_ms: percentile(records.iter().map(|record| record.first_text_ms()), 0.95),
        tokens_per_s: percentile(speeds, 0.5),
        mean_accepted_tokens: ratio(sum(|record| record.n_tokens), sum(|record| record.n_steps)),
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn percentile(values: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let idx = (values.len() as f64 * share) as usize;
    values.get(idx.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use engine::{Completion, StopReason};

    use super::*;
    use crate::Entry;

    const TODAY: i64 = 20_000 * DAY_MS;

    fn completion(text: &str, ttft_ms: f64) -> Completion {
        Completion {
            text: text.to_owned(),
            n_tokens: 6,
            n_steps: 3,
            n_drafted: 8,
            n_accepted: 3,
            accepted_per_slot: vec![0.75, 0.5],
            drafted_per_slot: vec![4, 2],
            mean_accepted_tokens: 2.0,
            mean_rows: 3.0,
            accepted_by_drafter: vec![AcceptedDrafts { drafter: "suffix".to_owned(), n_accepted: 3 }],
            ttft_ms,
            tokens_per_s: 40.0,
            total_ms: ttft_ms + 100.0,
            n_prompt_tokens: 100,
            n_reused_tokens: 75,
            stop_reason: StopReason::EndOfBlock,
            alternatives: Vec::new(),
            tokens: Vec::new(),
        }
    }

    fn add(history: &History, at_ms: i64, ttft_ms: f64) -> i64 {
        let completion = completion("secret text", ttft_ms);
        let entry = Entry { at_ms, client: "editor", model: "m", queue_ms: 1.0, completion: &completion };
        history.add(&entry).expect("adds")
    }

    fn history() -> (tempfile::TempDir, History) {
        let folder = tempfile::tempdir().expect("a folder");
        let history = History::open(folder.path().join("state/history.sqlite")).expect("opens");
        (folder, history)
    }

    #[test]
    fn figures_are_what_was_added() {
        let (_folder, history) = history();
        let yesterday = add(&history, TODAY - 1, 50.0);
        history.resolve(yesterday, Fate::Accepted, 11).expect("resolves");
        for ttft_ms in [10.0, 20.0, 30.0] {
            add(&history, TODAY + 5, ttft_ms);
        }
        let last = add(&history, TODAY + 6, 40.0);
        history.resolve(last, Fate::PartlyAccepted, 400).expect("resolves");
        history.resolve(last + 7, Fate::Accepted, 1).expect("what is not there is nothing to do");
        let insight = history.insight(TODAY, 7).expect("reads");
        assert_eq!((insight.n_shown, insight.n_accepted, insight.n_partly_accepted), (5, 1, 1));
        assert_eq!(
            (insight.n_accepted_chars, insight.n_accepted_chars_today),
            (22, 11),
            "no more than it had"
        );
        assert_eq!((insight.first_text_p50_ms, insight.first_text_p95_ms), (31.0, 51.0));
        assert_eq!((insight.mean_accepted_tokens, insight.reused_share), (2.0, 0.75));
        assert_eq!(insight.slots[1], SlotShare { n_drafted: 10, n_accepted: 5 });
        assert_eq!(insight.drafters, [DrafterShare { drafter: "suffix".to_owned(), n_accepted: 15 }]);
        let starts: Vec<i64> = insight.periods.iter().map(|day| day.start_ms).collect();
        assert_eq!(starts, [TODAY - DAY_MS, TODAY]);
        assert_eq!((insight.periods[1].n_shown, insight.periods[1].n_accepted), (4, 1));
        add(&history, TODAY + 5 * HOUR_MS, 10.0);
        let today = history.insight(TODAY, 1).expect("reads");
        assert_eq!(today.n_shown, 5, "today alone");
        let starts: Vec<i64> = today.periods.iter().map(|hour| hour.start_ms).collect();
        assert_eq!(starts, [TODAY, TODAY + 5 * HOUR_MS]);
    }

    #[test]
    fn nothing_of_a_text_is_kept_and_clearing_clears() {
        let (folder, history) = history();
        add(&history, TODAY, 1.0);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let everything = || {
            let files = std::fs::read_dir(folder.path().join("state")).expect("lists");
            let read = |file: std::io::Result<std::fs::DirEntry>| std::fs::read(file.expect("a file").path());
            files.map(|file| text(&read(file).expect("reads"))).collect::<String>()
        };
        assert!(everything().contains("suffix") && !everything().contains("secret"));
        history.clear().expect("clears");
        assert!(!everything().contains("suffix"), "not on the disk either");
        assert_eq!(history.insight(TODAY, 7).expect("reads"), Insight::default());
    }

    #[test]
    fn what_is_old_goes() {
        let (_folder, history) = history();
        add(&history, TODAY - 40 * DAY_MS, 1.0);
        add(&history, TODAY - 2 * DAY_MS, 1.0);
        history.prune(TODAY, 30).expect("prunes");
        assert_eq!(history.insight(TODAY, 1000).expect("reads").n_shown, 1);
    }

    #[test]
    fn a_file_that_is_no_database_is_set_aside() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.sqlite");
        std::fs::write(&path, "no database at all, but long enough to look like a header of one")
            .expect("writes");
        let history = History::open(&path).expect("opens");
        add(&history, TODAY, 1.0);
        assert!(folder.path().join("history.sqlite.bad").exists());
        drop(history);
        assert_eq!(History::open(&path).expect("again").insight(TODAY, 1).expect("reads").n_shown, 1);
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, history) = history();
        add(&history, TODAY, 1.0);
        for file in std::fs::read_dir(folder.path().join("state")).expect("lists") {
            let mode = file.expect("a file").metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }
}
