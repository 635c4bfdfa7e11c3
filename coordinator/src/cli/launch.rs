//! `launch`: hands a recipe to a coordinator.

use super::{
    Common,
    client::Client,
    dry_run::{self, DryRunArgs},
    error::CliError,
    follow::Screen,
    jobs::DEFAULT_COORDINATOR,
    output::{self, Format},
    recipe::{self, RecipeArgs},
    run::{end, job_id},
};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at who is there.
const ASK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct LaunchArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Machines to run on, with all of their trainers; all that are connected unless given
    #[arg(long, conflicts_with = "ranks")]
    nodes: Option<usize>,
    /// Ranks to run with, wherever they fit
    #[arg(long)]
    ranks: Option<u32>,
    /// Wait so long for the coordinator and for so many machines
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    /// Show the job until it has ended, and end with its exit code
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    dry_run: DryRunArgs,
}

pub(super) async fn launch(args: &LaunchArgs, common: &Common) -> Result<u8, CliError> {
    let recipe = recipe::load(&args.recipe)?;
    if args.ranks == Some(0) {
        return Err(CliError::usage("--ranks must be 1 or more"));
    }
    if let (true, Some(ranks)) = (args.dry_run.dry_run, args.ranks) {
        return dry_run::forecast(&args.dry_run, &args.recipe, ranks, common);
    }
    let until = Instant::now() + Duration::from_secs(args.wait);
    let mut client = connect(common.coordinator.as_deref().unwrap_or(DEFAULT_COORDINATOR), until).await?;
    let world = match args.ranks {
        Some(ranks) => ranks,
        None => ranks_of(&mut client, args.nodes, until).await?,
    };
    if args.dry_run.dry_run {
        return dry_run::forecast(&args.dry_run, &args.recipe, world, common);
    }
    let job = job_id(&recipe.name);
    let status = client.submit(&job, &recipe, world).await?;
    if !args.follow {
        match common.format {
            Format::Json => output::print_json(None, &status),
            Format::Text => {
                println!("submitted {job} with {world} ranks; next: llm2clip status {job} | logs {job} -f | why {job}")
            }
        }
        return Ok(0);
    }
    eprintln!("submitted {job} with {world} ranks; Ctrl-C leaves it running");
    let status = Screen::new(common.format).follow(&mut client.watch(&job).await?).await?;
    Ok(end(&status, common.format))
}

/// The coordinator, as soon as it answers within the time.
async fn connect(url: &str, until: Instant) -> Result<Client, CliError> {
    loop {
        match Client::connect(url).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

/// The trainers of the `nodes` machines that have most, or of all that are connected.
pub(super) async fn ranks_of(client: &mut Client, nodes: Option<usize>, until: Instant) -> Result<u32, CliError> {
    if nodes == Some(0) {
        return Err(CliError::usage("--nodes must be 1 or more"));
    }
    loop {
        let workers = client.workers().await?.workers;
        let connected = workers.iter().filter(|worker| worker.connected);
        let mut trainers: Vec<u32> = connected.map(|worker| worker.inventory.trainers).collect();
        trainers.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
        let wanted = nodes.unwrap_or(trainers.len().max(1));
        if trainers.len() >= wanted {
            return Ok(trainers[..wanted].iter().sum());
        }
        if Instant::now() >= until {
            let connected = trainers.len();
            let message = format!(
                "{wanted} workers are asked for, {connected} are connected: `llm2clip workers` lists them, --wait SECONDS waits"
            );
            return Err(CliError::new(3, message));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
