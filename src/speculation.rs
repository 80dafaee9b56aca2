//! The ways of decoding as the command line names them.

use clap::ValueEnum;
use engine::Speculation;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpeculationArgument {
    /// One token per forward pass
    Off,
    /// Draft with semantic adaptive tokens in one pass, verify in the next
    Sdsat,
    /// Draft with semantic adaptive tokens in the pass that verifies
    Fused,
    /// Prompt lookup, the plain baseline
    Lookup,
    /// Drafters that cost no forward pass
    Free,
    /// All drafters, as wide as this machine gains from
    Auto,
}

impl From<SpeculationArgument> for Speculation {
    fn from(argument: SpeculationArgument) -> Self {
        match argument {
            SpeculationArgument::Off => Self::Off,
            SpeculationArgument::Sdsat => Self::Sdsat,
            SpeculationArgument::Fused => Self::Fused,
            SpeculationArgument::Lookup => Self::Lookup,
            SpeculationArgument::Free => Self::Free,
            SpeculationArgument::Auto => Self::Auto,
        }
    }
}
