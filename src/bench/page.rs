//! `sateen bench page`: a page of results, from the JSON of the measurements and from nothing else.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use engine::CostTable;
use serde_json::Value;

use super::Setting;
use super::cost::CostReport;
use super::decode::{DecodeReport, costs_in_words};
use super::gpu_check::{GpuCheckReport, Replayed, TypeReport};
use super::peers::PeersReport;
use super::quality::QualityReport;
use super::soak::SoakReport;
use super::typing::TypingReport;

#[derive(Args)]
pub(crate) struct PageArguments {
    /// The folder of the JSON files; plots beside them are shown
    folder: PathBuf,
    /// The page to write, in Markdown
    page: PathBuf,
}

pub(crate) fn run(arguments: &PageArguments) -> anyhow::Result<()> {
    let cannot_read = || format!("cannot read {}", arguments.folder.display());
    let entries = std::fs::read_dir(&arguments.folder).with_context(cannot_read)?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>().with_context(cannot_read)?;
    paths.sort();
    let has_ending = |path: &&PathBuf, ending: &str| path.extension().is_some_and(|found| found == ending);
    let mut page = String::from(
        "# Measurements\n\nWritten by `sateen bench page` from the JSON files beside the plots. Machines differ and are \
         noisy: compare within one run, and measure yours.\n",
    );
    for path in paths.iter().filter(|path| has_ending(path, "json")) {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        section(&mut page, &text).with_context(|| format!("{} is no measurement", path.display()))?;
    }
    let plots: Vec<&PathBuf> = paths.iter().filter(|path| has_ending(path, "svg")).collect();
    if !plots.is_empty() {
        page.push_str("\n## Plots\n\n");
        for plot in plots {
            let name = plot.file_stem().unwrap_or_default().to_string_lossy();
            let target = relative(plot, &arguments.page);
            writeln!(page, "![{name}]({target})")?;
        }
    }
    std::fs::write(&arguments.page, page)
        .with_context(|| format!("cannot write {}", arguments.page.display()))
}

/// `plot` as the page names it, which lies in the folder above or in the same.
fn relative(plot: &Path, page: &Path) -> String {
    let beside = page.parent().and_then(|folder| plot.strip_prefix(folder).ok());
    beside.unwrap_or(plot).to_string_lossy().into_owned()
}

fn section(page: &mut String, text: &str) -> anyhow::Result<()> {
    let value: Value = serde_json::from_str(text)?;
    if value.get("modes").is_some() {
        decode(page, &serde_json::from_value(value)?)
    } else if value.get("peers").is_some() {
        peers(page, &serde_json::from_value(value)?)
    } else if value.get("types").is_some() {
        gpu_check(page, &serde_json::from_value(value)?)
    } else if value.get("cost").is_some() {
        cost(page, &serde_json::from_value(value)?)
    } else if value.get("n_places").is_some() {
        quality(page, &serde_json::from_value(value)?)
    } else if value.get("n_keystrokes").is_some() {
        typing(page, &serde_json::from_value(value)?)
    } else if value.get("n_superseded").is_some() {
        soak(page, &serde_json::from_value(value)?)
    } else {
        bail!("no measurement of `sateen bench` printed it")
    }
}

fn setting(page: &mut String, setting: &Setting) -> anyhow::Result<()> {
    let Setting { date, machine, device, command } = setting;
    Ok(writeln!(page, "{date}, {machine}; {device}: `{command}`\n")?)
}

fn decode(page: &mut String, report: &DecodeReport) -> anyhow::Result<()> {
    let DecodeReport { model, prompts, n_prompts, max_tokens, temperature, flat_costs, .. } = report;
    let by_given_costs = report.by_given_costs();
    let device = match &by_given_costs {
        _ if *flat_costs => ", widths chosen as if rows cost nothing",
        Some(_) => ", widths chosen by another device's costs",
        None => "",
    };
    writeln!(page, "\n## Decoding: {model}, {prompts}, temperature {temperature}{device}\n")?;
    setting(page, &report.setting)?;
    writeln!(page, "{n_prompts} prompts, up to {max_tokens} tokens, every way in turn on each prompt.\n")?;
    page.push_str(
        "| way | tokens/s | against ordinary | worst quarter of the prompts | whole completions | tokens per pass | rows \
         per pass | TTFT ms | identical | accepted by depth | tokens by origin |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for mode in &report.modes {
        let (name, depths, shares) = mode.in_words();
        writeln!(
            page,
            "| {name} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {} of {n_prompts} | {depths} | {shares} |",
            mode.tokens_per_s,
            mode.speedup,
            mode.worst_quarter,
            mode.total_time_ratio,
            mode.mean_accepted_tokens,
            mode.mean_rows,
            mode.median_ttft_ms,
            mode.n_identical,
        )?;
    }
    if let Some(sentence) = by_given_costs {
        writeln!(page, "\n{sentence}")?;
    }
    Ok(())
}

