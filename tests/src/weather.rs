//! A cable in user space, whose packets are late, lost, doubled and out of order: `tests/python/cable.py` between two TAP devices.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// What becomes of a cable's packets; the default is that all arrive at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// How late they are, from the machine and to it.
    pub late: (Duration, Duration),
    /// Up to so much more, each for itself: one may overtake another.
    pub jitter: Duration,
    /// The share that is lost, from the machine and to it.
    pub lost: (f64, f64),
    /// The share that arrives twice.
    pub doubled: f64,
    /// Of all that is drawn.
    pub seed: u64,
}

impl Weather {
    /// The same in both directions.
    pub fn both_ways(late: Duration, lost: f64) -> Self {
        Self { late: (late, late), lost: (lost, lost), jitter: late / 10, doubled: 0.01, seed: 1 }
    }
}

/// The process that passes packets on; the cable goes with it.
pub(crate) struct Air(Child);

impl Air {
    /// Lays a cable between two new devices, named so, in a network namespace.
    pub(crate) fn lay(namespace: &str, first: &str, second: &str) -> Result<Self, String> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/cable.py");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "python3"]).arg(program).args([first, second]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut air = Self(child.map_err(|error| format!("ip: {error}"))?);
        let mut line = String::new();
        BufReader::new(air.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line == "ready\n" { Ok(air) } else { Err("a cable cannot be laid: /dev/net/tun is needed".to_owned()) }
    }

    /// What becomes of its packets from now on.
    pub(crate) fn set(&mut self, weather: &Weather) {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let Weather { late, jitter, lost, doubled, seed } = *weather;
        let line = serde_json::json!({
            "seed": seed, "delay_ms": [millis(late.0), millis(late.1)], "jitter_ms": millis(jitter), "loss": [lost.0, lost.1],
            "duplicate": doubled,
        });
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Air {
    fn drop(&mut self) {
        // It may have ended with its namespace.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
