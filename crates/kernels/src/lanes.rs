//! Several numbers in the vectors of a tier, for loops whose sums the compiler does not keep in
//! registers by itself.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "aarch64")]
use std::arch::asm;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::f16;

/// Some f32 values.
///
/// # Safety
/// The methods may only be called where the processor has the instructions of the implementation,
/// and inside functions that enable them. They are inlined there, which is why they cannot enable them
/// themselves. Pointers must be valid for `N` values.
pub(crate) unsafe trait Lanes: Copy {
    /// How many, a divisor of 16.
    const N: usize;
    /// How many vectors may be summed up at a time: as many as the registers hold beside what a loop needs.
    const N_SUMS: usize;

    /// Asks for the memory at `at`, which need not be valid.
    unsafe fn prefetch(at: *const u8);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Half-precision numbers.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// The upper halves of numbers.
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn mul(self, factor: Self) -> Self;
    unsafe fn negate(self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
}

/// Bytes between the weights in use and those that are fetched: the stream of weights is too short
/// between tiles for the processor to run ahead by itself.
pub(crate) const AHEAD: usize = 8192;

/// Asks for the memory of `bytes`.
pub(crate) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: the instruction belongs to the architecture, and reads nothing.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            NeonLanes::prefetch(line.as_ptr());
        }
    }
}

/// How many vectors are worked on for each of `N` rows at a time, out of `n_left`: 1, 2 or 4.
#[inline(always)]
pub(crate) fn n_vectors<V: Lanes, const N: usize>(n_left: usize) -> usize {
    [4, 2].into_iter().find(|&n| n <= n_left && n * N <= V::N_SUMS).unwrap_or(1)
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
pub(crate) struct PortableLanes(pub(crate) [f32; 16]);

// SAFETY: loads and stores are of `N` values, and nothing else touches memory.
unsafe impl Lanes for PortableLanes {
    const N: usize = 16;
    const N_SUMS: usize = 8;

    inlined! {
        fn prefetch(_at: *const u8) {}

        fn splat(value: f32) -> Self {
            Self([value; 16])
        }

        fn load(from: *const f32) -> Self {
            Self(from.cast::<[f32; 16]>().read_unaligned())
        }

        fn load_f16(from: *const u8) -> Self {
            Self(from.cast::<[u16; 16]>().read_unaligned().map(|bits| f16::from_bits(bits).to_f32()))
        }

        fn load_bf16(from: *const u8) -> Self {
            Self(from.cast::<[u16; 16]>().read_unaligned().map(|bits| f32::from_bits(u32::from(bits) << 16)))
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

// SAFETY: loads and stores are of `N` values, and nothing else touches memory.
#[cfg(target_arch = "x86_64")]
unsafe impl Lanes for Avx2Lanes {
    const N: usize = 8;
    const N_SUMS: usize = 12;

    inlined! {
        fn prefetch(at: *const u8) {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }

        fn splat(value: f32) -> Self {
            Self(_mm256_set1_ps(value))
        }

        fn load(from: *const f32) -> Self {
            Self(_mm256_loadu_ps(from))
        }

        fn load_f16(from: *const u8) -> Self {
            Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast())))
        }

        fn load_bf16(from: *const u8) -> Self {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
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

// SAFETY: loads and stores are of `N` values, and nothing else touches memory.
#[cfg(target_arch = "x86_64")]
unsafe impl Lanes for Avx512Lanes {
    const N: usize = 16;
    const N_SUMS: usize = 24;

    inlined! {
        fn prefetch(at: *const u8) {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }

        fn splat(value: f32) -> Self {
            Self(_mm512_set1_ps(value))
        }

        fn load(from: *const f32) -> Self {
            Self(_mm512_loadu_ps(from))
        }

        fn load_f16(from: *const u8) -> Self {
            Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast())))
        }

        fn load_bf16(from: *const u8) -> Self {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
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

// SAFETY: loads and stores are of `N` values, and nothing else touches memory.
#[cfg(target_arch = "aarch64")]
unsafe impl Lanes for NeonLanes {
    const N: usize = 4;
    const N_SUMS: usize = 24;

    inlined! {
        fn prefetch(at: *const u8) {
            asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags));
        }

        fn splat(value: f32) -> Self {
            Self(vdupq_n_f32(value))
        }

        fn load(from: *const f32) -> Self {
            Self(vld1q_f32(from))
        }

        fn load_f16(from: *const u8) -> Self {
            let halves = vld1_u16(from.cast());
            let numbers: float32x4_t;
            // The intrinsic is younger than the oldest Rust that builds this.
            asm!(
                "fcvtl {numbers:v}.4s, {halves:v}.4h",
                numbers = out(vreg) numbers,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
            Self(numbers)
        }

        fn load_bf16(from: *const u8) -> Self {
            Self(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.cast()))))
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
