//! `sateen models`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use engine::{
    AdapterChoice, AddMode, CancelToken, Catalog, FIRST_TEXT_BUDGET_MS, InstallProgress, InstallStage,
    InstalledModel, LibraryListing, ModelLibrary, ModelSource, ModelSources,
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use settings::SettingsFile;

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
    /// Measure this machine, and name the best model that it runs fast enough for someone who types
    Recommend {
        /// From a keystroke to the first text at most, in milliseconds
        #[arg(long, default_value_t = FIRST_TEXT_BUDGET_MS)]
        within_ms: f64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove an installed model
    Remove {
        /// Which model
        id: String,
    },
    /// SAT adapters of your own, which `sateen train sat` writes
    #[command(subcommand)]
    Adapter(AdapterCommand),
}

#[derive(Subcommand)]
enum AdapterCommand {
    /// Check an adapter and use it with the model that it was trained for
    Add {
        /// The file
        file: PathBuf,
    },
    /// Show which adapter each model uses, and what else there is
    List,
    /// Choose what a model drafts with, here and in the window
    Use {
        /// Which model
        id: String,
        /// The name of one of its adapters; `newest`, which is how it begins, `shipped`, or `off`
        adapter: String,
    },
    /// Remove an adapter; the one before it is used again
    Remove {
        /// Which model
        id: String,
        /// Which of its adapters
        name: String,
    },
}

fn adapter(library: &ModelLibrary, command: &AdapterCommand) -> anyhow::Result<()> {
    match command {
        AdapterCommand::Add { file } => {
            let (id, adapter) =
                library.add_adapter(file).with_context(|| format!("cannot add {}", file.display()))?;
            let (settings, _) = SettingsFile::of_user();
            match settings.settings().adapter_of(&id) {
                AdapterChoice::NEWEST => println!("{id} uses {} from now on", adapter.name),
                chosen => println!("Added {}; {id} uses {chosen}, as the settings say", adapter.name),
            }
        }
        AdapterCommand::List => {
            let (settings, _) = SettingsFile::of_user();
            for model in library.list()?.models {
                let mut names: Vec<&str> =
                    model.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
                names.extend(model.has_shipped_adapter.then_some(AdapterChoice::SHIPPED));
                let used = match model.adapter(settings.settings().adapter_of(&model.id)) {
                    AdapterChoice::File(path) => {
                        let own = model.adapters.iter().find(|adapter| adapter.path == path);
                        own.map_or("none", |adapter| adapter.name.as_str())
                    }
                    AdapterChoice::Shipped if model.has_shipped_adapter => AdapterChoice::SHIPPED,
                    AdapterChoice::Shipped | AdapterChoice::Off => "none",
                };
                names.retain(|name| *name != used);
                let others =
                    if names.is_empty() { String::new() } else { format!("; also {}", names.join(", ")) };
                println!("{:22} {used}{others}", model.id);
            }
        }
        AdapterCommand::Use { id, adapter } => {
            let model = library.find(id)?;
            let words = [AdapterChoice::NEWEST, AdapterChoice::SHIPPED, AdapterChoice::OFF];
            let own = model.adapters.iter().map(|own| own.name.as_str());
            let known: Vec<&str> = own.chain(words).collect();
            if !known.contains(&adapter.as_str()) {
                bail!("{id} has no adapter `{adapter}`; there are {}", known.join(", "));
            }
            let (mut settings, notices) = SettingsFile::of_user();
            notices.iter().for_each(|notice| eprintln!("sateen: {}", crate::terminal::printable(&notice.0)));
            settings.choose_adapter(id, adapter)?;
            println!("{id} uses {adapter} from now on");
        }
        AdapterCommand::Remove { id, name } => {
            library.remove_adapter(id, name)?;
            println!("Removed {name}");
        }
    }
    Ok(())
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
        ModelsCommand::Recommend { within_ms, json } => recommend(&library, *within_ms, *json),
        ModelsCommand::Remove { id } => {
            library.remove(id)?;
            println!("Removed {id}");
            Ok(())
        }
        ModelsCommand::Adapter(command) => adapter(&library, command),
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
    if let ModelSource::Hub(file) = &entry.source {
        println!("{}: {} of {}, licence: {}", entry.name, file.file, file.repository, entry.licence);
    }
    let bar = ProgressBar::new(entry.size_bytes);
    let style = "{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).context("the progress bar")?);
    let started = Instant::now();
    let mut last_part = None;
    let mut show = |progress: InstallProgress| {
        let message = match progress.stage {
            InstallStage::Fetching if progress.n_parts == 1 => format!("{}: fetching", entry.id),
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
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.n_bytes);
    };
    // Nothing cancels it but an interrupt, which keeps what was fetched.
    let installed =
        engine::install(entry, library, &ModelSources::default(), &CancelToken::default(), &mut show);
    bar.finish_and_clear();
    let model = installed
        .with_context(|| format!("cannot install {}", entry.id))?
        .context("the installation was cancelled")?;
    println!("Installed {} in {:.0} s: {}", model.id, started.elapsed().as_secs_f64(), in_words(&model));
    Ok(())
}

fn recommend(library: &ModelLibrary, within_ms: f64, json: bool) -> anyhow::Result<()> {
    if !json {
        eprintln!("Measuring, some seconds for each installed model");
    }
    let recommendation = engine::recommend(library, &Catalog::built_in(), within_ms)?;
    if json {
        println!("{}", serde_json::to_string(&recommendation)?);
        return Ok(());
    }
    println!("From a keystroke to the first text, in a line that was begun:");
    for pace in &recommendation.paces {
        let ms = match (pace.fits, pace.first_text_ms) {
            (false, _) | (_, None) => "does not fit into memory".to_owned(),
            (true, Some(ms)) if pace.is_measured => format!("{ms:4.0} ms, measured"),
            (true, Some(ms)) => format!("{ms:4.0} ms, estimated"),
        };
        let infill = if pace.can_infill { "fills in" } else { "only goes on" };
        let state = if pace.is_installed { "installed" } else { "not installed" };
        println!("  {:22} {ms:24} {infill:12} {state}", pace.id);
    }
    match &recommendation.best {
        Some(best) => {
            let pace = recommendation.paces.iter().find(|pace| &pace.id == best);
            let is_installed = pace.is_some_and(|pace| pace.is_installed);
            let is_quick = pace.and_then(|pace| pace.first_text_ms).is_some_and(|ms| ms <= within_ms);
            let why = if is_quick { "the best within" } else { "the fastest; none is within" };
            println!("Recommended: {best}, {why} {within_ms:.0} ms");
            if !is_installed {
                println!("`sateen models install {best}` fetches it");
            }
        }
        None => println!("No model fits into the memory of this machine"),
    }
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