fn quality(page: &mut String, report: &QualityReport) -> anyhow::Result<()> {
    let QualityReport { model, prompts, places, n_places, .. } = report;
    writeln!(page, "\n## Quality: {model}, {prompts}, {places}\n")?;
    setting(page, &report.setting)?;
    writeln!(page, "What was completed against what stood there, at {n_places} places.\n")?;
    page.push_str(
        "| | exact | similarity | brackets balanced | as many lines | empty | tests passed | likeliest tokens | nats per \
         token |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for result in &report.results {
        let [passed, likeliest, nats] = result.in_words();
        writeln!(
            page,
            "| {} | {} | {:.3} | {} | {} | {} | {passed} | {likeliest} | {nats} |",
            result.name,
            result.n_exact,
            result.edit_similarity,
            result.n_balanced,
            result.n_same_lines,
            result.n_empty,
        )?;
    }
    Ok(())
}

fn typing(page: &mut String, report: &TypingReport) -> anyhow::Result<()> {
    writeln!(page, "\n## Typing: {}, {}\n", report.model, report.file)?;
    setting(page, &report.setting)?;
    let TypingReport { n_lines, n_keystrokes, n_predicted, n_requests, median_new_tokens, .. } = report;
    writeln!(
        page,
        "{n_lines} lines typed anew, {n_keystrokes} keystrokes, {n_predicted} of them as predicted, {n_requests} requests, \
         {median_new_tokens} tokens computed for each; {} of {} passes for texts that were not used.\n",
        report.n_wasted_passes, report.n_passes
    )?;
    page.push_str("| first text, ms | p50 | p95 |\n|---|---|---|\n");
    let [warm, first] = [
        ("in a line that was begun", report.warm_p50_ms, report.warm_p95_ms),
        ("at another place of the file", report.first_p50_ms, report.first_p95_ms),
    ]
    .map(|(place, p50, p95)| format!("| {place} | {p50:.0} | {p95:.0} |\n"));
    page.push_str(&(warm + &first));
    Ok(())
}

fn soak(page: &mut String, report: &SoakReport) -> anyhow::Result<()> {
    writeln!(page, "\n## Soak: {}\n", report.model)?;
    setting(page, &report.setting)?;
    let SoakReport { n_requests, n_ended, n_superseded, n_cancelled, n_errors, .. } = report;
    let growth = 100.0 * (report.end_bytes as f64 / report.warm_bytes.max(1) as f64 - 1.0);
    Ok(writeln!(
        page,
        "{n_requests} rounds: {n_ended} requests ended, {n_superseded} were superseded, {n_cancelled} cancelled, {n_errors} failed. \
         {} were compared with ordinary decoding, {} differed; {} cancels took more than a pass. Resident memory went from \
         {} to {} MB after the warm-up ({growth:+.1} %).",
        report.n_compared,
        report.n_different,
        report.n_late_cancels,
        report.warm_bytes >> 20,
        report.end_bytes >> 20,
    )?)
}

fn table(
    page: &mut String,
    head: &str,
    columns: &[usize],
    rows: &[(String, Vec<Option<f64>>, usize)],
) -> anyhow::Result<()> {
    let names: Vec<String> = columns.iter().map(usize::to_string).collect();
    writeln!(page, "| {head} | {} |\n|---|{}", names.join(" | "), "---|".repeat(columns.len()))?;
    for (name, values, digits) in rows {
        let cell = |value: &Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.digits$}"));
        writeln!(page, "| {name} | {} |", values.iter().map(cell).collect::<Vec<_>>().join(" | "))?;
    }
    page.push('\n');
    Ok(())
}

fn ratios(a: &[Option<f64>], b: &[Option<f64>]) -> Vec<Option<f64>> {
    a.iter().zip(b).map(|(a, b)| Some((*a)? / (*b)?)).collect()
}

fn peers(page: &mut String, report: &PeersReport) -> anyhow::Result<()> {
    writeln!(page, "\n## Other engines: {}\n", report.model)?;
    setting(page, &report.setting)?;
    let [ours, others @ ..] = report.peers.as_slice() else { bail!("no engines") };
    let mut rows = Vec::new();
    for peer in &report.peers {
        rows.push((format!("{}, ms", peer.name), peer.passes_ms.clone(), 2));
    }
    for peer in others {
        rows.push((format!("{} against sateen", peer.name), ratios(&peer.passes_ms, &ours.passes_ms), 2));
    }
    table(page, "rows of a pass", &report.rows, &rows)?;
    let mut rows = Vec::new();
    for peer in &report.peers {
        rows.push((format!("{}, tokens/s", peer.name), peer.prefill_tokens_per_s.clone(), 0));
    }
    for peer in others {
        let ratios = ratios(&ours.prefill_tokens_per_s, &peer.prefill_tokens_per_s);
        rows.push((format!("sateen against {}", peer.name), ratios, 2));
    }
    table(page, "tokens of a prompt", &report.prefills, &rows)?;
    let Some((prompts, n_prompts, max_tokens)) = &report.decoded else { return Ok(()) };
    writeln!(
        page,
        "Decoding {n_prompts} prompts of {prompts}, greedily, up to {max_tokens} tokens, every way in turn on each prompt:\n"
    )?;
    page.push_str("| engine | way | tokens/s | against its ordinary decoding |\n|---|---|---|---|\n");
    for peer in &report.peers {
        for (way, tokens_per_s) in &peer.decoding {
            let speedup = tokens_per_s / peer.decoding[0].1;
            writeln!(page, "| {} | {way} | {tokens_per_s:.1} | {speedup:.2} |", peer.name)?;
        }
    }
    Ok(())
}

