//! The driver's pool of a GPU's memory, for those who allocate by it rather than by CubeCL.

use cudarc::driver::{result, sys};

use crate::GpuError;

/// Keeps what is freed on the `index`th GPU of CUDA for what is allocated next: by default it goes back to the system whenever a
/// stream is waited for, and is mapped anew for the next.
///
/// # Errors
/// [`GpuError::Failed`] with what the driver says.
pub fn keep_freed_memory(index: usize) -> Result<(), GpuError> {
    let set = || -> Result<(), result::DriverError> {
        result::init()?;
        let device = result::device::get(index as i32)?;
        let mut threshold = u64::MAX;
        // SAFETY: the device is one that the driver has just named, its pool lives as long as the driver, and the attribute's
        // type is `cuuint64_t`.
        unsafe {
            let pool = result::device::get_default_mem_pool(device)?;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
        }
    };
    set().map_err(|error| GpuError::Failed { reason: error.to_string() })
}
