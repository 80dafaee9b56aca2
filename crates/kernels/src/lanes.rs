//! Several numbers in the vectors of a tier, for loops whose sums the compiler does not keep in
//! registers by itself.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Some f32 values.
///
/// # Safety
/// The methods may only be called where the processor has the instructions of the implementation,
/// and inside functions that enable them. They are inlined there, which is why they cannot enable them
/// themselves. Pointers must be valid for `N` values.
pub(crate) trait Lanes: Copy {
    /// How many, a divisor of 16.
    const N: usize;
    /// How many vectors may be summed up at a time: as many as the registers hold beside what a loop needs.
    const N_SUMS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, factor: Self) -> Self;
    unsafe fn negate(self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
}

/// Defines methods of [`Lanes`] and of other vectors, which all are unsafe and inlined.
macro_rules! inlined {
    ($(
        fn $name:ident $([$constant:ident: $constant_type:ty])? ($($arguments:tt)*) $(-> $result:ty)? $body:block
    )*) => {
        $(
            #[inline(always)]
            #[allow(unused_unsafe)] // Some need none.
            unsafe fn $name $(<const $constant: $constant_type>)? ($($arguments)*) $(-> $result)? {
                // SAFETY: what the methods of vectors do is what their callers promise to be allowed.
                unsafe { $body }
            }
        )*
    };
}
pub(crate) use inlined;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct PortableLanes([f32; 16]);

impl Lanes for PortableLanes {
    const N: usize = 16;
    const N_SUMS: usize = 8;

    inlined! {
        fn splat(value: f32) -> Self {
            Self([value; 16])
        }

        fn load(from: *const f32) -> Self {
            Self(from.cast::<[f32; 16]>().read_unaligned())
        }

        fn store(self, to: *mut f32) {
            to.cast::<[f32; 16]>().write_unaligned(self.0);
        }

        fn mul(self, factor: Self) -> Self {
            Self(std::array::from_fn(|i| self.0[i] * factor.0[i]))
        }

        fn negate(self) -> Self {
            Self(self.0.map(|value| -value))
        }

        fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2Lanes(pub(crate) __m256);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2Lanes {
    const N: usize = 8;
    const N_SUMS: usize = 12;

    inlined! {
        fn splat(value: f32) -> Self {
            Self(_mm256_set1_ps(value))
        }

        fn load(from: *const f32) -> Self {
            Self(_mm256_loadu_ps(from))
        }

        fn store(self, to: *mut f32) {
            _mm256_storeu_ps(to, self.0);
        }

        fn mul(self, factor: Self) -> Self {
            Self(_mm256_mul_ps(self.0, factor.0))
        }

        fn negate(self) -> Self {
            Self(_mm256_xor_ps(self.0, _mm256_set1_ps(-0.0)))
        }

        fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(_mm256_fmadd_ps(self.0, factor.0, addend.0))
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512Lanes(pub(crate) __m512);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx512Lanes {
    const N: usize = 16;
    const N_SUMS: usize = 24;

    inlined! {
        fn splat(value: f32) -> Self {
            Self(_mm512_set1_ps(value))
        }

        fn load(from: *const f32) -> Self {
            Self(_mm512_loadu_ps(from))
        }

        fn store(self, to: *mut f32) {
            _mm512_storeu_ps(to, self.0);
        }

        fn mul(self, factor: Self) -> Self {
            Self(_mm512_mul_ps(self.0, factor.0))
        }

        fn negate(self) -> Self {
            Self(_mm512_sub_ps(_mm512_set1_ps(-0.0), self.0))
        }

        fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(crate) struct NeonLanes(pub(crate) float32x4_t);

#[cfg(target_arch = "aarch64")]
impl Lanes for NeonLanes {
    const N: usize = 4;
    const N_SUMS: usize = 24;

    inlined! {
        fn splat(value: f32) -> Self {
            Self(vdupq_n_f32(value))
        }

        fn load(from: *const f32) -> Self {
            Self(vld1q_f32(from))
        }

        fn store(self, to: *mut f32) {
            vst1q_f32(to, self.0);
        }

        fn mul(self, factor: Self) -> Self {
            Self(vmulq_f32(self.0, factor.0))
        }

        fn negate(self) -> Self {
            Self(vnegq_f32(self.0))
        }

        fn mul_add(self, factor: Self, addend: Self) -> Self {
            Self(vfmaq_f32(addend.0, self.0, factor.0))
        }
    }
}
