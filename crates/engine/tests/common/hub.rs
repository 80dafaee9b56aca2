//! A model hub on the loopback: one file, sent from another address than the one that is asked, as hubs do.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::{CatalogEntry, HubFile, ModelSource};

use super::packages;

/// What is wrong with a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Each connection breaks after so many bytes of the file.
    BreaksAfter(usize),
    /// It sends the whole file, whatever part is asked for.
    KnowsNoRanges,
    /// It answers that there is no such file.
    Missing,
    /// It says a name where a hash belongs.
    SaysNoHash,
    /// It takes requests and says nothing.
    IsSilent,
}

pub struct Hub {
    pub endpoint: String,
    /// Ranges of the file that were asked for: the index of their first byte.
    pub asked: Arc<Mutex<Vec<usize>>>,
    pub n_connections: Arc<AtomicUsize>,
    fault: Arc<Mutex<Fault>>,
    has_ended: Arc<AtomicBool>,
}

pub fn file() -> HubFile {
    HubFile {
        repository: "sateen-test/tiny-GGUF".to_owned(),
        revision: "main".to_owned(),
        file: "tiny.gguf".to_owned(),
    }
}

/// The model of this hub, without a hash of its own.
pub fn entry() -> CatalogEntry {
    let content = packages::tiny_model();
    CatalogEntry { sha256: None, source: ModelSource::Hub(file()), ..packages::entry(&[&content]) }
}

impl Hub {
    /// A hub that announces `hash` and sends `content`.
    pub fn new(content: Vec<u8>, hash: String, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let hub = Self {
            endpoint: endpoint.clone(),
            asked: Arc::default(),
            n_connections: Arc::default(),
            fault: Arc::new(Mutex::new(fault)),
            has_ended: Arc::default(),
        };
        let (asked, fault) = (hub.asked.clone(), hub.fault.clone());
        let (n_connections, has_ended) = (hub.n_connections.clone(), hub.has_ended.clone());
        let content = Arc::new(content);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if has_ended.load(Ordering::SeqCst) {
                    return;
                }
                n_connections.fetch_add(1, Ordering::SeqCst);
                let Ok(stream) = stream else { continue };
                let (content, hash, endpoint) = (content.clone(), hash.clone(), endpoint.clone());
                let (asked, fault) = (asked.clone(), fault.clone());
                std::thread::spawn(move || serve(stream, &content, &hash, &endpoint, &asked, &fault));
            }
        });
        hub
    }

    pub fn set_fault(&self, fault: Fault) {
        *self.fault.lock().expect("no panic") = fault;
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.has_ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
    }
}

fn serve(
    stream: TcpStream,
    content: &[u8],
    hash: &str,
    endpoint: &str,
    asked: &Mutex<Vec<usize>>,
    fault: &Mutex<Fault>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    let mut writer = stream;
    loop {
        let (mut path, mut range) = (String::new(), None);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim();
            if line.is_empty() {
                break;
            }
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some(rest) = line.to_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = rest.split_once('-').expect("a range");
                range = Some((first.parse::<usize>().expect("a number"), last.parse::<usize>().ok()));
            }
        }
        let fault = *fault.lock().expect("no panic");
        let address = "/sateen-test/tiny-GGUF/resolve/main/tiny.gguf";
        let said = if fault == Fault::SaysNoHash { "tiny" } else { hash };
        let head = match fault {
            Fault::IsSilent => {
                std::thread::sleep(std::time::Duration::from_secs(20));
                return;
            }
            Fault::Missing => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ if path == address => format!(
                "HTTP/1.1 302 Found\r\nLocation: {endpoint}/elsewhere\r\nX-Repo-Commit: 0123\r\n\
                 X-Linked-ETag: \"{said}\"\r\nETag: \"other\"\r\nContent-Length: 0\r\n\r\n"
            ),
            _ => {
                assert_eq!(path, "/elsewhere");
                let (first, last) = range.unwrap_or_default();
                let last = last.unwrap_or(usize::MAX).min(content.len() - 1);
                let is_question = last == 0;
                if !is_question {
                    asked.lock().expect("no panic").push(first);
                }
                let knows_ranges = is_question || fault != Fault::KnowsNoRanges;
                let (status, bytes) = if knows_ranges {
                    ("206 Partial Content", content.get(first..=last).unwrap_or_default())
                } else {
                    ("200 OK", content)
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Range: bytes {first}-{last}/{}\r\nContent-Length: {}\r\n\r\n",
                    content.len(),
                    bytes.len()
                );
                let _ = writer.write_all(head.as_bytes());
                match fault {
                    Fault::BreaksAfter(n) if !is_question => {
                        let _ = writer.write_all(&bytes[..n.min(bytes.len())]);
                        return;
                    }
                    _ => {
                        let _ = writer.write_all(bytes);
                    }
                }
                continue;
            }
        };
        if writer.write_all(head.as_bytes()).is_err() {
            return;
        }
    }
}