fn cost(page: &mut String, report: &CostReport) -> anyhow::Result<()> {
    let overrides: Vec<&str> =
        report.setting.command.split(' ').take_while(|word| word.contains('=')).collect();
    writeln!(
        page,
        "\n## Cost of a pass: {}\n",
        [&[report.model.as_str()], &overrides[..]].concat().join(", ")
    )?;
    setting(page, &report.setting)?;
    costs(page, &report.cost)?;
    if let Some(peak) = report.cost.roofline.peak_bytes {
        writeln!(
            page,
            "Loading took {:.2} of the file's size in memory.",
            peak as f64 / report.file_bytes as f64
        )?;
    }
    Ok(())
}

fn costs(page: &mut String, cost: &CostTable) -> anyhow::Result<()> {
    let columns: Vec<usize> = cost.passes.iter().map(|pass| pass.n_rows).collect();
    let median: Vec<Option<f64>> = cost.passes.iter().map(|pass| Some(pass.median_ms)).collect();
    let first = vec![median.first().copied().flatten(); median.len()];
    let relative = ratios(&median, &first);
    table(
        page,
        "rows",
        &columns,
        &[("median ms".to_owned(), median, 2), ("T(n)/T(1)".to_owned(), relative, 2)],
    )?;
    let lengths: Vec<usize> = cost.prefills.iter().map(|prefill| prefill.n_tokens).collect();
    let rates = cost.prefills.iter().map(|prefill| Some(prefill.tokens_per_s)).collect();
    table(page, "tokens of a prompt", &lengths, &[("tokens/s".to_owned(), rates, 0)])?;
    let roofline = &cost.roofline;
    writeln!(
        page,
        "One row reads {:.0} MB at {:.0} % of the {:.1} GB/s that a plain sum read right after; {} rows reach {:.0} % of the {:.0} \
         billion products/s of the kernel on cached weights, then too. (A share above 100 % says how much the machine's pace \
         changed meanwhile.)",
        roofline.pass_bytes as f64 / 1e6,
        roofline.bandwidth_share * 100.0,
        roofline.read_bytes_per_s / 1e9,
        columns.last().copied().unwrap_or(0),
        roofline.products_share * 100.0,
        roofline.products_per_s / 1e9,
    )?;
    Ok(())
}

fn gpu_check(page: &mut String, report: &GpuCheckReport) -> anyhow::Result<()> {
    let shape = if report.is_dry_run { "A small model" } else { "A 7B model" };
    writeln!(page, "\n## {shape} of random weights on {}\n", report.setting.device)?;
    setting(page, &report.setting)?;
    writeln!(
        page,
        "Replayed are the passes of {} over {}, whose widths were chosen by the costs {}.",
        report.trace.model,
        report.trace.prompts,
        costs_in_words(&report.trace.costs)
    )?;
    for of_type in &report.types {
        let TypeReport { tensor_type, file_bytes, n_identical, first_token, .. } = of_type;
        let gigabytes = *file_bytes as f64 / 1e9;
        writeln!(page, "\n### {tensor_type}, {gigabytes:.2} GB\n")?;
        costs(page, &of_type.cost)?;
        writeln!(
            page,
            "\n{n_identical} tokens were the same in every way of decoding. The first token came {:.1} ms after a keystroke behind \
             {} tokens, {} of them in the cache.\n",
            first_token.median_ms, first_token.n_prompt_tokens, first_token.n_reused_tokens
        )?;
        page.push_str("| way | tokens/s | against ordinary |\n|---|---|---|\n");
        let ordinary = of_type.ordinary_tokens_per_s;
        let published = [
            ("ordinary", ordinary),
            ("two passes, published acceptance", of_type.two_pass_tokens_per_s),
            ("fused, published acceptance", of_type.fused_tokens_per_s),
        ];
        for (way, tokens_per_s) in published {
            writeln!(page, "| {way} | {tokens_per_s:.1} | {:.2} |", tokens_per_s / ordinary)?;
        }
        for Replayed { mode, tokens_per_s, speedup, .. } in &of_type.replayed {
            writeln!(page, "| {mode}, replayed | {tokens_per_s:.1} | {speedup:.2} |")?;
        }
    }
    Ok(())
}
