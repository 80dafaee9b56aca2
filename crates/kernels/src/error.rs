//! The one error of this crate.

/// Why something cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum KernelError {
    #[error("{n_bytes} bytes of memory cannot be had")]
    OutOfMemory { n_bytes: usize },
    #[error("weights hold a value that is not finite")]
    NotFinite,
    #[error("reading weights: {0}")]
    Read(std::io::Error),
}
