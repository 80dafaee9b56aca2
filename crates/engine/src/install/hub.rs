//! Files of the model hub.
//!
//! `hf-hub` knows where a file is, who may have it, and what the hub says of it; its bytes come as a stream that can be
//! left and taken up again.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use ureq::config::RedirectAuthHeaders;

use super::POLL;
use crate::catalog::HubFile;
use crate::{CancelToken, EngineError};

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a hub may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// The model hub, or a mirror of it.
#[derive(Clone, Debug, Default)]
pub struct HubClient {
    endpoint: Option<String>,
    patience: Option<Duration>,
}

/// What the hub says of a file.
#[derive(Clone, Debug)]
pub(super) struct Announced {
    /// In hexadecimal.
    pub(super) sha256: String,
    pub(super) size_bytes: u64,
}

impl HubClient {
    /// The hub at `endpoint`, like `https://huggingface.co`. Without one, `HF_ENDPOINT` names it, else it is that one.
    pub fn new(endpoint: Option<String>) -> Self {
        Self { endpoint, patience: None }
    }

    /// Gives up on a hub that says nothing for so long.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    fn api(&self, file: &HubFile) -> Result<Api, EngineError> {
        let mut builder = ApiBuilder::from_env().with_user_agent("sateen", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        builder.build().map_err(|error| failed(file, error.to_string()))
    }

    fn url(api: &Api, file: &HubFile) -> String {
        let HubFile { repository, revision, file } = file;
        let repository = Repo::with_revision(repository.clone(), RepoType::Model, revision.clone());
        api.repo(repository).url(file)
    }

    /// What the hub says of `file`; `None` when cancelled.
    ///
    /// # Errors
    /// [`EngineError::Hub`].
    pub(super) fn announced(
        &self,
        file: &HubFile,
        cancel: &CancelToken,
    ) -> Result<Option<Announced>, EngineError> {
        let api = self.api(file)?;
        let url = Self::url(&api, file);
        let answer = Pending::new(file, self.patience, move |answer| {
            let metadata = api.metadata(&url).map_err(|error| error.to_string())?;
            let sha256 = metadata.etag().to_lowercase();
            if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("the hub says no SHA-256 of it, but `{sha256}`"));
            }
            let _ = answer.send(Ok(Announced { sha256, size_bytes: metadata.size() as u64 }));
            Ok(())
        });
        match answer.next(cancel)? {
            Next::Item(announced) => Ok(Some(announced)),
            Next::Cancelled => Ok(None),
            Next::End => Err(failed(file, "the hub did not answer".to_owned())),
        }
    }

    /// The bytes of `file` from the one with the index `from`.
    ///
    /// # Errors
    /// [`EngineError::Hub`].
    pub(super) fn stream(
        &self,
        file: &HubFile,
        announced: &Announced,
        from: u64,
    ) -> Result<Pending<Chunk>, EngineError> {
        let url = Self::url(&self.api(file)?, file);
        // The hub sends its files from other hosts, which must not get the user's key.
        let config = ureq::Agent::config_builder().redirect_auth_headers(RedirectAuthHeaders::SameHost);
        let agent = ureq::Agent::from(config.timeout_connect(Some(PATIENCE)).build());
        let mut request = agent.get(&url).header("Range", format!("bytes={from}-"));
        if let Some(token) = Cache::from_env().token() {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let size_bytes = announced.size_bytes;
        Ok(Pending::new(file, self.patience, move |chunks| {
            let response = request.call().map_err(|error| error.to_string())?;
            // A server that knows no ranges begins at the beginning.
            let mut at = if response.status().as_u16() == 206 { from } else { 0 };
            // Whatever it sends, no more is taken than it announced, and a byte that shows that there is more.
            let mut body = response.into_body().into_reader().take(size_bytes - at + 1);
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let n = body.read(&mut buffer).map_err(|error| error.to_string())?;
                if n == 0 || chunks.send(Ok(Chunk { at, bytes: buffer[..n].to_vec() })).is_err() {
                    return Ok(());
                }
                at += n as u64;
            }
        }))
    }
}

/// Bytes of a file.
pub(super) struct Chunk {
    /// Index of the first.
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

/// What comes next of something that is fetched.
pub(super) enum Next<T> {
    Item(T),
    End,
    Cancelled,
}

/// What a thread of its own fetches, so that a connection that says nothing holds nobody up: one that is left ends when
/// it has something to say.
pub(super) struct Pending<T> {
    items: Receiver<Result<T, String>>,
    file: HubFile,
    patience: Duration,
}

impl<T: Send + 'static> Pending<T> {
    fn new(
        file: &HubFile,
        patience: Option<Duration>,
        fetch: impl FnOnce(&SyncSender<Result<T, String>>) -> Result<(), String> + Send + 'static,
    ) -> Self {
        let (sender, items) = sync_channel(4);
        std::thread::spawn(move || {
            if let Err(reason) = fetch(&sender) {
                let _ = sender.send(Err(reason));
            }
        });
        Self { items, file: file.clone(), patience: patience.unwrap_or(PATIENCE) }
    }

    /// # Errors
    /// [`EngineError::Hub`], also when nothing comes for too long.
    pub(super) fn next(&self, cancel: &CancelToken) -> Result<Next<T>, EngineError> {
        let started = Instant::now();
        loop {
            if cancel.is_cancelled() {
                return Ok(Next::Cancelled);
            }
            match self.items.recv_timeout(POLL) {
                Ok(item) => return item.map(Next::Item).map_err(|reason| failed(&self.file, reason)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Next::End),
                Err(RecvTimeoutError::Timeout) if started.elapsed() > self.patience => {
                    let seconds = self.patience.as_secs_f64();
                    return Err(failed(&self.file, format!("nothing has come for {seconds:.0} s")));
                }
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
    }
}

pub(super) fn failed(file: &HubFile, reason: String) -> EngineError {
    EngineError::Hub { repository: file.repository.clone(), file: file.file.clone(), reason }
}
