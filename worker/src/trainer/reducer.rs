//! Sums gradients over the ranks while the backward pass goes on.
//!
//! The pass says which variables are done, [`Readiness`] which buckets are to go, and a thread beside it sends them. What
//! is left when the pass ends is the exposed part of the communication.

use super::{
    buckets::{Buckets, Readiness},
    error::TrainerError,
};
use crate::{
    collective::CollectiveError,
    torch::{
        hooks::GradientHooks,
        lane::{Lane, Mark},
    },
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};
use tch::{Device, Tensor};

/// A bucket that is full, and the point from which on its gradients are what they are.
type Full = (usize, Mark);
/// The backward pass whose gradients are reduced; absent while no pass is.
type Pass = Mutex<Option<(Readiness, SyncSender<Full>)>>;

/// Reduces the gradients of variables that lie in one flat buffer, on a lane of its own: the device goes on with the pass
/// while it communicates.
pub struct Reducer {
    buckets: Buckets,
    pass: Arc<Pass>,
    lane: Lane,
    _hooks: GradientHooks,
}

impl Reducer {
    /// Listens to the variables that `buckets` were cut from, in the same order.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn new(
        buckets: Buckets,
        variables: impl IntoIterator<Item = Tensor>,
        device: Device,
    ) -> Result<Self, TrainerError> {
        let pass = Arc::new(Pass::default());
        let lane = Lane::new(device)?;
        let told = pass.clone();
        let hooks = GradientHooks::new(variables, move |variable| {
            if let Some((readiness, launch)) = lock(&told).as_mut() {
                let buckets = readiness.ready(variable);
                send(launch, buckets, &lane);
            }
        })?;
        Ok(Self { buckets, pass, lane, _hooks: hooks })
    }

    /// The buckets' stretches of the flat buffer, in the order in which they are reduced.
    pub fn ranges(&self) -> &[Range<i64>] {
        self.buckets.ranges()
    }

    /// Runs the pass that completes the gradients, and calls `reduce` with each bucket as it is filled, on a thread beside
    /// it. `complete` is called when the pass is over: what comes after is waiting.
    ///
    /// # Errors
    /// The first of `reduce`; later buckets are not reduced then.
    pub fn reduce_behind(
        &self,
        reduce: impl Fn(usize) -> Result<(), CollectiveError> + Send,
        backward: impl FnOnce(),
        complete: impl FnOnce(),
    ) -> Result<(), TrainerError> {
        // Each bucket is sent once: a place for each means that nobody ever waits to send.
        let (launch, launched) = sync_channel(self.ranges().len());
        let lane = self.lane;
        std::thread::scope(|scope| {
            let reducing = scope.spawn(move || reduce_all(&launched, lane, reduce));
            *lock(&self.pass) = Some((Readiness::new(&self.buckets), launch));
            backward();
            // Dropping the sender ends the thread, after the last bucket.
            if let Some((mut readiness, launch)) = lock(&self.pass).take() {
                send(&launch, readiness.rest(), &lane);
            }
            complete();
            reducing.join().expect("a panic ends the process")
        })?;
        Ok(lane.join(&[])?)
    }
}

fn lock(pass: &Pass) -> MutexGuard<'_, Option<(Readiness, SyncSender<Full>)>> {
    pass.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(launch: &SyncSender<Full>, buckets: Range<usize>, lane: &Lane) {
    for bucket in buckets {
        let mark = lane.mark().expect("an event can be recorded on the stream of a pass that runs");
        // The other end is gone after an error, which `join` returns.
        let _ = launch.send((bucket, mark));
    }
}

