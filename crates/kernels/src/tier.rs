//! Which instructions this processor has.

/// An instruction set that kernels are written for, and that this processor has: nothing else makes one, which is
/// why safe code can run the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier(InstructionSet);

/// The instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    /// AVX-512 with byte dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX2 with byte dot products, as processors have that dropped AVX-512.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX2 with fused multiply-add and half-precision conversion.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON with byte dot products.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

impl Tier {
    /// The tier of every processor.
    pub const PORTABLE: Self = Self(InstructionSet::Portable);

    /// What the processor has, for certain.
    pub(crate) fn instructions(self) -> InstructionSet {
        self.0
    }

    /// The tiers that this processor can run, best first.
    pub fn available() -> Vec<Self> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let has_avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let has_avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            if has_avx2 && has_avx512 && has!("avx512vnni") {
                tiers.push(Self(InstructionSet::Avx512Vnni));
            }
            if has_avx2 && has!("avxvnni") {
                tiers.push(Self(InstructionSet::AvxVnni));
            }
            if has_avx2 {
                tiers.push(Self(InstructionSet::Avx2));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod")
        {
            tiers.push(Self(InstructionSet::NeonDotprod));
        }
        tiers.push(Self::PORTABLE);
        tiers
    }

    /// The best tier of this processor, or the one that `SATEEN_KERNELS` names (`avx512`,
    /// `avxvnni`, `avx2`, `neon` or `portable`) where the processor has it.
    pub fn detect() -> Self {
        let available = Self::available();
        let wanted = std::env::var("SATEEN_KERNELS").unwrap_or_default();
        available.iter().find(|tier| tier.name() == wanted).copied().unwrap_or(available[0])
    }

    /// Its name in `SATEEN_KERNELS`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => "avx512",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDotprod => "neon",
            InstructionSet::Portable => "portable",
        }
    }
}

/// Defines a function in plain Rust that the compiler turns into vectors for each tier. The
/// function takes the tier first. Sums must be written in lanes, and with `mul_add` where they are
/// to be fused, so that all tiers give the same bits.
macro_rules! per_tier {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident $(<$(const $constant:ident: $constant_type:ty),*>)? (
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name $(<$(const $constant: $constant_type),*>)? (
            tier: $crate::Tier, $($argument: $type),*
        ) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn portable $(<$(const $constant: $constant_type),*>)? ($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$(const $constant: $constant_type),*>)? ($($argument: $type),*) $(-> $result)? {
                portable $(::<$($constant),*>)? ($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$(const $constant: $constant_type),*>)? ($($argument: $type),*) $(-> $result)? {
                portable $(::<$($constant),*>)? ($($argument),*)
            }

            match tier.instructions() {
                #[cfg(target_arch = "x86_64")]
                $crate::tier::InstructionSet::Avx512Vnni => {
                    // SAFETY: a tier is only made where the processor has its instructions.
                    unsafe { avx512 $(::<$($constant),*>)? ($($argument),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::tier::InstructionSet::AvxVnni | $crate::tier::InstructionSet::Avx2 => {
                    // SAFETY: as above.
                    unsafe { avx2 $(::<$($constant),*>)? ($($argument),*) }
                }
                // NEON and fused operations belong to the architecture, so that plain code has them.
                #[cfg(target_arch = "aarch64")]
                $crate::tier::InstructionSet::NeonDotprod => portable $(::<$($constant),*>)? ($($argument),*),
                $crate::tier::InstructionSet::Portable => portable $(::<$($constant),*>)? ($($argument),*),
            }
        }
    };
}
pub(crate) use per_tier;
