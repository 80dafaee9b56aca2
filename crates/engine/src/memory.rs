//! Whether a model fits into memory, before anything is allocated for it.

use model::ModelSummary;
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::{EngineConfig, EngineError};

/// Memory beside weights and caches: buffers, tables, the program itself.
const OTHER_BYTES: u64 = 96 << 20;
/// Shortest context that holds a prompt and a completion.
const MIN_CONTEXT: usize = 128;
/// What packed weights take of the size of their file at most.
const PACKED_SHARE: f64 = 1.1;

/// Memory that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct MemoryNeeded {
    /// Weights.
    #[ts(type = "number")]
    pub weight_bytes: u64,
    /// Keys and values of one context at its full length.
    #[ts(type = "number")]
    pub cache_bytes: u64,
    /// All of it, with buffers.
    #[ts(type = "number")]
    pub total_bytes: u64,
}

impl MemoryNeeded {
    /// For a weight file of `n_bytes`, before anything is known of its caches.
    pub(crate) fn of_file(n_bytes: u64) -> Self {
        let weight_bytes = (n_bytes as f64 * PACKED_SHARE) as u64;
        Self { weight_bytes, cache_bytes: 0, total_bytes: weight_bytes + OTHER_BYTES }
    }

    /// For the model of `config`, from the header of its file.
    ///
    /// # Errors
    /// When the file is no usable model.
    pub fn of(config: &EngineConfig) -> Result<Self, EngineError> {
        let architecture = ModelSummary::architecture_of(&config.weights)?;
        let n_bytes = std::fs::metadata(&config.weights).map_err(EngineError::io(&config.weights))?.len();
        let cache_bytes = architecture.cache_bytes(config.max_context, config.cache_type) as u64;
        let of_file = Self::of_file(n_bytes);
        Ok(Self { cache_bytes, total_bytes: of_file.total_bytes + cache_bytes, ..of_file })
    }
}

/// Memory that this process can still have, in bytes: what the machine has left, and what limits leave of it.
/// `None` where the system says nothing.
pub fn available_memory() -> Option<u64> {
    [of_machine(), of_address_space(), of_control_group()].into_iter().flatten().min()
}

fn of_machine() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What `ulimit -v` leaves.
fn of_address_space() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let used = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10;
    Some(limit.saturating_sub(used))
}

/// What a container's limit leaves (control groups, version 2).
fn of_control_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = std::path::Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
    let read = |name| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, used) = (read("memory.max")?, read("memory.current")?);
    // Pages of files count as used, and go when they must.
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(inactive.unwrap_or(0))))
}

/// Refuses a model whose caches exceed their budget, or that would not fit into memory.
pub(crate) fn check_memory(config: &EngineConfig) -> Result<(), EngineError> {
    let needed = MemoryNeeded::of(config)?;
    check(config, needed, available_memory())
}

fn check(config: &EngineConfig, needed: MemoryNeeded, available: Option<u64>) -> Result<(), EngineError> {
    let max_context = config.max_context;
    if max_context < MIN_CONTEXT {
        let (field, bound) = ("max_context", format!("at least {MIN_CONTEXT} tokens"));
        return Err(EngineError::InvalidRequest { field, bound, got: max_context.to_string() });
    }
    if let Some(budget) = config.cache_bytes.filter(|&budget| needed.cache_bytes > budget) {
        return Err(EngineError::CacheBudget { max_context, needed: needed.cache_bytes, budget });
    }
    match available {
        Some(available) if needed.total_bytes > available => Err(EngineError::NoMemory {
            model: config.model_name.clone(),
            needed: needed.total_bytes,
            available,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_cannot_fit_is_refused_in_words() {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let config = EngineConfig::new("Tiny", tiny, "");
        let needed = MemoryNeeded::of(&config).expect("the tiny model");
        assert!(needed.cache_bytes > 0 && needed.total_bytes > needed.weight_bytes + needed.cache_bytes);
        assert!(check(&config, needed, None).is_ok() && check(&config, needed, Some(1 << 40)).is_ok());
        let error = check(&config, needed, Some(1 << 20)).expect_err("too little memory").to_string();
        assert!(error.starts_with("Tiny needs ") && error.contains("1048576 are free"), "{error}");
        let small = EngineConfig { cache_bytes: Some(1000), ..config };
        let error = check(&small, needed, None).expect_err("over the budget").to_string();
        assert!(error.contains("4096 tokens") && error.contains("1000"), "{error}");
        let none = EngineConfig { max_context: 0, cache_bytes: None, ..small };
        assert_eq!(
            check(&none, needed, None).expect_err("no context").code(),
            crate::ErrorCode::InvalidRequest
        );
    }
}
