//! Running the tests that come with a prompt.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::bench::prompts::Prompt;

/// Longest that a test may run.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether `test` passes with `text` in its place. It runs alone in an empty folder, without what is installed.
pub(super) fn passes(prompt: &Prompt, text: &str, test: &str, entry_point: &str) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("program.py");
    let mut file = std::fs::File::create(&program)?;
    write!(file, "{}{text}{}\n{test}\ncheck({entry_point})\n", prompt.prefix, prompt.suffix)?;
    let mut child = Command::new("python3")
        .args(["-I", "-S"])
        .arg(&program)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start python3")?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if started.elapsed() > TIMEOUT {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
