//! A generation's collective whose every call is noted in the trainer's record, and can be made to fail on purpose.

use super::{
    failpoints::{Failpoints, Fault, Point},
    pulse::Pulse,
};
use crate::collective::{Collective, CollectiveError};
use common::{
    ids::{Rank, WorldSize},
    pulse::OperationKind,
};
use std::sync::atomic::{AtomicU64, Ordering};
use tch::Tensor;

/// See the file's text.
pub struct Observed {
    inner: Box<dyn Collective>,
    pulse: Pulse,
    failpoints: Failpoints,
    /// How many calls there were.
    calls: AtomicU64,
}

impl Observed {
    /// Looks at this one.
    pub fn new(inner: Box<dyn Collective>, pulse: Pulse, failpoints: Failpoints) -> Self {
        Self { inner, pulse, failpoints, calls: AtomicU64::new(0) }
    }

    /// Calls, unless the call is to be left out: then `left_out` is its result.
    fn call<T>(
        &self,
        kind: OperationKind,
        bytes: u64,
        call: impl FnOnce(&dyn Collective) -> Result<T, CollectiveError>,
        left_out: impl FnOnce() -> T,
    ) -> Result<T, CollectiveError> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.failpoints.hit(Point::Collective, number) == Some(Fault::Skip) {
            return Ok(left_out());
        }
        self.pulse.call(kind, bytes);
        match kind {
            OperationKind::AllGather => self.failpoints.pass(Point::AllGather),
            OperationKind::AllReduce => self.failpoints.pass(Point::AllReduce),
            _ => {}
        }
        let result = call(self.inner.as_ref());
        self.pulse.returned();
        result
    }
}

/// The bytes of so many of a tensor's rows; of all its elements without rows.
fn bytes(tensor: &Tensor, rows: Option<i64>) -> u64 {
    let elements = match (rows, tensor.size().first()) {
        (Some(rows), Some(own)) if *own > 0 => tensor.numel() as i64 / own * rows,
        // Whoever has no row cannot say how wide one is.
        (Some(_), _) => 0,
        (None, _) => tensor.numel() as i64,
    };
    elements.cast_unsigned() * tensor.kind().elt_size_in_bytes() as u64
}

impl Collective for Observed {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn world(&self) -> WorldSize {
        self.inner.world()
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CollectiveError> {
        let size = bytes(tensor, None);
        self.call(OperationKind::AllReduce, size, |inner| inner.all_reduce_sum(tensor), || ())
    }

    fn all_gather_rows(&self, mine: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
        let all = rows.iter().sum();
        let left_out = || {
            let mut shape = mine.size();
            shape[0] = all;
            Tensor::zeros(&shape, (mine.kind(), mine.device()))
        };
        self.call(OperationKind::AllGather, bytes(mine, Some(all)), |inner| inner.all_gather_rows(mine, rows), left_out)
    }

    fn reduce_scatter_rows(&self, tensor: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
        let own = rows.get(self.rank().0 as usize).copied().unwrap_or_default();
        let left_out = || tensor.narrow(0, 0, own);
        let call = |inner: &dyn Collective| inner.reduce_scatter_rows(tensor, rows);
        self.call(OperationKind::ReduceScatter, bytes(tensor, None), call, left_out)
    }

    fn broadcast(&self, tensor: &mut Tensor, root: Rank) -> Result<(), CollectiveError> {
        let size = bytes(tensor, None);
        self.call(OperationKind::Broadcast, size, |inner| inner.broadcast(tensor, root), || ())
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        self.call(OperationKind::Barrier, 0, |inner| inner.barrier(), || ())
    }

    fn finish(&self) -> Result<(), CollectiveError> {
        self.inner.finish()
    }

    fn lost(&self) -> Result<Option<Tensor>, CollectiveError> {
        // Every step asks before its update.
        self.failpoints.pass(Point::Optimizer);
        self.inner.lost()
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collective::Solo, supervisor::pulse as record};
    use common::pulse::Operation;
    use tch::{Device, Kind};

    #[test]
    fn every_call_is_noted_with_its_bytes_and_one_that_is_left_out_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pulse");
        record::create(&path).unwrap();
        let failpoints: Failpoints = "collective=skip@1".parse().unwrap();
        let observed = Observed::new(Box::new(Solo), Pulse::open(&path).unwrap(), failpoints);
        let mut x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        observed.all_reduce_sum(&mut x).unwrap();
        observed.broadcast(&mut x, Rank(0)).unwrap();
        let _ = observed.all_gather_rows(&x, &[2]).unwrap();
        observed.barrier().unwrap();
        let pulse = record::read(&path).unwrap().unwrap().pulse(0, Default::default());
        let expected = [(OperationKind::AllReduce, 24), (OperationKind::AllGather, 24), (OperationKind::Barrier, 0)];
        let expected: Vec<Operation> =
            (0..).zip(expected).map(|(number, (kind, bytes))| Operation { number, kind, bytes }).collect();
        assert_eq!((pulse.operations, pulse.waiting), (expected, false));
        assert_eq!(bytes(&Tensor::ones([2, 3], (Kind::Double, Device::Cpu)), Some(5)), 120);
    }
}
