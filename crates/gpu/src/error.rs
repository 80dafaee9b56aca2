//! The one error of this crate.

/// Why a device cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum GpuError {
    #[error("there is no device `{name}`; {known}")]
    NoDevice { name: String, known: String },
    #[error("{name} cannot be opened: {reason}")]
    Open { name: String, reason: String },
    #[error("the device failed: {reason}")]
    Failed { reason: String },
    #[error("{n_bytes} bytes for one buffer; the device takes at most {max_bytes}")]
    BufferTooLarge { n_bytes: usize, max_bytes: usize },
}
