//! `run`: a job on this machine alone, and `resume`, which goes on with one.

use super::{
    Common,
    client::Client,
    dry_run::{self, DryRunArgs},
    error::CliError,
    follow::Screen,
    jobs::{ResumeArgs, newest, reach},
    launch::ranks_of,
    leftovers,
    local::{Coordinator, Settings, Workers},
    locate::{self, Place, STATE_FOLDER},
    output::{self, Format},
    recipe::{self, RecipeArgs},
    why::explain,
};
use common::{
    daemon::{clock, shutdown::signalled},
    recipe::Recipe,
    status::{JobStatus, Phase},
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Worker daemons on this machine
    #[arg(long, default_value_t = 1)]
    workers: u32,
    /// Trainers of each worker; one a GPU, or one, unless given
    #[arg(long, value_name = "N")]
    trainers_per_worker: Option<u32>,
    /// CPU cores to share out among all trainers; all unless given
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
    /// Where to keep the job's state; OUTPUT/.llm2clip unless given
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

/// An id for a new job: the recipe's name and four letters.
pub(super) fn job_id(name: &str) -> String {
    let seed = format!("{} {} {name}", clock::now().0, std::process::id());
    let letters = b"abcdefghijkmnpqrstuvwxyz23456789";
    let digest = blake3::hash(seed.as_bytes());
    let tail: String =
        digest.as_bytes()[..4].iter().map(|byte| char::from(letters[usize::from(*byte) % letters.len()])).collect();
    format!("{name}-{tail}")
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The recipe says what is evaluated: its stage `eval` and its data sets; any recipe that trains will do.\n\
    Results are in its `output` with -eval behind it, unless --set output=FOLDER says where."
)]
pub(super) struct EvalArgs {
    /// What `llm2clip export` wrote, a job's output folder (its newest checkpoint), or one checkpoint's folder
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// The LLM's folder, where it is not the one that the model names
    #[arg(long, value_name = "FOLDER")]
    llm: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

/// Evaluates a model: a run like any other, of what the recipe evaluates.
pub(super) async fn evaluate(args: &EvalArgs, common: &Common) -> Result<u8, CliError> {
    let recipe = recipe::load_evaluation(&args.run.recipe, &args.model, args.llm.as_deref())?;
    start(recipe, &args.run, common).await
}

pub(super) async fn run(args: &RunArgs, common: &Common) -> Result<u8, CliError> {
    start(recipe::load(&args.recipe)?, args, common).await
}

async fn start(recipe: Recipe, args: &RunArgs, common: &Common) -> Result<u8, CliError> {
    let settings = Settings::new(args.workers, args.trainers_per_worker, args.cores)?;
    if args.dry_run.dry_run {
        return dry_run::forecast(&args.dry_run, &args.recipe, settings.world(), common);
    }
    let state = args.state.clone().unwrap_or_else(|| recipe.output.join(STATE_FOLDER));
    let coordinator = Coordinator::open(&state).await?;
    let mut client = Client::connect(coordinator.url()).await?;
    refuse_to_overwrite(&mut client, &recipe, args).await?;
    leftovers::end(coordinator.state());
    settings.save(coordinator.state())?;
    let job = job_id(&recipe.name);
    client.submit(&job, &recipe, settings.world()).await?;
    locate::point(&job, coordinator.state())?;
    eprintln!("{job}: {} on this machine; Ctrl-C stops it with a checkpoint", ranks(settings.world()));
    drive(coordinator, client, &job, &recipe.output, &settings, common.format).await
}

fn ranks(count: u32) -> String {
    if count == 1 { "1 rank".to_owned() } else { format!("{count} ranks") }
}

/// An output folder with a checkpoint of an unfinished job is not started over in silence.
async fn refuse_to_overwrite(client: &mut Client, recipe: &Recipe, args: &RunArgs) -> Result<(), CliError> {
    let Some(id) = newest(client).await? else { return Ok(()) };
    let earlier = client.status(&id).await?;
    let Some(step) = earlier.stages.iter().filter_map(|stage| stage.checkpoint).next_back() else { return Ok(()) };
    if matches!(earlier.phase, Phase::Succeeded) {
        return Ok(());
    }
    let output = recipe.output.display();
    Err(CliError::usage(format!(
        "{output} holds job {id}, unfinished, with a checkpoint of step {step}: `llm2clip resume {id}` goes on with it; \
         to begin anew choose another `output` (llm2clip run {} --set output=...) or delete {output}",
        args.recipe.file.display()
    )))
}

pub(super) async fn resume(args: &ResumeArgs, common: &Common) -> Result<u8, CliError> {
    let local = match locate::place(&args.job) {
        Place::Local { state, job } if common.coordinator.is_none() && locate::address(&state).is_none() => {
            Some((state, job))
        }
        _ => None,
    };
    let Some((state, job)) = local else { return resume_elsewhere(args, common).await };
    let coordinator = Coordinator::open(&state).await?;
    let mut client = Client::connect(coordinator.url()).await?;
    let job = match job {
        Some(job) => job,
        None => {
            newest(&mut client).await?.ok_or_else(|| CliError::usage(format!("{} holds no job", state.display())))?
        }
    };
    let ended = leftovers::end(coordinator.state());
    if ended > 0 {
        eprintln!("ended {ended} trainers that the earlier run left behind");
    }
    let settings = Settings::load(coordinator.state())?.with_workers(args.workers)?;
    settings.save(coordinator.state())?;
    // Nobody else drives the job, and its trainers are gone.
    coordinator.abandon(&job).await?;
    let status = client.resume(&job, args.step, Some(settings.world()), &args.weights).await?;
    eprintln!("{job}: goes on with {} on this machine", ranks(settings.world()));
    drive(coordinator, client, &job, &status.output, &settings, common.format).await
}

async fn resume_elsewhere(args: &ResumeArgs, common: &Common) -> Result<u8, CliError> {
    if args.workers.is_some() {
        return Err(CliError::usage(
            "--workers is for a job of `llm2clip run` that has ended; give --ranks or --nodes",
        ));
    }
    let mut reached = reach(&args.job, common).await?;
    let until = Instant::now() + Duration::from_secs(args.wait);
    let ranks = match args.nodes {
        Some(nodes) => Some(ranks_of(&mut reached.client, Some(nodes), until).await?),
        None => args.ranks,
    };
    let status = reached.client.resume(&reached.job, args.step, ranks, &args.weights).await?;
    if !args.follow {
        match common.format {
            Format::Json => output::print_json(None, &status),
            Format::Text => println!("{} goes on; next: llm2clip status {}", status.job, status.job),
        }
        return Ok(0);
    }
    let mut watch = reached.client.watch(&reached.job).await?;
    let status = Screen::new(common.format).follow(&mut watch).await?;
    Ok(end(&status, common.format))
}

/// Starts workers, follows the job to its end, and takes everything down again.
async fn drive(
    coordinator: Coordinator,
    mut client: Client,
    job: &str,
    job_output: &Path,
    settings: &Settings,
    format: Format,
) -> Result<u8, CliError> {
    let mut workers = Workers::start(&coordinator, settings, &job_output.join("logs"))?;
    let result = watch(&mut client, &mut workers, job, format).await;
    workers.end().await;
    coordinator.stop().await;
    Ok(end(&result?, format))
}

/// Follows the job; a first Ctrl-C stops it with a checkpoint, a second one ends at once.
async fn watch(client: &mut Client, workers: &mut Workers, job: &str, format: Format) -> Result<JobStatus, CliError> {
    let mut stream = client.watch(job).await?;
    let mut screen = Screen::new(format);
    let mut asked = false;
    let mut last = client.status(job).await?;
    let fail = |error: std::io::Error| CliError::new(1, format!("signals cannot be caught: {error}"));
    loop {
        tokio::select! {
            status = stream.next() => match status? {
                Some(status) => {
                    screen.update(&status);
                    let ended = status.phase.exit_code().is_some();
                    last = status;
                    if ended {
                        break;
                    }
                }
                None => break,
            },
            signal = signalled() => {
                signal.map_err(fail)?;
                screen.clear();
                if asked {
                    return Err(CliError::new(4, format!("{job}: ended at once; next: llm2clip resume {job}")));
                }
                asked = true;
                eprintln!("{job}: stops with a checkpoint; Ctrl-C again ends it at once");
                client.stop(job).await?;
            }
            died = workers.watch() => screen_died(&mut screen, &died?),
        }
    }
    screen.clear();
    Ok(last)
}

fn screen_died(screen: &mut Screen, what: &str) {
    screen.clear();
    eprintln!("{what}");
}

/// Says how a job ended and what comes next; returns the exit code.
pub(super) fn end(status: &JobStatus, format: Format) -> u8 {
    let code = status.phase.exit_code().unwrap_or(5);
    if format == Format::Json {
        output::print_json(None, status);
        return code;
    }
    if matches!(status.phase, Phase::Failed { .. }) {
        explain(status).iter().for_each(|line| eprintln!("{line}"));
        return code;
    }
    let output = &status.output;
    let took = output::duration(status.updated.since(status.created).as_secs_f64());
    let word = if code == 0 { "done" } else { "stopped" };
    println!("{} {word} after {took}", status.job);
    let checkpoint = status.stages.iter().rev().find_map(|stage| Some((stage.kind.as_str(), stage.checkpoint?)));
    if let Some((stage, step)) = checkpoint {
        let root = status.checkpoints.as_ref().unwrap_or(output);
        println!("  checkpoint  {}", common::manifest::paths::checkpoint_folder(root, stage, step).display());
    }
    if status.stages.iter().any(|stage| stage.done && stage.kind == "eval") {
        println!("  results     {}", output.join("eval/results.json").display());
    }
    println!("  logs        {}", output.join("logs").display());
    match code {
        0 if checkpoint.is_none() => println!("next: llm2clip events {}", status.job),
        0 => println!("next: llm2clip ckpt verify {} | llm2clip events {}", output.display(), status.job),
        _ => println!("next: llm2clip resume {}", status.job),
    }
    code
}
