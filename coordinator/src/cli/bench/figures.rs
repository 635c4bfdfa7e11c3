//! The figures of `bench control`, for machines and for people.

use serde::Serialize;

/// The middle and the far end of many values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Quantiles {
    /// How many values there were.
    pub(super) count: usize,
    /// The median; absent without values.
    pub(super) median: Option<f64>,
    /// 99 of a hundred are not larger.
    pub(super) p99: Option<f64>,
    /// The largest.
    pub(super) max: Option<f64>,
}

impl Quantiles {
    /// Of values in any order.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.max(1) - 1).copied()
        };
        Self { count: values.len(), median: at(0.5), p99: at(0.99), max: values.last().copied() }
    }

    fn shown(self) -> String {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), seconds);
        format!("median {}, p99 {}, worst {} of {}", shown(self.median), shown(self.p99), shown(self.max), self.count)
    }
}

fn seconds(value: f64) -> String {
    if value < 0.1 { format!("{:.2} ms", value * 1e3) } else { format!("{value:.2} s") }
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    pub(super) workers: u32,
    pub(super) ranks: u32,
    /// How many connections the workers' sessions share.
    pub(super) connections: usize,
    pub(super) seconds: f64,
    /// From the first connection until every worker is registered.
    pub(super) registered_s: f64,
    pub(super) heartbeats_per_s: f64,
    /// Workers that died meanwhile.
    pub(super) deaths: usize,
    /// Processor time of the coordinator by time that passed.
    pub(super) cpu_share_of_one_core: f64,
    /// A request of a user for the job's status.
    pub(super) status_rpc_s: Quantiles,
    pub(super) resident_bytes: u64,
    /// The last quarter of the time beside the second one.
    pub(super) resident_growth_bytes: i64,
    /// From the death of a worker of the job to the plan of the next generation; the lease is part of it.
    pub(super) death_to_plan_s: Quantiles,
    pub(super) lease_s: f64,
}

impl Figures {
    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        vec![
            format!(
                "{} workers over {} connections, {:.0} heartbeats/s, {} died; a job of {} ranks; {:.0} s",
                self.workers, self.connections, self.heartbeats_per_s, self.deaths, self.ranks, self.seconds
            ),
            format!("registered in        {:.1} s", self.registered_s),
            format!("coordinator          {:.1} % of one core", 100.0 * self.cpu_share_of_one_core),
            format!("status request       {}", self.status_rpc_s.shown()),
            format!(
                "memory               {:.1} MiB, growth {:+.2} MiB",
                mib(self.resident_bytes as f64),
                mib(self.resident_growth_bytes as f64)
            ),
            format!("death to new plan    {} (lease {} s)", self.death_to_plan_s.shown(), self.lease_s),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let quantiles = Quantiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((quantiles.median, quantiles.p99, quantiles.max), (Some(100.0), Some(198.0), Some(200.0)));
        assert_eq!(Quantiles::of(vec![3.0]).p99, Some(3.0));
        assert_eq!(Quantiles::of(Vec::new()).median, None);
    }
}