fn reduce_all(
    launched: &Receiver<Full>,
    lane: Lane,
    reduce: impl Fn(usize) -> Result<(), CollectiveError>,
) -> Result<(), TrainerError> {
    let each = |(bucket, mark): Full| {
        lane.follow(&mark)?;
        reduce(bucket).map_err(TrainerError::from)
    };
    lane.run(|| launched.iter().try_for_each(each))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        collective::{Collective, Deadlines, Identity, join},
        trainer::buckets::Stretch,
    };
    use common::ids::{Generation, Rank, WorldSize};
    use std::{net::TcpListener, time::Duration};
    use tch::Kind;

    const SIDE: i64 = 600;
    const LAYERS: i64 = 5;

    /// Notes where each reduced stretch begins.
    struct Noted {
        inner: Box<dyn Collective>,
        flat: usize,
        order: Mutex<Vec<usize>>,
    }

    impl Collective for Noted {
        fn rank(&self) -> Rank {
            self.inner.rank()
        }
        fn world(&self) -> WorldSize {
            self.inner.world()
        }
        fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<(), CollectiveError> {
            self.order.lock().unwrap().push((tensor.data_ptr() as usize - self.flat) / 4);
            self.inner.all_reduce_sum(tensor)
        }
        fn all_gather_rows(&self, mine: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
            self.inner.all_gather_rows(mine, rows)
        }
        fn reduce_scatter_rows(&self, tensor: &Tensor, rows: &[i64]) -> Result<Tensor, CollectiveError> {
            self.inner.reduce_scatter_rows(tensor, rows)
        }
        fn broadcast(&self, tensor: &mut Tensor, root: Rank) -> Result<(), CollectiveError> {
            self.inner.broadcast(tensor, root)
        }
        fn barrier(&self) -> Result<(), CollectiveError> {
            self.inner.barrier()
        }
        fn abort(&self, reason: &str) {
            self.inner.abort(reason);
        }
    }

    /// What a rank's overlapped and plain reductions leave, and the order of the former.
    fn rank(listener: &TcpListener, rank: Rank, peers: Vec<String>) -> (Tensor, Tensor, Vec<usize>) {
        let limit = Duration::from_secs(60);
        let identity = Identity { generation: Generation(1), rank, peers };
        let length = SIDE * SIDE;
        let flat = Tensor::zeros([length * LAYERS], (Kind::Float, Device::Cpu));
        let variable = |i: i64| {
            let variable =
                (Tensor::ones([SIDE, SIDE], (Kind::Float, Device::Cpu)) / SIDE as f64).set_requires_grad(true);
            // As the flat buffer is laid out: from the output to the input.
            let gradient = flat.narrow(0, (LAYERS - 1 - i) * length, length).view([SIDE, SIDE]);
            crate::torch::shim::set_grad(&variable, &gradient).unwrap();
            variable
        };
        let layers: Vec<Tensor> = (0..LAYERS).map(variable).collect();
        let stretch = |i: i64| Stretch { range: i * length..(i + 1) * length, depth: LAYERS - i };
        let buckets = Buckets::cut(&(0..LAYERS).map(stretch).collect::<Vec<_>>(), 4);
        let reducer = Reducer::new(buckets, layers.iter().rev().map(Tensor::shallow_clone), Device::Cpu).unwrap();
        let limits = Deadlines { join: limit, operation: limit };
        let inner = join(listener, identity, limits, Device::Cpu).unwrap();
        let collective = Noted { inner, flat: flat.data_ptr() as usize, order: Mutex::default() };
        let backward = || {
            let x = (Tensor::arange(SIDE, (Kind::Float, Device::Cpu)) + f64::from(rank.0)).sin().view([1, SIDE]);
            // Layer 0 is of no use to the loss: its gradient never comes.
            layers[1..].iter().fold(x, |x, layer| x.matmul(layer)).sin().sum(Kind::Float).backward();
        };
        let part = |bucket: usize| {
            let range = &reducer.ranges()[bucket];
            flat.narrow(0, range.start, range.end - range.start)
        };
        let parts: Vec<Tensor> = (0..reducer.ranges().len()).map(part).collect();
        let shared = &collective;
        let reduce = move |bucket: usize| shared.all_reduce_sum(&mut parts[bucket].shallow_clone());
        reducer.reduce_behind(reduce, backward, || {}).unwrap();
        let behind = flat.copy();
        let order = collective.order.lock().unwrap().clone();
        let _ = flat.shallow_clone().zero_();
        backward();
        // The same sums in the same order, after the pass.
        for range in reducer.buckets.ranges() {
            collective.all_reduce_sum(&mut flat.narrow(0, range.start, range.end - range.start)).unwrap();
        }
        (behind, flat, order)
    }

    #[test]
    fn reducing_behind_the_pass_equals_reducing_after_it_in_every_bit_and_in_one_order() {
        let listeners: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let peers: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let results: Vec<_> = std::thread::scope(|scope| {
            let start = |(listener, number)| {
                let peers = peers.clone();
                scope.spawn(move || rank(listener, Rank(number), peers))
            };
            let ranks: Vec<_> = listeners.iter().zip(0..).map(start).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        // The first bucket is cut at 1 MiB, which is one layer; the other layers are one bucket.
        let layer = (SIDE * SIDE) as usize;
        let starts = vec![0, layer];
        for (behind, after, order) in &results {
            assert_eq!(behind, after);
            assert_eq!(behind, &results[0].0, "all ranks have the same sums");
            assert!(behind.narrow(0, 0, SIDE).abs().sum(Kind::Float).double_value(&[]) > 0.0);
            assert_eq!(order, &starts);
        }
    }
}
