//! A slice that the tasks of one operation fill together.

use std::marker::PhantomData;

/// Lets tasks write to disjoint ranges of one slice.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through `range_mut`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}
// SAFETY: as above; it is no more than the exclusive reference that it was made from.
unsafe impl<T: Send> Send for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` values from `start` on.
    ///
    /// # Safety
    /// While the result lives, nobody else may have a range that overlaps it.
    ///
    /// # Panics
    /// When the range is outside the slice.
    #[allow(clippy::mut_from_ref)] // What the type is for.
    pub(crate) unsafe fn range_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a range outside the slice");
        // SAFETY: within the slice, and the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    #[test]
    fn tasks_fill_their_own_ranges() {
        let mut values = vec![0usize; 1000];
        let shared = SharedSlice::new(&mut values);
        Pool::new(4).run(100, &|task| {
            // SAFETY: the ranges of different tasks do not overlap.
            unsafe { shared.range_mut(task * 10, 10) }.fill(task);
        });
        assert!(values.iter().enumerate().all(|(idx, &value)| value == idx / 10));
    }

    #[test]
    #[should_panic(expected = "outside the slice")]
    fn ranges_are_checked() {
        let mut values = [0u8; 4];
        let shared = SharedSlice::new(&mut values);
        // SAFETY: nobody else has a range.
        unsafe { shared.range_mut(3, 2) };
    }
}
