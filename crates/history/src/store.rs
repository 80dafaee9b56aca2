//! The file of the history.

use std::path::{Path, PathBuf};

use engine::{AcceptedDrafts, Completion};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Deserialize;
use ts_rs::TS;

/// Most entries that are kept.
const MAX_ENTRIES: i64 = 100_000;
/// Layout of the file.
const VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS completions (
        id INTEGER PRIMARY KEY,
        at_ms INTEGER NOT NULL,
        client TEXT NOT NULL,
        model TEXT NOT NULL,
        fate INTEGER NOT NULL,
        n_chars INTEGER NOT NULL,
        n_accepted_chars INTEGER NOT NULL,
        queue_ms REAL NOT NULL,
        prefill_ms REAL NOT NULL,
        decode_ms REAL NOT NULL,
        tokens_per_s REAL NOT NULL,
        n_tokens INTEGER NOT NULL,
        n_steps INTEGER NOT NULL,
        n_prompt_tokens INTEGER NOT NULL,
        n_reused_tokens INTEGER NOT NULL,
        slots TEXT NOT NULL,
        drafters TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS completions_at ON completions (at_ms);";

/// Why the history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The database says so.
    #[error("{}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Its words.
        source: rusqlite::Error,
    },
    /// The file cannot be made or renamed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// What became of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum Fate {
    /// It was shown, and nothing is known yet.
    Shown,
    /// All of it was accepted.
    Accepted,
    /// A word or a line was.
    PartlyAccepted,
    /// It was put away, or something else was typed.
    Dismissed,
}

impl Fate {
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::Shown => 0,
            Self::Accepted => 1,
            Self::PartlyAccepted => 2,
            Self::Dismissed => 3,
        }
    }
}

/// A completion that was shown.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Who asked: `editor` or `popup`.
    pub client: &'a str,
    /// Id of the model.
    pub model: &'a str,
    /// From the request to the beginning of the work on it, in milliseconds.
    pub queue_ms: f64,
    /// What came of it.
    pub completion: &'a Completion,
}

/// The history of one user.
#[derive(Debug)]
pub struct History {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
}

impl History {
    /// Opens the file at `path`, or makes it. One that is no database is set aside as `.bad`.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, HistoryError> {
        let path = path.into();
        match Self::try_open(&path) {
            Err(HistoryError::Database { source, .. }) if is_no_database(&source) => {
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(".bad");
                let aside = path.with_file_name(name);
                std::fs::rename(&path, aside)
                    .map_err(|source| HistoryError::Io { path: path.clone(), source })?;
                Self::try_open(&path)
            }
            opened => opened,
        }
    }

    fn try_open(path: &Path) -> Result<Self, HistoryError> {
        let io = |source| HistoryError::Io { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(io)?;
        }
        make_private(path).map_err(io)?;
        let database = |source| HistoryError::Database { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(database)?;
        connection.busy_timeout(std::time::Duration::from_secs(2)).map_err(database)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(database)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(database)?;
        connection.pragma_update(None, "secure_delete", true).map_err(database)?;
        connection.execute_batch(SCHEMA).map_err(database)?;
        connection.pragma_update(None, "user_version", VERSION).map_err(database)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    pub(crate) fn error(&self, source: rusqlite::Error) -> HistoryError {
        HistoryError::Database { path: self.path.clone(), source }
    }

    /// Adds a completion that was shown, and returns its number.
    ///
    /// # Errors
    /// [`HistoryError::Database`].
    pub fn add(&self, entry: &Entry<'_>) -> Result<i64, HistoryError> {
        let Completion { ttft_ms, total_ms, tokens_per_s, n_tokens, n_steps, .. } = *entry.completion;
        let completion = entry.completion;
        let added = self.connection.execute(
            "INSERT INTO completions (at_ms, client, model, fate, n_chars, n_accepted_chars, queue_ms, prefill_ms,
                 decode_ms, tokens_per_s, n_tokens, n_steps, n_prompt_tokens, n_reused_tokens, slots, drafters)
             VALUES (?1, ?2, ?3, 0, ?4, 0, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                entry.at_ms,
                entry.client,
                entry.model,
                completion.text.chars().count() as i64,
                entry.queue_ms,
                ttft_ms,
                (total_ms - ttft_ms).max(0.0),
                tokens_per_s,
                n_tokens as i64,
                n_steps as i64,
                completion.n_prompt_tokens as i64,
                completion.n_reused_tokens as i64,
                slots_text(completion),
                drafters_text(&completion.accepted_by_drafter),
            ],
        );
        added.map_err(|source| self.error(source))?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Says what became of completion `id`, of which `n_chars` characters were accepted so far. What is not known,
    /// because it was cleared, is nothing to do.
    ///
    /// # Errors
    /// [`HistoryError::Database`].
    pub fn resolve(&self, id: i64, fate: Fate, n_chars: usize) -> Result<(), HistoryError> {
        self.connection
            .execute(
                "UPDATE completions SET fate = ?2, n_accepted_chars = MIN(?3, n_chars) WHERE id = ?1",
                params![id, fate.code(), n_chars as i64],
            )
            .map(|_| ())
            .map_err(|source| self.error(source))
    }

    /// Forgets what is older than `n_days`, and the oldest beyond the most that are kept.
    ///
    /// # Errors
    /// [`HistoryError::Database`].
    pub fn prune(&self, now_ms: i64, n_days: u32) -> Result<(), HistoryError> {
        let oldest = now_ms - i64::from(n_days) * crate::insight::DAY_MS;
        let last: Option<i64> = self
            .connection
            .query_row(
                "SELECT id FROM completions ORDER BY id DESC LIMIT 1 OFFSET ?1",
                [MAX_ENTRIES],
                |row| row.get(0),
            )
            .optional()
            .map_err(|source| self.error(source))?;
        self.connection
            .execute(
                "DELETE FROM completions WHERE at_ms < ?1 OR id <= ?2",
                params![oldest, last.unwrap_or(-1)],
            )
            .map(|_| ())
            .map_err(|source| self.error(source))
    }

    /// Forgets everything, on the disk too.
    ///
    /// # Errors
    /// [`HistoryError::Database`].
    pub fn clear(&self) -> Result<(), HistoryError> {
        self.connection
            .execute_batch("DELETE FROM completions; VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")
            .map_err(|source| self.error(source))
    }
}

fn is_no_database(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
    )
}

/// For the user's eyes only; the files beside it take its mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(|_| ())
}

/// `[[drafted, accepted], …]` by place of a draft.
fn slots_text(completion: &Completion) -> String {
    let shares = completion.drafted_per_slot.iter().zip(&completion.accepted_per_slot);
    let pairs: Vec<[f64; 2]> = shares.map(|(&n, &share)| [n as f64, (share * n as f64).round()]).collect();
    serde_json::to_string(&pairs).unwrap_or_default()
}

fn drafters_text(drafters: &[AcceptedDrafts]) -> String {
    serde_json::to_string(drafters).unwrap_or_default()
}
