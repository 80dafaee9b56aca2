//! Plots of a report.

use std::path::Path;

use super::decode::DecodeReport;

pub(crate) fn write(_folder: &Path, _report: &DecodeReport) -> anyhow::Result<()> {
    Ok(())
}
