//! `logs`: what the trainers of a job print, from the files under its output folder.

use super::{Common, error::CliError, jobs::reach, output::Format};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    mem::MaybeUninit,
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// A job's id or its output folder
    job: String,
    /// Only this rank's
    #[arg(long)]
    rank: Option<u32>,
    /// Stay, and print what is added until the job has ended
    #[arg(short, long)]
    follow: bool,
}

pub(super) async fn logs(args: &LogsArgs, common: &Common) -> Result<u8, CliError> {
    if common.format == Format::Json {
        return Err(CliError::usage(
            "logs are text; the metrics of each step are JSON lines in OUTPUT/clip/metrics.jsonl",
        ));
    }
    let mut reached = reach(&args.job, common).await?;
    let status = reached.client.status(&reached.job).await?;
    let folder = status.output.join("logs");
    let mut reader = Reader { rank: args.rank, folder: folder.clone(), files: BTreeMap::new() };
    reader.print_new()?;
    if reader.files.is_empty() && !args.follow {
        return Err(CliError::usage(format!("there are no logs in {} yet", folder.display())));
    }
    if args.follow && reached.own.is_none() && status.phase.exit_code().is_none() {
        let mut watch = reached.client.watch(&reached.job).await?;
        let (done, ended) = std::sync::mpsc::channel::<()>();
        let printing = tokio::task::spawn_blocking(move || reader.follow(&ended));
        while let Some(status) = watch.next().await? {
            if status.phase.exit_code().is_some() {
                break;
            }
        }
        drop(done);
        printing.await.map_err(|error| CliError::new(1, format!("reading the logs failed: {error}")))??;
    }
    reached.end().await;
    Ok(0)
}

/// The log files of a job, and how much of each was printed.
struct Reader {
    rank: Option<u32>,
    folder: PathBuf,
    files: BTreeMap<PathBuf, u64>,
}

impl Reader {
    fn fail(path: &Path, error: &std::io::Error) -> CliError {
        CliError::new(1, format!("{} cannot be read: {error}", path.display()))
    }

    /// `gen-00001-rank-00000.log` is a link to a trainer's file: the rank that it had in that generation.
    fn print_new(&mut self) -> Result<(), CliError> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut links: Vec<(u32, String, PathBuf)> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let rank = name.strip_prefix("gen-")?.split_once("-rank-")?.1.strip_suffix(".log")?.parse().ok()?;
                Some((rank, name, std::fs::canonicalize(entry.path()).ok()?))
            })
            .collect();
        links.sort_by(|a, b| a.1.cmp(&b.1));
        for (rank, _, target) in links {
            if self.rank.is_none_or(|wanted| wanted == rank) {
                self.print_file(rank, &target)?;
            }
        }
        Ok(())
    }

    fn print_file(&mut self, rank: u32, path: &Path) -> Result<(), CliError> {
        let printed = self.files.entry(path.to_owned()).or_insert(0);
        let mut file = File::open(path).map_err(|error| Self::fail(path, &error))?;
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(*printed))
            .and_then(|_| file.read_to_end(&mut text))
            .map_err(|error| Self::fail(path, &error))?;
        // A line that is not whole yet waits for its end.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        *printed += whole as u64;
        let mut out = std::io::stdout().lock();
        for line in text[..whole].split_inclusive(|byte| *byte == b'\n') {
            let prefix = if self.rank.is_some() { String::new() } else { format!("[{rank}] ") };
            let written = out.write_all(prefix.as_bytes()).and_then(|()| out.write_all(line));
            if written.is_err() {
                return Ok(()); // Nobody reads any more.
            }
        }
        Ok(())
    }

    /// Prints what is added until `ended` hangs up, woken by the kernel.
    fn follow(mut self, ended: &std::sync::mpsc::Receiver<()>) -> Result<(), CliError> {
        let fail = |error: rustix::io::Errno| CliError::new(1, format!("the logs cannot be watched: {error}"));
        std::fs::create_dir_all(&self.folder).map_err(|error| Self::fail(&self.folder, &error))?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(fail)?;
        let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, &self.folder, changes).map_err(fail)?;
        loop {
            self.print_new()?;
            if ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                return self.print_new();
            }
            let second = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
            match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&second)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(fail(error)),
            }
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(&watch, &mut buffer);
            while events.next().is_ok() {}
        }
    }
}
