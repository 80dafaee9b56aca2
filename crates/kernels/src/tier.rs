//! Which instructions this processor has.

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// AVX-512 with byte dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX2 with half-precision conversion.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

impl Tier {
    /// The tiers that this processor can run, best first.
    pub fn available() -> Vec<Self> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let has_avx2 = has!("avx2") && has!("f16c");
            if has_avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni") {
                tiers.push(Self::Avx512Vnni);
            }
            if has_avx2 {
                tiers.push(Self::Avx2);
            }
        }
        tiers.push(Self::Portable);
        tiers
    }

    /// The best tier of this processor, or the one that `SATEEN_KERNELS` names (`avx512`, `avx2`
    /// or `portable`) where the processor has it.
    pub fn detect() -> Self {
        let available = Self::available();
        let wanted = std::env::var("SATEEN_KERNELS").unwrap_or_default();
        available.iter().find(|tier| tier.name() == wanted).copied().unwrap_or(available[0])
    }

    /// Its name in `SATEEN_KERNELS`.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}
