//! Memory full of zeros, that may be refused.

use std::alloc::{Layout, alloc_zeroed};

use crate::KernelError;

/// Types of which zero bytes are a value.
///
/// # Safety
/// All-zero bytes are a value of the type, and it has a size.
pub(crate) unsafe trait Zeroable: Copy {}

// SAFETY: plain numbers.
unsafe impl Zeroable for u8 {}
// SAFETY: plain numbers.
unsafe impl Zeroable for f32 {}
// SAFETY: plain numbers.
unsafe impl Zeroable for half::f16 {}

/// `n` zeros, whose pages the operating system backs as they are first written.
///
/// # Errors
/// [`KernelError::OutOfMemory`] when the system has no such memory to give.
pub(crate) fn zeroed<T: Zeroable>(n: usize) -> Result<Vec<T>, KernelError> {
    let refused = || KernelError::OutOfMemory { n_bytes: n.saturating_mul(size_of::<T>()) };
    let layout = Layout::array::<T>(n).map_err(|_| refused())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout has a size.
    let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if start.is_null() {
        return Err(refused());
    }
    // SAFETY: the global allocator gave memory for `n` values, and zero bytes are values of the type.
    Ok(unsafe { Vec::from_raw_parts(start, n, n) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_or_a_refusal() {
        assert_eq!(zeroed::<f32>(1000).expect("memory"), vec![0.0; 1000]);
        assert!(zeroed::<u8>(0).expect("none").is_empty());
        for n in [usize::MAX, isize::MAX as usize / 4, 1 << 60] {
            let error = zeroed::<f32>(n).expect_err("no machine has it").to_string();
            assert!(error.ends_with("bytes of memory cannot be had"), "{error}");
        }
    }
}
