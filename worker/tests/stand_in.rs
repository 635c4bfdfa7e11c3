//! What moves data between a host and a GPU and between its streams, on a stand-in that is strict where a GPU goes wrong silently;
//! and that it is strict. All in one process, which computes on the stand-in from the first.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use common::recipe::Attention;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};
use tch::{Device, Kind, TchError, Tensor, nn};
use worker::{
    model::{
        init,
        llama::{Llama, LlamaConfig},
    },
    torch::{
        cuda::{Cuda, load_from},
        lane::Lane,
        memory,
        transfer::{Fetch, Uploader},
    },
};

#[path = "../stand_in/compile.rs"]
mod stand_in;

const GPU: Device = Device::Cuda(0);

/// Before anything else of libtorch. One test at a time: a fault is told to whoever computes next.
fn begin() -> MutexGuard<'static, ()> {
    static LOADED: Once = Once::new();
    static ALONE: Mutex<()> = Mutex::new(());
    LOADED.call_once(|| {
        assert_eq!(load_from(&[stand_in::compiled().libtorch.join("lib")]), Cuda::Gpu { count: 1 });
    });
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ones() -> Tensor {
    Tensor::ones([64], (Kind::Float, GPU))
}

fn refused<T>(found: Result<T, TchError>, expected: &str) {
    let error = found.err().unwrap().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_tensor_of_the_host_among_those_of_the_device_is_told() {
    let _alone = begin();
    let host = Tensor::ones([64], (Kind::Float, Device::Cpu));
    refused(ones().f_add(&host), "same device");
    refused(ones().f_index_select(0, &host.to_kind(Kind::Int64)), "one of the host, of shape [64]");
    let number = Tensor::from(2.0f32);
    assert_eq!(f64::try_from(ones().f_add(&number).unwrap().sum(Kind::Double)).unwrap(), 192.0);
}

#[test]
fn a_lane_that_does_not_wait_is_told_and_one_that_does_is_not() {
    let _alone = begin();
    let lane = Lane::new(GPU).unwrap();
    let x = ones();
    refused(lane.run(|| x.f_sum(Kind::Float)).unwrap(), "and does not wait for it");
    lane.follow(&lane.mark().unwrap()).unwrap();
    let sum = lane.run(|| x.f_sum(Kind::Float)).unwrap().unwrap();
    refused(sum.f_neg(), "and does not wait for it");
    refused(lane.run(|| x.shallow_clone().f_neg_()).unwrap().and_then(|_| x.shallow_clone().f_neg_()), "does not wait");
    lane.join(&[&sum]).unwrap();
    assert_eq!(f64::try_from(sum.f_neg().unwrap()).unwrap(), -64.0);
}

#[test]
fn parts_of_one_buffer_are_told_apart() {
    let _alone = begin();
    let lane = Lane::new(GPU).unwrap();
    let buffer = ones();
    lane.follow(&lane.mark().unwrap()).unwrap();
    let (low, high) = (buffer.narrow(0, 0, 32), buffer.narrow(0, 32, 32));
    let _ = lane.run(|| low.shallow_clone().f_neg_()).unwrap().unwrap();
    let _ = high.shallow_clone().f_square_().unwrap();
    refused(low.shallow_clone().f_square_(), "does not wait");
    lane.join(&[&buffer]).unwrap();
    assert_eq!(f64::try_from(buffer.sum(Kind::Double)).unwrap(), 0.0);
}

#[test]
fn batches_arrive_and_numbers_come_back_without_a_fault() {
    let _alone = begin();
    let mut uploader = Uploader::new(GPU).unwrap();
    memory::reset_peak(GPU);
    let mut sums = Vec::new();
    for step in 0..5u8 {
        let bytes = vec![step; 6000];
        let batch = uploader.upload(&bytes, &[2, 3000], Kind::Uint8).unwrap();
        sums.push(Fetch::begin(&[&batch.sum(Kind::Double), &batch.max()]).unwrap());
    }
    let found: Vec<Vec<f64>> = sums.into_iter().map(|sum| sum.wait().unwrap()).collect();
    let expected: Vec<Vec<f64>> = (0..5u8).map(|step| vec![6000.0 * f64::from(step), f64::from(step)]).collect();
    assert_eq!(found, expected);
    assert!(memory::peak_bytes(GPU).unwrap() >= 6000);
    // A buffer that was freed too early is told by the next operation.
    let _ = ones().f_neg().unwrap();
}

#[test]
fn memory_that_is_given_back_too_early_is_told() {
    let _alone = begin();
    let lane = Lane::new(GPU).unwrap();
    let x = ones();
    lane.follow(&lane.mark().unwrap()).unwrap();
    let sum = lane.run(|| x.f_sum(Kind::Float)).unwrap().unwrap();
    let next = ones();
    drop(x);
    refused(next.f_neg(), "was freed while another stream may still use it");
    lane.join(&[&sum]).unwrap();
    assert_eq!(f64::try_from(&sum).unwrap(), 64.0);
}

/// A small Llama's hidden states of texts of unequal lengths, and the gradients of all weights, in bf16 over fp32.
fn read(device: Device, attention: Attention) -> BTreeMap<String, Tensor> {
    let config: LlamaConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 50, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    }))
    .unwrap();
    let store = nn::VarStore::new(device);
    let mut llama = Llama::new(&store.root(), &config, attention);
    init::random(&store, 1, &config);
    llama.compute_in(Kind::BFloat16);
    let ids = Tensor::arange(23, (Kind::Int64, device));
    let hidden = llama.forward(&ids, &[3, 7, 0, 7, 1, 5]);
    let direction = Tensor::arange(23 * 64, (Kind::Float, device)).cos().view([23, 64]);
    (hidden.to_kind(Kind::Float) * direction).sum(Kind::Float).backward();
    let gradient = |(name, tensor): (String, Tensor)| (name, tensor.grad());
    let mut all: BTreeMap<_, _> = store.variables().into_iter().map(gradient).collect();
    all.insert("hidden states".to_owned(), hidden.detach());
    all.into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu).to_kind(Kind::Double))).collect()
}

#[test]
fn one_kernel_over_packed_texts_attends_as_many_over_runs_of_one_length() {
    let _alone = begin();
    for attention in [Attention::Bidirectional, Attention::Causal] {
        let (packed, runs) = (read(GPU, attention), read(Device::Cpu, attention));
        assert_eq!(packed.keys().collect::<Vec<_>>(), runs.keys().collect::<Vec<_>>());
        for (name, expected) in &runs {
            let apart = f64::try_from((&packed[name] - expected).norm() / expected.norm()).unwrap();
            assert!(apart < 2e-2, "{attention:?}, {name}: {apart}");
        }
    }
}
