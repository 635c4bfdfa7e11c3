//! How a coordinator is set up: flags and the environment over a file over defaults.

use crate::{
    cli::error::CliError,
    election::Timing,
    runtime::Quarantine,
    store::{EtcdAddress, EtcdTls},
};
use common::{
    recipe::RecipeError,
    settings::{self, Settings},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Seconds that a leader's lease may last.
const LEASES: std::ops::RangeInclusive<u64> = 3..=600;

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// TOML file of these options, with `_` for `-`; flags and the environment win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// As written: on the command line, or under the same names, with `_` for `-`, in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
struct Options {
    /// Where to listen; port 0 takes a free one. Everyone who reaches it may run jobs: keep it to a trusted network
    /// [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where to keep what must survive a restart [default: llm2clip-state]
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Keep it in etcd instead (etcd://HOST:PORT,HOST:PORT/PREFIX): of several coordinators over one, one leads and the
    /// others stand by
    #[arg(long, env = "LLM2CLIP_STORE", value_name = "ADDRESS")]
    store: Option<String>,
    /// Where workers and users reach this coordinator, of several over one store; the address it listens on unless given
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Seconds after which another coordinator leads when the leader is gone, and patience with etcd: 30 where a round trip takes
    /// a second [default: 10]
    #[arg(long, value_name = "SECONDS")]
    leader_lease_s: Option<u64>,
    /// User of etcd
    #[arg(long, value_name = "NAME")]
    etcd_user: Option<String>,
    /// File with the user's password
    #[arg(long, value_name = "FILE")]
    etcd_password_file: Option<PathBuf>,
    /// PEM file of who signs etcd's certificates; TLS is off without it
    #[arg(long, value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// PEM file of our certificate, for an etcd that asks for one
    #[arg(long, value_name = "FILE")]
    etcd_cert: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, value_name = "FILE")]
    etcd_key: Option<PathBuf>,
    /// A worker gets no new trainers after so many of its trainers were lost within ten minutes, for half an hour or until
    /// `undrain`; 0 means never [default: 3]
    #[arg(long, value_name = "N")]
    quarantine_after: Option<u32>,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

/// Validated.
#[derive(Debug)]
pub(super) struct Config {
    pub listen: SocketAddr,
    pub place: Place,
    /// Absent means never.
    pub quarantine: Option<Quarantine>,
    pub log_json: bool,
}

/// Where what must survive is kept.
#[derive(Debug)]
pub(super) enum Place {
    /// In a folder, by the only coordinator.
    Folder(PathBuf),
    /// In etcd, by several.
    Etcd(Box<Shared>),
}

/// Of one of several coordinators.
#[derive(Debug)]
pub(super) struct Shared {
    pub store: EtcdAddress,
    pub timing: Timing,
    /// Where others reach it; absent where that is the address it listens on.
    pub advertise: Option<String>,
}

impl ServeArgs {
    /// Reads the file, if there is one, and checks the whole.
    ///
    /// # Errors
    /// When something cannot be.
    pub(super) fn config(&self) -> Result<Config, CliError> {
        let file = self.config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
        self.options.clone().over(file).resolve()
    }
}

impl Options {
    fn read(path: &Path) -> Result<Self, CliError> {
        let text = fs::read_to_string(path).map_err(|error| {
            CliError::usage(format!("could not read {}, the file of --config: {error}", path.display()))
        })?;
        Self::parse(&path.display().to_string(), &text).map_err(CliError::usage)
    }

    fn parse(file: &str, text: &str) -> Result<Self, RecipeError> {
        settings::parse(file, text, |keys: &mut Settings<'_>| {
            Ok(Self {
                listen: keys.parsed("listen")?,
                state: keys.path("state")?,
                store: keys.text("store")?,
                advertise: keys.text("advertise")?,
                leader_lease_s: keys.number("leader_lease_s")?,
                etcd_user: keys.text("etcd_user")?,
                etcd_password_file: keys.path("etcd_password_file")?,
                etcd_ca: keys.path("etcd_ca")?,
                etcd_cert: keys.path("etcd_cert")?,
                etcd_key: keys.path("etcd_key")?,
                quarantine_after: keys.number("quarantine_after")?,
                log_json: keys.truth("log_json")?.unwrap_or(false),
            })
        })
    }

    /// These, and where they say nothing, those of `file`.
    fn over(self, file: Self) -> Self {
        Self {
            listen: self.listen.or(file.listen),
            state: self.state.or(file.state),
            store: self.store.or(file.store),
            advertise: self.advertise.or(file.advertise),
            leader_lease_s: self.leader_lease_s.or(file.leader_lease_s),
            etcd_user: self.etcd_user.or(file.etcd_user),
            etcd_password_file: self.etcd_password_file.or(file.etcd_password_file),
            etcd_ca: self.etcd_ca.or(file.etcd_ca),
            etcd_cert: self.etcd_cert.or(file.etcd_cert),
            etcd_key: self.etcd_key.or(file.etcd_key),
            quarantine_after: self.quarantine_after.or(file.quarantine_after),
            log_json: self.log_json || file.log_json,
        }
    }

    fn resolve(self) -> Result<Config, CliError> {
        self.check_company()?;
        let after = self.quarantine_after.unwrap_or(Quarantine::default().after);
        let place = match &self.store {
            Some(store) => Place::Etcd(Box::new(Shared {
                store: self.address(store)?,
                timing: Timing { ttl: self.lease()? },
                advertise: self.advertise.clone(),
            })),
            None => Place::Folder(self.state.unwrap_or_else(|| "llm2clip-state".into())),
        };
        Ok(Config {
            listen: self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7070))),
            place,
            quarantine: (after > 0).then_some(Quarantine { after, ..Quarantine::default() }),
            log_json: self.log_json,
        })
    }

    /// Options that mean nothing without another one.
    fn check_company(&self) -> Result<(), CliError> {
        let store = self.store.is_some();
        let (user, ca) = (self.etcd_user.is_some(), self.etcd_ca.is_some());
        let pairs = [
            ("--advertise", self.advertise.is_some(), "--store", store),
            ("--etcd-user", user, "--store", store),
            ("--etcd-user", user, "--etcd-password-file", self.etcd_password_file.is_some()),
            ("--etcd-password-file", self.etcd_password_file.is_some(), "--etcd-user", user),
            ("--etcd-ca", ca, "--store", store),
            ("--etcd-cert", self.etcd_cert.is_some(), "--etcd-ca", ca),
            ("--etcd-cert", self.etcd_cert.is_some(), "--etcd-key", self.etcd_key.is_some()),
            ("--etcd-key", self.etcd_key.is_some(), "--etcd-cert", self.etcd_cert.is_some()),
        ];
        match pairs.into_iter().find(|(_, given, _, company)| *given && !company) {
            Some((option, _, company, _)) => Err(CliError::usage(format!(
                "{option} is of use with {company} only: give that too, as a flag or in the file of --config"
            ))),
            None => Ok(()),
        }
    }

    fn lease(&self) -> Result<Duration, CliError> {
        let seconds = self.leader_lease_s.unwrap_or(10);
        if LEASES.contains(&seconds) {
            return Ok(Duration::from_secs(seconds));
        }
        Err(CliError::usage(format!(
            "--leader-lease-s is {seconds}: it must be from {} to {}",
            LEASES.start(),
            LEASES.end()
        )))
    }

    fn address(&self, store: &str) -> Result<EtcdAddress, CliError> {
        let mut address = EtcdAddress::parse(store).map_err(CliError::usage)?.with_patience(self.lease()?);
        if let (Some(user), Some(path)) = (&self.etcd_user, &self.etcd_password_file) {
            let password = fs::read_to_string(path)
                .map_err(|error| CliError::usage(format!("could not read {}: {error}", path.display())))?;
            address = address.with_user(user.clone(), password.trim_end_matches(['\r', '\n']).to_owned());
        }
        if let Some(ca) = &self.etcd_ca {
            let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
            address = address.with_tls(EtcdTls { ca: ca.clone(), identity });
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        Options::parse("c.toml", text).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_defaults_fill_the_rest() {
        let file = options("listen = '10.0.0.1:7070'\nstate = '/a'\nquarantine_after = 0\nlog_json = true");
        let config = options("state = '/b'").over(file).resolve().unwrap();
        assert_eq!(config.listen, "10.0.0.1:7070".parse().unwrap());
        assert!(matches!(&config.place, Place::Folder(folder) if folder == Path::new("/b")));
        assert!(config.quarantine.is_none() && config.log_json);
        let config = Options::default().resolve().unwrap();
        assert_eq!((config.listen.port(), config.quarantine), (7070, Some(Quarantine::default())));
        assert!(matches!(&config.place, Place::Folder(folder) if folder == Path::new("llm2clip-state")));
        let file = options("store = 'etcd://10.0.0.5:2379/team-a'\nadvertise = 'http://a:7070'");
        let config = options("leader_lease_s = 4").over(file).resolve().unwrap();
        let Place::Etcd(shared) = config.place else { panic!("{config:?}") };
        assert_eq!(shared.advertise.as_deref(), Some("http://a:7070"));
        assert_eq!(shared.timing.ttl, Duration::from_secs(4));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expected: &str| {
            let error = options(text).resolve().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("advertise = 'http://a:1'", "--advertise is of use with --store only");
        check("etcd_cert = '/c'\nstore = 'etcd://a:1'\netcd_ca = '/ca'", "--etcd-cert is of use with --etcd-key only");
        check("store = 'etcd://a:1'\nleader_lease_s = 2", "--leader-lease-s is 2: it must be from 3 to 600");
        let error =
            Options::parse("coordinator.toml", "\nstate = '/s'\nadvertize = 'http://a:1'").unwrap_err().to_string();
        assert_eq!(error, "coordinator.toml:3: `advertize` is no key of these settings; did you mean `advertise`?");
    }

    /// The example, and the example with what it has behind `#` put in force.
    #[test]
    fn the_example_is_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/coordinator.toml");
        let text = fs::read_to_string(path).unwrap();
        let config = options(&text).resolve().unwrap();
        assert!(matches!(&config.place, Place::Folder(folder) if folder == Path::new("/var/lib/llm2clip")));
        let is_option = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let lines = text.lines().map(|line| line.strip_prefix('#').filter(|line| is_option(line)).unwrap_or(line));
        let all = options(&lines.collect::<Vec<_>>().join("\n"));
        assert!(all.store.is_some() && all.advertise.is_some() && all.etcd_key.is_some(), "{all:?}");
        all.check_company().unwrap();
    }
}
