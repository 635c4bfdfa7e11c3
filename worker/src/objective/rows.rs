//! What the contrastive losses do with rows: tiles, and products that are summed in fp32 at least.

use tch::{Device, Kind, Tensor};

/// Stretches of `tile`, the last one shorter: (start, length).
pub(super) fn stretches(all: i64, tile: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..all).step_by(tile.max(1) as usize).map(move |start| (start, tile.max(1).min(all - start)))
}

/// What is summed in: fp32 at least.
pub(super) fn wide(kind: Kind) -> Kind {
    if kind == Kind::Double { kind } else { Kind::Float }
}

/// a·b, summed and given in fp32 when the factors are bf16.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Tensor {
    match (a.kind(), a.device()) {
        (Kind::BFloat16, Device::Cpu) => a.to_kind(Kind::Float).mm(&b.to_kind(Kind::Float)),
        (Kind::BFloat16, _) => a.mm_dtype(b, Kind::Float),
        _ => a.mm(b),
    }
}
